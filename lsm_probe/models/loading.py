"""Loading: a folder, a hub name or a built-in name to a [`Checkpoint`]."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    WhisperFeatureExtractor,
    WhisperModel,
)

from lsm_probe import assets
from lsm_probe.assets.cache import SEAL
from lsm_probe.checksums import leads_outside, read_checksums, verify
from lsm_probe.distributed import local_device
from lsm_probe.errors import InputError
from lsm_probe.hardware import computes_natively, warn_if_emulated
from lsm_probe.models import LsmConfig, LsmForConditionalGeneration, LsmProcessor, LsmProjectorConfig
from lsm_probe.models.audio_llm import audio_llm_class, check_reads_embeddings, find_audio_token_id
from lsm_probe.models.audio_llm_processor import AudioLlmProcessor
from lsm_probe.models.builtin_arms import arm_file, builtin_arms, read_training
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.checkpoint_names import before_the_hub, require_folder
from lsm_probe.models.dates import pin_date, pinned_date, read_date
from lsm_probe.models.device_map import SPREAD, spread
from lsm_probe.models.mistral_processor import audio_llm_processor
from lsm_probe.models.processing_lsm import check_feature_extractor
from lsm_probe.models.prompter import Prompter
from lsm_probe.models.prompts import encode_prompt, encode_target, prompt_sha256
from lsm_probe.models.templates import AUDIO_TOKEN, TEMPLATES, default_template
from lsm_probe.models.tensors import check_tensors

BUILTIN = ("builtin:llm", "builtin:untrained", *(f"builtin:{name}" for name in builtin_arms()))


def load(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    template: str | None = None,
    date: str | None = None,
) -> Checkpoint:
    """Loads a checkpoint to look into.

    Args:
        name: a folder, a name on the model hub, `builtin:llm` (the embedded text LLM), `builtin:untrained` (the
            embedded encoder and LLM with a seeded, untrained connector), `builtin:vanilla_asr` or
            `builtin:self_powered` (the same, trained: two arms of `analyses/speech_anchor_bias`). An LSM of ours, a
            text LLM, or an audio LLM that ships in transformers and has a placeholder token for its speech.
        device: a torch device; `auto` takes CUDA where there is one, under `torchrun` a GPU for each process; `spread`
            lays the model over all GPUs, and the CPU for what does not fit.
        dtype: `float32`, `bfloat16` or `float16`; `auto` is float32 on CPU, and on a GPU bfloat16, or float16 where
            it has no instructions for bfloat16.
        template: prompt template; by default the LSM's own, or `chat` / `vicuna` for a text LLM; of an audio LLM
            `chat` or `chat_source_first`.
        date: used as today's date by chat templates that print one; [`DATE`] by default.

    Raises:
        InputError: if there is no such checkpoint, its checksums do not hold, its weights do not fit its `config.json`,
            an adapter lies beside whole weights, it is of a kind that cannot be probed, or the date is invalid.

    Warns:
        UserWarning: `dtype` is emulated on the device, the template prints no date though one is given, tensors outside
            the LLM are left out, or another `attn_implementation` than the one in `config.json` is run.
    """
    name = str(name)
    torch_device = resolve_device(device)
    torch_dtype = resolve_dtype(dtype, torch_device)
    _check_template(template)
    _check_builtin(name)
    if name == "builtin:untrained":
        parts = (assets.speech_encoder(), assets.language_model())
        checkpoint = build_lsm(*parts, dtype=torch_dtype, template=template, date=date)
        checkpoint.name = name
    elif name in BUILTIN[2:]:
        checkpoint = _build_trained(name, torch_dtype, template, date)
    else:
        folder = str(assets.language_model()) if name == "builtin:llm" else name
        checkpoint = _load_pretrained(name, folder, torch_dtype, template, date)
    try:
        if device == SPREAD:
            spread(checkpoint.model)
        else:
            checkpoint.model.to(torch_device)  # type: ignore[arg-type]  # transformers wraps `to` without its type
    except torch.OutOfMemoryError as error:
        raise InputError(f"{name} does not fit on {torch_device}: try --device spread or --dtype bfloat16") from error
    checkpoint.model.eval()
    return checkpoint


def look_up(name: str) -> Literal["speech", "text"] | None:
    """Which source a checkpoint reads, without loading it: by its name, or by the `config.json` of its folder.

    Returns:
        None where only loading tells: of a hub name, or of a kind that `load` refuses.

    Raises:
        InputError: there is no such built-in, no such folder, or no checkpoint in it.
    """
    _check_builtin(name)
    if name in BUILTIN:
        return "text" if name == "builtin:llm" else "speech"
    require_folder(name)
    if not Path(name).is_dir():
        return None
    config = pretrained(AutoConfig, name)
    if isinstance(config, LsmConfig) or audio_llm_class(config) is not None:
        return "speech"
    return "text" if _is_causal(config) else None


def look_up_text(name: str) -> Literal["text"]:
    """As [`look_up`], for a probe that gives the transcript to every checkpoint."""
    look_up(name)
    return "text"


def load_prompter(name: str | Path, *, template: str | None = None, date: str | None = None) -> Prompter:
    """Loads what writes a text LLM's prompts, its weights left where they are.

    Args:
        name: a folder, a name on the model hub, or `builtin:llm`.
        template: prompt template; by default `chat` / `vicuna`, as [`load`] has it.
        date: as in [`load`].

    Raises:
        InputError: there is no such checkpoint, its checksums do not hold, it is no text LLM, or the date is invalid.
    """
    name = str(name)
    _check_template(template)
    folder = str(assets.language_model()) if name == "builtin:llm" else name
    if folder.startswith("builtin:"):
        raise InputError(f"{name} is no text LLM; the built-in one is builtin:llm")
    checksums = check_folder(folder)
    config = pretrained(AutoConfig, folder)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"{name} is a {config.model_type!r} model; give the text LLM whose answers are to be made")
    tokenizer = _with_date(pretrained(AutoTokenizer, folder), date)
    template = template or default_template(tokenizer)
    identity = identify(folder, config, checksums) | describe_prompt(tokenizer, template, None, name, date)
    return Prompter(name, folder, tokenizer, template, identity)


def load_text_check(name: str, *, template: str | None = None) -> Callable[[str, str | None, str | None], None]:
    """A function that refuses texts which a checkpoint would read as something else; no weights are loaded.

    Args:
        name: as of [`load`].
        template: prompt template, as of [`load`].

    Returns:
        A function of instruction, transcript and target, the last two None where there is none. It raises InputError
        for a text that holds a control token or the placeholder for the speech, or has no tokens.

    Raises:
        InputError: there is no such checkpoint, or it is of a kind that cannot be probed.
    """
    _check_template(template)
    kind = look_up(name)
    folder = str(assets.language_model()) if name in BUILTIN else name
    config = pretrained(AutoConfig, folder)
    processor: LsmProcessor | AudioLlmProcessor | None = None
    if isinstance(config, LsmConfig):
        processor = pretrained(AutoProcessor, folder)
    elif audio_llm_class(config) is not None:
        processor = _audio_llm_processor(name, folder, config, template, None)
    elif kind == "speech":
        extractor = pretrained(WhisperFeatureExtractor, assets.speech_encoder())
        processor = LsmProcessor(extractor, pretrained(AutoTokenizer, folder))
    tokenizer = processor.tokenizer if processor else pretrained(AutoTokenizer, folder)
    if isinstance(processor, LsmProcessor):
        processor.template = template or processor.template

    def check(instruction: str, transcript: str | None, target: str | None) -> None:
        transcript = transcript or "words"
        if processor is None:
            encode_prompt(tokenizer, template or default_template(tokenizer), instruction, transcript)
        else:
            processor.encode_text(instruction, transcript)
        if target:
            encode_target(tokenizer, target)

    return check


def build_lsm(
    encoder: str | Path,
    llm: str | Path,
    *,
    projector: LsmProjectorConfig | None = None,
    encoder_context: str = "full",
    decoder_states: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    template: str | None = None,
    date: str | None = None,
) -> Checkpoint:
    """Puts a pretrained Whisper and a pretrained LLM together with a new, seeded connector.

    Only the connector's weights are drawn; those of the others are in memory once.

    Args:
        encoder: folder or hub name of a Whisper model of any size.
        llm: folder or hub name of a decoder-only causal LM.
        projector: the connector's configuration.
        encoder_context: what the encoder sees of a piece of speech, `full` or `trimmed`: see [`LsmConfig`].
        decoder_states: states taken from Whisper's decoder (LLaSM: 64); None takes its encoder's.
        seed: seeds the connector's weights, and nothing else decides them.
        dtype: of all weights.
        template: prompt template; the tokenizer's own chat template where it has one, else `vicuna`.
        date: as in [`load`].

    Raises:
        InputError: if either part cannot be loaded, the parts cannot be put together as asked, or the date is invalid.
    """
    tokenizer = _with_date(pretrained(AutoTokenizer, llm), date)
    language_model = _causal_llm(str(llm), llm, dtype)
    whisper = _whisper(encoder, dtype, part=r"encoder\." if decoder_states is None else "")
    config = LsmConfig(
        audio_config=whisper.config,
        projector_config=projector or LsmProjectorConfig(),
        text_config=language_model.config,
        decoder_states=decoder_states,
        encoder_context=encoder_context,
    )
    config.dtype = dtype
    with torch.device("meta"):  # a skeleton: no memory, nothing drawn
        model = LsmForConditionalGeneration(config)
    tower = whisper.encoder if decoder_states is None else whisper
    model.audio_tower.load_state_dict(tower.state_dict(), assign=True)
    model.language_model = language_model
    model.draw_connector(seed)
    model.multi_modal_projector.to(dtype)
    model.generation_config = language_model.generation_config
    processor = LsmProcessor.for_model(config, pretrained(WhisperFeatureExtractor, encoder), tokenizer, template)
    identity = {
        "model_type": config.model_type,
        "encoder": identify(encoder, whisper.config) | {"context": encoder_context, "decoder_states": decoder_states},
        "llm": identify(llm, language_model.config),
        "connector": {**processor.projector, "seed": seed, "trained": False},
        **describe_prompt(tokenizer, processor.template, processor, str(llm), date),
    }
    return Checkpoint("untrained", model.eval(), tokenizer, processor.template, processor, identity, "speech")


def resolve_device(device: str) -> torch.device:
    if device in ("auto", SPREAD):
        return local_device()
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {device} cannot be used here ({reason}): try --device auto") from error
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype of a name as [`load`] takes it.

    Args:
        dtype: `float32`, `bfloat16`, `float16` or `auto`.
        device: where the model runs.

    Raises:
        InputError: the name is unknown.

    Warns:
        UserWarning: the dtype is emulated on the device.
    """
    if dtype == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if computes_natively(torch.bfloat16, device) else torch.float16
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise InputError(f"--dtype {dtype!r} is unknown; choose one of: auto, {', '.join(known)}")
    warn_if_emulated(known[dtype], device, f"--dtype {dtype}")
    return known[dtype]


def _check_builtin(name: str) -> None:
    if name.startswith("builtin:") and name not in BUILTIN:
        raise InputError(f"--ckpt {name} is unknown; built-in checkpoints are: {', '.join(BUILTIN)}")


def _check_template(template: str | None) -> None:
    if template is not None and template not in TEMPLATES:
        raise InputError(f"--template {template!r} is unknown; choose one of: {', '.join(TEMPLATES)}")


def _build_trained(name: str, dtype: torch.dtype, template: str | None, date: str | None) -> Checkpoint:
    training = read_training(name.removeprefix("builtin:"))
    checkpoint = build_lsm(
        assets.speech_encoder(),
        assets.language_model(),
        projector=training.projector,
        encoder_context=training.encoder_context,
        dtype=dtype,
        template=template,
        date=date,
    )
    assert isinstance(checkpoint.model, LsmForConditionalGeneration)
    assert isinstance(checkpoint.processor, LsmProcessor)
    training.apply(checkpoint.model)
    checkpoint.name = name
    # Not what was drawn, but what came of it.
    checkpoint.identity["connector"] = checkpoint.processor.projector | {"trained": True}
    checkpoint.identity["training"] = training.arm | {"sha256": _sha256(arm_file(name.removeprefix("builtin:")))}
    return checkpoint


def _load_pretrained(name: str, folder: str, dtype: torch.dtype, template: str | None, date: str | None) -> Checkpoint:
    checksums = check_folder(folder)
    config = pretrained(AutoConfig, folder)
    if isinstance(config, LsmConfig):
        processor = _with_date(pretrained(AutoProcessor, folder), date)
        processor.template = template or processor.template
        check_feature_extractor(processor.feature_extractor, config)
        model = pretrained_model(LsmForConditionalGeneration, folder, dtype)
        checkpoint = Checkpoint(name, model, processor.tokenizer, processor.template, processor, source="speech")
    elif (audio_class := audio_llm_class(config)) is not None:
        checkpoint = _load_audio_llm(name, folder, config, audio_class, dtype, template, date)
    else:
        model = _causal_llm(f"--ckpt {name}", folder, dtype)
        tokenizer = _with_date(pretrained(AutoTokenizer, folder), date)
        checkpoint = Checkpoint(name, model, tokenizer, template or default_template(tokenizer))
    prompt = describe_prompt(checkpoint.tokenizer, checkpoint.template, checkpoint.processor, name, date)
    checkpoint.identity = identify(folder, config, checksums) | prompt
    return checkpoint


def _load_audio_llm(
    name: str,
    folder: str,
    config: PreTrainedConfig,
    audio_class: type[PreTrainedModel],
    dtype: torch.dtype,
    template: str | None,
    date: str | None,
) -> Checkpoint:
    # First the processor: what is wrong with it should not wait for the weights.
    processor = _audio_llm_processor(name, folder, config, template, date)
    model = pretrained_model(audio_class, folder, dtype)
    check_reads_embeddings(model.eval(), name)
    return Checkpoint(name, model, processor.tokenizer, processor.template, processor, source="speech")


def _audio_llm_processor(
    name: str, folder: str, config: PreTrainedConfig, template: str | None, date: str | None
) -> AudioLlmProcessor:
    audio_token_id = find_audio_token_id(config)
    assert audio_token_id is not None  # or its class would not have been found
    loaded = _with_date(pretrained(AutoProcessor, folder), date)
    if getattr(loaded, "tokenizer", None) is None:
        raise InputError(
            f"{name} has no processor, only a {type(loaded).__name__}: take its processor_config.json or "
            "preprocessor_config.json, and its tokenizer, from a good copy"
        )
    return audio_llm_processor(loaded, audio_token_id, template)


def _with_date(part: Any, date: str | None) -> Any:
    """A tokenizer, or a processor with its tokenizer, whose chat templates write a fixed date."""
    day = None if date is None else read_date(date)
    for held in (part, getattr(part, "tokenizer", None)):
        pin_date(held, day)
    return part


def describe_prompt(
    tokenizer: Any,
    template: str,
    processor: LsmProcessor | AudioLlmProcessor | None,
    name: str,
    date: str | None,
) -> dict[str, str]:
    """What tells the prompts of one checkpoint from those of another.

    Args:
        tokenizer: of the checkpoint.
        template: name of the prompt template.
        processor: of a model that hears; None for a text LLM.
        name: of the checkpoint, for the warning.
        date: the date that was asked for, if any.

    Returns:
        `prompt_sha256`, the hash of an example prompt, and `date` if the template prints one. Empty if the template
        renders no prompt: whoever asks for a prompt is told why.

    Warns:
        UserWarning: a date was asked for that the template does not print.
    """
    try:
        if isinstance(processor, AudioLlmProcessor):
            example = processor.example()
        else:
            example = TEMPLATES[template](tokenizer, "{instruction}", AUDIO_TOKEN if processor else "{source}")
    except (InputError, LookupError):
        return {}
    parts = [getattr(processor, "processor", None), tokenizer] if template.startswith("chat") else []
    written = pinned_date(*parts)
    if date is not None and written is None:
        warnings.warn(f"--date {date} changes nothing: the prompt template of {name} writes no date", stacklevel=3)
    return {"prompt_sha256": prompt_sha256(example), **({} if written is None else {"date": written})}


def _causal_llm(label: str, name: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    config = pretrained(AutoConfig, name)
    refusal = (
        f"{label} is a {config.model_type!r} model, which is neither an LSM of ours, an audio LLM with a placeholder "
        "for its speech, nor a causal text LLM"
    )
    if not _is_causal(config):
        raise InputError(refusal)
    model = pretrained_model(AutoModelForCausalLM, name, dtype)
    # transformers lists BERT and its kin as causal LMs too; no field of their configurations tells them reliably.
    with torch.no_grad():
        first = model(input_ids=torch.tensor([[1, 1], [1, 2]]), use_cache=False).logits[:, 0].float()
    if (first[0] - first[1]).abs().max() > 0.01 * first.abs().max():
        raise InputError(f"{refusal}: its tokens see what follows them")
    check_reads_embeddings(model.eval(), label)
    return model


def _is_causal(config: PreTrainedConfig) -> bool:
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not getattr(config, "is_encoder_decoder", False)


def _whisper(name: str | Path, dtype: torch.dtype, part: str) -> Any:
    config = pretrained(AutoConfig, name)
    if config.model_type != "whisper":
        raise InputError(f"{name} is a {config.model_type!r} model: give a Whisper model of any size")
    return pretrained_model(WhisperModel, name, dtype, part=part)


def pretrained_model(
    auto_class: Any,
    name: str | Path,
    dtype: torch.dtype,
    *,
    part: str | None = None,
    left_out: Callable[[str], bool] = lambda tensor: False,
    **kwargs: Any,
) -> PreTrainedModel:
    """A model whose weights are those of its files: all of them are there, and all that are there are used.

    Args:
        auto_class: a class of transformers, or one of its auto classes.
        name: folder or hub name.
        dtype: of all weights.
        part: regular expression of the tensors that are wanted, by their names in the model; heads of other tasks are
            then left out too. None: the whole model.
        left_out: says of a tensor's name in the files that it is left out on purpose.
        kwargs: settings of the configuration that differ from the file's.

    Raises:
        InputError: tensors are missing, unused or of another shape, the folder holds an adapter too, or a file is
            damaged.
    """
    _check_indices(Path(name))
    config = pretrained(getattr(auto_class, "config_class", None) or AutoConfig, name, **kwargs)
    asked = _attention_of(config)
    config._attn_implementation = None  # of its parts too: each then runs transformers' default
    # Ours to refuse, with names: transformers' own refusal only points to its log.
    options = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, loaded = pretrained(auto_class, name, config=config, **options)
    if getattr(model, "_hf_peft_config_loaded", False):  # from the hub: a folder's was refused before
        raise _adapter_error(name, "whole weights")
    check_tensors(model, loaded, name, part=part, left_out=left_out)
    _warn_other_attention(name, asked, model)
    return cast(PreTrainedModel, model)


def _attention_of(config: PreTrainedConfig, part: str = "") -> dict[str, str | None]:
    """Which attention implementation a configuration and those inside it name, by the part of `config.json`."""
    found = {part: config._attn_implementation}
    for key in config.sub_configs:
        if (inner := getattr(config, key, None)) is not None:
            found |= _attention_of(inner, f"{part}.{key}".lstrip("."))
    return found


def _warn_other_attention(name: str | Path, asked: dict[str, str | None], model: PreTrainedModel) -> None:
    """Says where a model does not run the attention that its `config.json` asks for: the probes need sdpa, or eager
    where its class has no other."""
    runs = _attention_of(model.config)
    for part, wanted in asked.items():
        if wanted is not None and runs.get(part) not in (None, wanted):
            where = f"config.json ({part})" if part else "config.json"
            warnings.warn(
                f"{name}: {where} asks for attn_implementation {wanted}; the model runs {runs[part]}, which the probes "
                "need",
                stacklevel=3,
            )
            return


def _adapter_error(name: str | Path, weights: str) -> InputError:
    """Why an adapter beside whole weights is refused: transformers would apply it to them by itself, a second time
    where it is merged into them."""
    return InputError(
        f"{name} holds {weights} and an adapter (adapter_config.json), which would be applied on top of it: if the "
        "adapter is merged already, move its files (adapter_config.json, adapter_model.*) to another folder; if not, "
        "merge it and give the merged model's folder"
    )


def pretrained(auto_class: Any, name: str | Path, **kwargs: Any) -> Any:
    """`auto_class.from_pretrained`, never running code from the checkpoint, with one line for what can go wrong."""
    require_folder(name)
    path = Path(name)
    if (path / "adapter_config.json").is_file():
        whole = [*path.glob("model*.safetensors"), *path.glob("pytorch_model*.bin")]
        if whole:
            raise _adapter_error(name, min(whole).name)
        raise InputError(f"{name} holds only an adapter: merge it into its model and give the merged model's folder")
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"{name} is no checkpoint: the folder has no config.json")
    try:
        return auto_class.from_pretrained(str(name), trust_remote_code=False, **kwargs)
    except UnpicklingError as error:
        raise InputError(f"{name} cannot be loaded: a weights file is damaged, or holds more than tensors") from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        # A bare KeyError says only the key.
        reason = " ".join((repr(error) if isinstance(error, KeyError) else str(error)).split())[:300]
        before = before_the_hub(name) if isinstance(error, OSError) else ""
        raise InputError(f"{name} cannot be loaded: {before}{reason}") from error


def _check_indices(folder: Path) -> None:
    """Refuses weights that an index places outside of the folder: transformers would read them."""
    for path in sorted(folder.glob("*.index.json")):
        try:
            files = {str(file) for file in json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is no index of weights: take it from a good copy of the checkpoint") from error
        for file in sorted(files):
            if leads_outside(file):
                raise InputError(f"{path} names {file!r}, which lies outside of the folder: use no such checkpoint")


def check_folder(folder: str | Path) -> str | None:
    """Verifies a local folder before anything of it is read.

    Returns:
        `verified`, or `unverified` for a folder without checksums; None where something else vouches for the files: a
        hub name's revision, a built-in checkpoint's pin.

    Raises:
        InputError: the checksums do not hold, or there is no such folder and the name is none of the hub's.
    """
    require_folder(folder)
    path = Path(folder)
    if not path.is_dir():
        return None
    if verify(path):
        return "verified"
    return None if (path / SEAL).is_file() else "unverified"


def identify(folder: str | Path, config: PreTrainedConfig, checksums: str | None = None) -> dict[str, Any]:
    """What tells one checkpoint from another: kind, hub revision where it has one, sha256 of its weights.

    `checksums` is what [`check_folder`] said of the folder.
    """
    identity: dict[str, Any] = {}
    if config is not None:
        identity["model_type"] = config.model_type
        revision = getattr(config, "_commit_hash", None)
        if revision:
            identity["revision"] = revision
    if checksums is not None:
        identity["checksums"] = checksums
    # The first kind that is there is what transformers loads.
    weights = sorted(Path(folder).glob("*.safetensors")) or sorted(Path(folder).glob("pytorch_model*.bin"))
    if weights:
        known = read_checksums(Path(folder)) if checksums == "verified" else {}  # read once, not twice
        identity["weights_sha256"] = {
            path.name: known[path.name]["sha256"] if path.name in known else _sha256(path) for path in weights
        }
    return identity


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
