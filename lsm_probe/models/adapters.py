"""Merges adapters (PEFT) into their base model. An adapter's folder holds only what training changed in the base."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.utils import CONFIG_NAME

from lsm_probe.assets.cache import sha256
from lsm_probe.errors import InputError
from lsm_probe.memory import is_out_of_memory
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.checkpoint_kinds import Lsm, TextLlm
from lsm_probe.models.checkpoint_names import may_be_on_hub
from lsm_probe.models.devices import input_device
from lsm_probe.models.hub_files import find_file
from lsm_probe.models.identity import AdapterIdentity, Checksums, ModelIdentity
from lsm_probe.models.llm_tokenizers import as_released
from lsm_probe.models.pretrained import from_files
from lsm_probe.models.published.release import read_tensors
from lsm_probe.models.quantisation import check_dense
from lsm_probe.models.templates import AUDIO_TOKEN
from lsm_probe.models.tensors import listed
from lsm_probe.models.weight_files import find_other_weights, find_weights, read_shapes

CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that do not change the base weights; others (PiSSA, OLoRA, LoftQ) do."""
_TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja")
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """An adapter in its stored form.

    Attributes:
        folder: the adapter's folder.
        weights: the file of its tensors.
        settings: the content of its `adapter_config.json`.
    """

    folder: Path
    weights: Path
    settings: dict[str, Any]

    @property
    def peft_type(self) -> str:
        return str(self.settings.get("peft_type"))

    def has_base_here(self) -> bool:
        """Whether the base that `adapter_config.json` names is a folder."""
        named = _find_named(self.folder, self.settings.get("base_model_name_or_path"))
        return named is not None and Path(named).is_dir()

    def read_tokenizer(self) -> Any:
        """The tokenizer in its folder, whose chat template may differ from the base's; None if there is none."""
        there = (self.folder / "tokenizer_config.json").is_file()
        return as_released(from_files(AutoTokenizer, self.folder), self.folder) if there else None

    @property
    def revision(self) -> str | None:
        """Commit on the model hub, if it came from there."""
        return self.folder.name if self.folder.parent.name == "snapshots" else None

    def find_base(self, given: str | None = None) -> str:
        """The name of the base: the given one, else the one in `adapter_config.json`, which may be inside the folder.

        Raises:
            InputError: none is known, or it is an adapter itself.
        """
        named = self.settings.get("base_model_name_or_path")
        base = given or _find_named(self.folder, named)
        if base is None:
            what = f"on {named}, which is not here" if named else "and its adapter_config.json names no base"
            raise InputError(f"{self.folder} is an adapter {what}: give its base with --base")
        if is_adapter(base):
            raise InputError(
                f"{self.folder} is an adapter on {base}, which is an adapter itself: merge that one into its base, and "
                "give the merged model with --base"
            )
        return base


def is_adapter(name: str | Path) -> bool:
    """Whether a name is a folder that holds an adapter without full weights beside it.

    Raises:
        InputError: the name is not a path that can be looked up, or the folder may not be read.
    """
    folder = Path(name)
    try:
        return (folder / CONFIG).is_file() and not find_weights(folder)
    except OSError as error:
        raise InputError(f"{name} cannot be loaded ({error.strerror}); check the path and its permissions") from error


def find_adapter(name: str | Path, *, on_hub: bool = False) -> Path | None:
    """The folder of an adapter: the name itself, or the local copy of hub files; None if it is not an adapter.

    Args:
        name: folder or hub name.
        on_hub: whether to query the hub for files without a local copy.
    """
    if is_adapter(name):
        return Path(name)
    if not may_be_on_hub(str(name)):
        return None
    config = _from_hub(name, CONFIG, ask=on_hub)
    if config is None or _from_hub(name, CONFIG_NAME, ask=on_hub) is not None:
        return None
    weights = (_from_hub(name, file) for file in _WEIGHTS)
    next((file for file in weights if file), None)  # the second file only if the first does not exist
    for file in _TOKENIZER:
        _from_hub(name, file)
    return config.parent


def is_missing_config(error: InputError) -> bool:
    """Whether a name could not be loaded because the hub has no `config.json` for it, as is the case for adapters."""
    return f"does not appear to have a file named {CONFIG_NAME}" in str(error.__cause__)


def read_adapter(folder: str | Path) -> Adapter:
    """Reads the description of an adapter, without its tensors.

    Raises:
        InputError: a file is missing or damaged, the folder holds other weights too, or the adapter is of a kind that
            cannot be merged into its base.
    """
    folder = Path(folder)
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder / CONFIG} cannot be read: get it again from the original adapter") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("peft_type"), str):
        raise InputError(f"{folder / CONFIG} names no peft_type: get it again from the original adapter")
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise InputError(f"{folder} holds {CONFIG} and no adapter: it has neither {' nor '.join(_WEIGHTS)}")
    for other in find_other_weights(folder, []):
        if held := read_shapes(other):
            raise InputError(
                f"{folder} holds {other.name} beside its adapter, and the {listed(held)} in it belong to no model that "
                "is known here: merge everything into one model with the code that trained it, and give its folder"
            )
    _check_kind(folder, settings)
    return Adapter(folder, weights, settings)


def check_inner_adapter(name: str | Path) -> None:
    """Refuses a folder that keeps the adapter for speech in a folder of its own, as Phi-4-multimodal does.

    Raises:
        InputError: it does; the message says how both are loaded.
    """
    inner = Path(name) / "speech-lora"
    if not is_adapter(name) and is_adapter(inner):
        raise InputError(
            f"{name} needs the adapter in {inner.name} to follow speech, and transformers does not load it by itself: "
            f"give --ckpt {inner} --base {name}"
        )


def merge_adapter(adapter: Adapter, base: Checkpoint, checksums: Checksums | None) -> None:
    """Merges an adapter into its base, in memory.

    Args:
        adapter: the adapter.
        base: its base; gets the merged weights, and an identity that names the adapter and the base.
        checksums: what [`check_folder`] returned of the adapter's folder.

    Raises:
        InputError: the adapter does not fit the base, the base is quantised, or they cannot be merged exactly.
    """
    _check_tokenizer(adapter, base)
    remedy = "an adapter merged into it would be rounded: --base gives the model before its quantisation"
    check_dense(base.model, f"{adapter.folder}, base {base.name}", remedy)
    weights = read_tensors(adapter.weights)
    names = [name.removeprefix(_PREFIX) for name in weights]
    root: Any = base.model
    if isinstance(base, Lsm) and not _fits(names, root) and _fits(names, base.llm):
        root = base.llm  # it was trained only on the LLM
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's warnings: their causes are checked here
        unmerged, merged = _merge(adapter, weights, root, base)
    if (unmerged - merged).abs().max() > (0.01 if base.model.dtype == torch.float32 else 0.1) * unmerged.abs().max():
        raise InputError(
            f"{adapter.folder} ({adapter.peft_type}) cannot be merged into its base: the merged model gives other "
            "outputs than the base with the adapter"
        )
    hashes = {file.name: sha256(file) for file in (adapter.folder / CONFIG, adapter.weights)}
    base.identity = ModelIdentity(
        model_type=base.identity.model_type,
        revision=adapter.revision,
        checksums=checksums,
        weights_sha256={**(base.identity.weights_sha256 or {}), adapter.weights.name: hashes[adapter.weights.name]},
        prompt_sha256=base.identity.prompt_sha256,
        date=base.identity.date,
        adapter=AdapterIdentity(
            peft_type=adapter.peft_type,
            sha256=hashes,
            base=replace(base.identity, prompt_sha256=None, date=None),
        ),
    )


def _from_hub(name: str | Path, file: str, *, ask: bool = True) -> Path | None:
    """The local path of a hub file, once it is downloaded; None if the hub does not have it or cannot be reached."""
    try:
        kept = try_to_load_from_cache(str(name), file)
    except ValueError:  # not a valid hub name
        return None
    if kept is not None or not ask:  # the cache may also record that the hub does not have the file
        return Path(kept) if isinstance(kept, str) else None
    return find_file(name, file)


def _check_tokenizer(adapter: Adapter, base: Checkpoint) -> None:
    """Refuses an adapter on a model that takes speech if the tokenizer beside it differs from the one in use.

    The placeholder for speech, which processors add, makes no difference.
    """
    own, used = adapter.read_tokenizer(), base.tokenizer
    if own is None or isinstance(base, TextLlm):  # a text LLM was loaded with this tokenizer
        return
    vocabularies = [{token: at for token, at in t.get_vocab().items() if token != AUDIO_TOKEN} for t in (own, used)]
    templates = [None, used.chat_template, getattr(base.processor, "chat_template", None)]
    differing = "tokenizer" if vocabularies[0] != vocabularies[1] else "chat template"
    if differing == "tokenizer" or own.chat_template not in templates:
        raise InputError(
            f"{adapter.folder} has another {differing} than its base {base.name}: merge it into its base with the code "
            "that trained it, and give the merged model's folder"
        )


def _find_named(folder: Path, named: object) -> str | None:
    """The base that an adapter names: a folder relative to here, one relative to the adapter, or a hub name."""
    if not isinstance(named, str) or not named:
        return None
    for place in (Path(named), folder / named):
        if place.is_dir():
            return str(place)
    return named if may_be_on_hub(named) else None


def _check_kind(folder: Path, settings: dict[str, Any]) -> None:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

    kind, start = settings["peft_type"], settings.get("init_lora_weights", True)
    if kind not in PeftType.__members__:
        raise InputError(f"{folder} is a {kind!r} adapter, which the installed peft does not know")
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[kind]]
    reason = None
    if config(peft_type=kind).is_prompt_learning or kind in ("ADAPTION_PROMPT", "CPT", "CARTRIDGE"):
        reason = "it puts learned vectors beside the prompt's, which are no change of weights"
    elif kind in ("XLORA", "POLY"):
        reason = "it combines several adapters differently for each input"
    elif settings.get("alora_invocation_tokens"):
        reason = "it (aLoRA) changes the weights for a part of the prompt only"
    elif settings.get("megatron_config"):
        reason = "it was trained with Megatron's own layers"
    elif start not in _PLAIN_STARTS:
        reason = (
            f"training began with init_lora_weights={start!r}, which changes the base too. Convert it into a plain "
            "LoRA with peft's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    if reason:
        raise InputError(f"{folder} is a {kind} adapter that cannot be merged into its base: {reason}")


def _fits(names: Iterable[str], root: nn.Module) -> bool:
    """Whether each of an adapter's tensors lies in or below a layer of a model."""
    layers = {name for name, module in root.named_modules() if not any(module.children())}
    parents = ({".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 2)} for name in names)
    return all(not layers.isdisjoint(below) for below in parents)


@torch.no_grad()
def _merge(adapter: Adapter, weights: dict[str, Tensor], root: Any, base: Checkpoint) -> tuple[Tensor, Tensor]:
    """Merges; returns logits of a few tokens before and after."""
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict

    def logits() -> Tensor:
        ids = torch.tensor([[1, 2, 3, 2]], device=input_device(base.llm))
        found: Tensor = base.llm(input_ids=ids, use_cache=False).logits.float()
        return found

    label = f"{adapter.folder} does not fit its base {base.name}"
    wrong = "give with --base the model that it was trained on"
    try:
        config = PeftConfig.from_pretrained(str(adapter.folder))
        config.inference_mode = False  # peft then marks the adapter's parameters
        adapted = PeftModel(root, config).eval()
        own = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
        result: Any = set_peft_model_state_dict(adapted, weights)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join((repr(error) if isinstance(error, KeyError) else str(error)).split())[:200]
        raise InputError(f"{label} ({reason}): {wrong}") from error
    if unused := result.unexpected_keys:
        raise InputError(f"{label}, which has no place for {listed(unused)} of it: {wrong}")
    if missing := own.intersection(result.missing_keys):
        raise InputError(f"{adapter.folder} lacks {listed(missing)} of its adapter: get an undamaged copy")
    unmerged = logits()
    try:
        merged: Any = adapted.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, AttributeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{adapter.folder} is a {adapter.peft_type} adapter that cannot be merged into its base: {reason}"
        ) from error
    assert merged is root  # its modules were replaced in place
    merged.requires_grad_(True)  # peft freezes the base; importance needs gradients
    _untie_if_changed(merged)
    return unmerged, logits()


def _untie_if_changed(model: Any) -> None:
    """Records in the configuration that input and output embeddings differ, if the adapter made them differ."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if inputs is not None and outputs is not None and inputs.weight is not outputs.weight:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
