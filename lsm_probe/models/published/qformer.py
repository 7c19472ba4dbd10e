"""The Q-Former over windows as the Self-Powered LSM and SALMONN store it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lsm_probe.models.published.release import Rule, common_size

HEADS = 12
"""Of BERT base, after which the Q-Former is made; no file of a release says it."""
_LAYER = r"speech_Qformer\.bert\.(encoder\.layer\.\d+\."
_NEW = r"multi_modal_projector.qformer.\1"

QFORMER_RULES: list[Rule] = [
    ("speech_query_tokens", "multi_modal_projector.query"),
    (r"ln_speech\.(.*)", r"multi_modal_projector.layer_norm.\1"),
    (r"speech_llama_proj\.(.*)", r"multi_modal_projector.linear.\1"),
    (r"speech_Qformer\.bert\.embeddings\.LayerNorm\.(.*)", r"multi_modal_projector.qformer.layernorm.\1"),
    (_LAYER + r"(?:cross)?attention)\.self\.(.*)", _NEW + r".attention.\2"),
    (_LAYER + r"(?:(?:cross)?attention\.output|intermediate_query|output_query)\..*)", _NEW),
    # Parts of BERT for text, which no query passes through.
    (_LAYER + r"(?:intermediate|output)\..*)", None),
    (r"speech_Qformer\.bert\.embeddings\.(word_embeddings|position_embeddings|position_ids).*", None),
    (r"speech_Qformer\.cls\..*", None),
]
"""Names of its tensors."""


def qformer_sizes(tensors: Mapping[str, Tensor], where: str | Path) -> dict[str, int]:
    """The widths of a released Q-Former as settings of an `LsmProjectorConfig`, by the shapes of its tensors.

    Args:
        tensors: of the release, by their names there.
        where: the release, for messages.

    Raises:
        InputError: it has none of the tensors that tell a width.
    """
    layer = r"speech_Qformer\.bert\.encoder\.layer\.\d+\."
    width = {layer + r"(cross)?attention\.self\.(query|key|value)\.(weight|bias)": 0}
    inner = {layer + r"intermediate_query\.dense\.(weight|bias)": 0, layer + r"output_query\.dense\.weight": 1}
    return {
        "hidden_size": common_size(tensors, width, where),
        "intermediate_size": common_size(tensors, inner, where),
        "num_attention_heads": HEADS,
    }
