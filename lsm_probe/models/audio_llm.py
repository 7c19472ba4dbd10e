"""Audio LLMs that ship in transformers: their classes, and the embeddings that they pass to their inner LLM."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel

from lsm_probe.errors import InputError
from lsm_probe.memory import is_out_of_memory
from lsm_probe.models.devices import input_device
from lsm_probe.models.kv_cache import CACHE
from lsm_probe.models.layers import find_speech_part

THINKERS = {
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeThinkerForConditionalGeneration",
}
"""Models that also generate speech: model type -> class of the part that reads speech and writes text."""
_ADDED = (
    "it adds its speech onto the positions of the text, so that neither has positions of its own and eta is undefined"
)
_REFUSED = {
    "voxtral_realtime": _ADDED,
    "kyutai_speech_to_text": _ADDED,
    "moshi": _ADDED,
    "vibevoice_asr": "it adds random noise to its speech tokens, so that its numbers cannot be reproduced",
}
"""Model types that cannot be measured -> the reason."""
_HARMLESS = ("attention_mask", "position_ids", CACHE, "inputs_embeds", "use_cache", "cache_position")
"""Tensor arguments that the inner LLM may receive; they are the same when it is called with embeddings only."""


def audio_llm_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class of an audio LLM with this configuration; None if transformers ships no such class, or if it has no
    placeholder for speech.

    Raises:
        InputError: it is of a type that cannot be measured.
    """
    names = [THINKERS[config.model_type]] if config.model_type in THINKERS else config.architectures or []
    found = getattr(transformers, names[0], None) if names else None
    return found if is_audio_llm_class(found, config) else None


def is_audio_llm_class(found: Any, config: PreTrainedConfig) -> bool:
    """Whether a class is that of an audio LLM of this configuration, with a placeholder for its speech.

    Raises:
        InputError: it is of a type that cannot be measured.
    """
    if config.model_type in _REFUSED:
        raise InputError(f"a {config.model_type!r} model cannot be measured: {_REFUSED[config.model_type]}")
    if not isinstance(found, type) or not issubclass(found, PreTrainedModel) or not issubclass(found, GenerationMixin):
        return False
    return "audio" in (found.input_modalities or ()) and find_audio_token_id(config) is not None


def find_audio_token_id(config: PreTrainedConfig) -> int | None:
    """The id of the placeholder that stands in `input_ids` for each speech token; None if there is none."""
    parts = (config, getattr(config, "thinker_config", None), getattr(config, "audio_config", None))
    found = (getattr(part, "audio_token_id", None) for part in parts)
    return next((token for token in found if token is not None), None)


@torch.no_grad()
def check_reads_embeddings(model: PreTrainedModel, name: str) -> None:
    """Checks that a model computes the same from a text's embeddings as from the text.

    Raises:
        InputError: it does not (for example models with extra embeddings for each layer).
    """
    llm: Any = model
    ids = torch.tensor([[1, 2, 3, 2]], device=input_device(model))
    embedded = llm.get_input_embeddings()(ids).clone()
    embedded[:, -1] /= 2  # no token has this embedding, like a speech token: some models look up the ids of embeddings
    from_ids = llm(input_ids=ids, use_cache=False).logits[:, :-1].float()
    try:
        from_embeddings = llm(inputs_embeds=embedded, use_cache=False).logits[:, :-1].float()
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name} is a {type(model).__name__}, which reads no embeddings ({reason})") from error
    if (from_ids - from_embeddings).abs().max() > 0.01 * from_ids.abs().max():
        raise InputError(
            f"{name} is a {type(model).__name__}, which uses its input ids for more than embeddings: it cannot "
            "be measured from embeddings"
        )


@torch.no_grad()
def merged_embeddings(model: PreTrainedModel, input_ids: Tensor, features: dict[str, Tensor]) -> Tensor:
    """The embedded text and speech, `[tokens, llm_dim]`, that an audio LLM passes to its inner LLM.

    Args:
        model: the audio LLM.
        input_ids: one prompt, `[1, tokens]`, with a placeholder for each speech token.
        features: the model's other inputs, as its processor names them; converted to the model's dtype here, since not
            every class does so itself.

    Raises:
        InputError: the inner LLM gets more than these embeddings at these positions.
    """
    whole: Any = model
    features = {name: x.to(model.dtype) if x.is_floating_point() else x for name, x in features.items()}

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(kwargs)

    def stop_after(module: nn.Module, args: tuple[Any, ...], embedded: Tensor) -> None:
        raise _Reached({"inputs_embeds": embedded})

    decoder = whole.get_decoder()
    if (merger := find_speech_part(decoder)) is not None:
        hook = merger.register_forward_hook(stop_after)
    else:
        hook = decoder.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        whole(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False, **features)
    except _Reached as reached:
        _check_handed_over(type(model).__name__, input_ids, reached.kwargs)
        return reached.kwargs["inputs_embeds"][0]
    finally:
        hook.remove()
        forget_positions(model)
    raise InputError(f"{type(model).__name__} does not run the LLM that its get_decoder() names")


def forget_positions(model: nn.Module) -> None:
    """Resets the positions that Qwen's omni models store from the pictures of their last prompt.

    The models would apply these positions to the next batch of embeddings.
    """
    for module in model.modules():
        if getattr(module, "rope_deltas", None) is not None:
            setattr(module, "rope_deltas", None)  # noqa: B010  # to mypy an attribute of a module is a tensor


class _Reached(Exception):
    """Raised when the inner LLM is called; carries its inputs."""

    def __init__(self, kwargs: dict[str, Any]):
        super().__init__()
        self.kwargs = kwargs


def _check_handed_over(name: str, input_ids: Tensor, kwargs: dict[str, Any]) -> None:
    embedded, positions = kwargs.get("inputs_embeds"), kwargs.get("position_ids")
    if embedded is None:
        raise InputError(
            f"{name} combines speech and text inside its LLM, and takes no embeddings: it cannot be measured"
        )
    if embedded.shape[:2] != input_ids.shape:
        raise InputError(
            f"{name} changes the number of positions: its processor must write one placeholder for each speech token"
        )
    if others := [key for key, value in kwargs.items() if isinstance(value, Tensor) and key not in _HARMLESS]:
        raise InputError(
            f"{name} gives its LLM {others[0]} in addition to embeddings: it cannot be measured from embeddings alone"
        )
    count = torch.arange(input_ids.shape[1], device=input_ids.device)
    # Several rows (time, height, width) locate pictures; for speech all of them simply increase.
    if positions is not None and not (positions == count).all():
        raise InputError(f"{name} does not number its positions consecutively, which is not supported")
