"""DiVA (WillHeld/DiVA-llama-3-v0-8b, arXiv 2410.02678): learned queries, Whisper's decoder, a linear layer, an LLM.

A release holds a Whisper decoder with its own trained weights, the 448 vectors that this decoder reads, and a linear
layer. It does not contain Whisper's encoder and the LLM; its `config.json` names them. Speech longer than 30 s becomes
several pieces of 448 speech tokens; the original code cuts it off at 30 s.

The results were not compared with the original code, because we have no output of it. The tensor names follow the
release's code. Speech tokens and logits were compared with a rewrite of its forward pass that uses transformers'
Whisper. The prompt is the LLM's own chat template with the instruction as the system turn. The release's code writes
the turns by hand, with other line breaks and a second BOS, and its versions differ in this; its prompts are not
reproduced token by token. It runs the LLM in float16.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lsm_probe.errors import InputError
from lsm_probe.models.configuration_lsm import LsmConfig
from lsm_probe.models.connectors import LsmProjectorConfig
from lsm_probe.models.llm_tokenizers import read_tokenizer
from lsm_probe.models.published.parts import check_width, llm_part, whisper_part
from lsm_probe.models.published.release import Release, Rule, rename
from lsm_probe.models.published.system import SYSTEMS, Parts, Reading, System, eos_token_ids

_RULES: list[Rule] = [
    (r"query_tokens", "audio_tower.query"),
    (r"connector\.(.*)", r"audio_tower.decoder.\1"),
    (r"projection\.(.*)", r"multi_modal_projector.linear.\1"),
]
_NAMED_BY = {"encoder": "reference_encoder", "llm": "reference_decoder"}


def _recognises(release: Release) -> bool:
    return release.config.keys() >= set(_NAMED_BY.values())


def _read(release: Release, parts: Parts) -> Reading:
    named = {part: release.config[name] for part, name in _NAMED_BY.items()}
    places = {part: parts.need(part, release, str(name), name) for part, name in named.items()}
    (whisper, feature_extractor), llm = whisper_part(places["encoder"]), llm_part(places["llm"])
    query, projection = (_matrix(release, name) for name in ("query_tokens", "projection.weight"))
    check_width("encoder", places["encoder"], whisper.config.d_model, query.shape[1])
    check_width("llm", places["llm"], llm.config.get_text_config().hidden_size, projection.shape[1])
    config = LsmConfig(
        audio_config=whisper.config,
        projector_config=LsmProjectorConfig(connector="linear"),
        text_config=llm.config,
        decoder_states=len(query),
        decoder_input="learned",
    )

    def tensors(dtype: torch.dtype) -> Mapping[str, Tensor]:
        own = rename(release.tensors, _RULES, release.folder)
        # The release stores it as [in, out].
        own["multi_modal_projector.linear.weight"] = projection.T.contiguous()
        encoder = {n.replace("audio_tower", "audio_tower.encoder", 1): t for n, t in whisper.tensors(dtype).items()}
        return {**encoder, **llm.tensors(dtype), **own}

    tokenizer = read_tokenizer(places["llm"])
    return Reading(
        config=config,
        tensors=tensors,
        tokenizer=tokenizer,
        feature_extractor=feature_extractor,
        template="diva",
        eos_token_ids=eos_token_ids(release, tokenizer, llm.config),
        parts={"encoder": whisper.identity, "llm": llm.identity},
    )


def _matrix(release: Release, name: str) -> Tensor:
    found = release.tensors.get(name)
    if found is None or found.dim() != 2:
        raise InputError(f"{release.folder} lacks {name}, a matrix: get it again from the original checkpoint")
    return found


SYSTEMS.register("diva")(System("DiVA", _recognises, _read, ("encoder", "llm")))
