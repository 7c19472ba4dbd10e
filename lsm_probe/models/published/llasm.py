"""LLaSM (arXiv 2308.15930): states of Whisper's decoder, a linear layer, Llama 2."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import AddedToken, LlamaConfig

from lsm_probe.errors import InputError
from lsm_probe.models.configuration_lsm import LsmConfig
from lsm_probe.models.connectors import LsmProjectorConfig
from lsm_probe.models.published.parts import check_width, whisper_part
from lsm_probe.models.published.release import ROTARY, Release, Rule, common_size, rename
from lsm_probe.models.published.system import SYSTEMS, Parts, Reading, System, eos_token_ids

_RULES: list[Rule] = [
    ROTARY,
    (r"model\.mm_projector\.(.*)", r"multi_modal_projector.linear.\1"),
    (r"(lm_head\..*|model\.(?:embed_tokens|layers|norm)\..*)", r"language_model.\1"),
]
_DECODER_STATES = 64
"""Default number of decoder states, used where `config.json` does not give it."""
_TOKENS = ("<au_patch>", "<au_start>", "<au_end>")


def _recognises(release: Release) -> bool:
    return release.config.get("model_type") == "llaaa"


def _read(release: Release, parts: Parts) -> Reading:
    named = release.setting("mm_audio_tower")
    place = parts.need("encoder", release, f"the Whisper that its config.json calls {named}", default=named)
    encoder, extractor = whisper_part(place, whole=True)
    read = common_size(release.tensors, {r"model\.mm_projector\.weight": 1}, release.folder)
    check_width("encoder", place, encoder.config.d_model, read)
    text_config = release.llm_config(LlamaConfig)
    config = LsmConfig(
        audio_config=encoder.config,
        projector_config=LsmProjectorConfig(connector="linear"),
        text_config=text_config,
        decoder_states=release.config.get("audio_token_len") or _DECODER_STATES,
    )
    tokenizer = release.tokenizer()
    # As in the original code: the release's tokenizer may lack them, or not mark them as special.
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in _TOKENS], special_tokens=True)
    if (past := len(tokenizer)) > text_config.vocab_size:
        raise InputError(
            f"{release.folder} has {past} tokens with {', '.join(_TOKENS)}, and embeddings for "
            f"{text_config.vocab_size}: its tokenizer is that of another model"
        )

    def tensors(dtype: torch.dtype) -> Mapping[str, Tensor]:
        return {**rename(release.tensors, _RULES, release.folder), **encoder.tensors(dtype)}

    return Reading(
        config=config,
        tensors=tensors,
        tokenizer=tokenizer,
        feature_extractor=extractor,
        template="llasm",
        eos_token_ids=eos_token_ids(release, release.generation, text_config, tokenizer),
        parts={"encoder": encoder.identity},
    )


SYSTEMS.register("llasm")(System("LLaSM", _recognises, _read, ("encoder",)))
