"""The window-level Q-Former, as stored in releases of the Self-Powered LSM and SALMONN."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lsm_probe.models.published.release import Rule, common_size

HEADS = 12
"""Number of heads in BERT base, on which the Q-Former is based; releases do not state it."""
_LAYER = r"speech_Qformer\.bert\.(encoder\.layer\.\d+\."
_NEW = r"multi_modal_projector.qformer.\1"

QFORMER_RULES: list[Rule] = [
    ("speech_query_tokens", "multi_modal_projector.query"),
    (r"ln_speech\.(.*)", r"multi_modal_projector.layer_norm.\1"),
    (r"speech_llama_proj\.(.*)", r"multi_modal_projector.linear.\1"),
    (r"speech_Qformer\.bert\.embeddings\.LayerNorm\.(.*)", r"multi_modal_projector.qformer.layernorm.\1"),
    (_LAYER + r"(?:cross)?attention)\.self\.(.*)", _NEW + r".attention.\2"),
    (_LAYER + r"(?:(?:cross)?attention\.output|intermediate_query|output_query)\..*)", _NEW),
    # Parts of BERT for text, which do not process the queries.
    (_LAYER + r"(?:intermediate|output)\..*)", None),
    (r"speech_Qformer\.bert\.embeddings\.(word_embeddings|position_embeddings|position_ids).*", None),
    (r"speech_Qformer\.cls\..*", None),
]
"""Renaming rules for the tensors of the Q-Former."""


def qformer_sizes(tensors: Mapping[str, Tensor], where: str | Path) -> dict[str, int]:
    """Widths of a released Q-Former, from its tensor shapes, as settings of an `LsmProjectorConfig`.

    Args:
        tensors: tensors of the release, by their names there.
        where: the release, for messages.

    Raises:
        InputError: the tensors whose shapes give a width are missing.
    """
    layer = r"speech_Qformer\.bert\.encoder\.layer\.\d+\."
    width = {layer + r"(cross)?attention\.self\.(query|key|value)\.(weight|bias)": 0}
    inner = {layer + r"intermediate_query\.dense\.(weight|bias)": 0, layer + r"output_query\.dense\.weight": 1}
    return {
        "hidden_size": common_size(tensors, width, where),
        "intermediate_size": common_size(tensors, inner, where),
        "num_attention_heads": HEADS,
    }
