"""The Q-Former that SALMONN and the Self-Powered LSM share: what their releases call its tensors, and its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lsm_probe.errors import InputError
from lsm_probe.models.published.release import Rule, tensor_shape

QUERY = "speech_query_tokens"
HEADS = 12
"""Of BERT base, on which the Q-Former is modelled. No file of a release says it."""

_LAYER = r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\."
_NEW_LAYER = r"multi_modal_projector.qformer.encoder.layer.\1."
QFORMER_RULES: list[Rule] = [
    (QUERY, "multi_modal_projector.query"),
    (r"ln_speech\.(.*)", r"multi_modal_projector.layer_norm.\1"),
    (r"speech_llama_proj\.(.*)", r"multi_modal_projector.linear.\1"),
    (r"speech_Qformer\.bert\.embeddings\.LayerNorm\.(.*)", r"multi_modal_projector.qformer.layernorm.\1"),
    (_LAYER + r"(attention|crossattention)\.self\.(.*)", _NEW_LAYER + r"\2.attention.\3"),
    (_LAYER + r"((?:attention|crossattention)\.output|intermediate_query|output_query)\.(.*)", _NEW_LAYER + r"\2.\3"),
    # BERT's part for text, which the speech does not pass.
    (r"speech_Qformer\.bert\.embeddings\.(position_ids|(word|position)_embeddings\.weight)", None),
    (_LAYER + r"(intermediate|output)\..*", None),
    (r"speech_Qformer\.cls\..*", None),
]


def qformer_sizes(tensors: Mapping[str, Tensor], where: str | Path) -> dict[str, Any]:
    """The sizes of the Q-Former, as settings of an `LsmProjectorConfig`; all but the heads follow from the shapes.

    Args:
        tensors: of the release, by their names there.
        where: the release, for messages.

    Raises:
        InputError: a tensor that tells a size is not there, or has another number of dimensions.
    """
    layer = "speech_Qformer.bert.encoder.layer."
    _, num_queries, hidden_size = tensor_shape(tensors, QUERY, 3, where)
    if hidden_size % HEADS:
        raise InputError(f"{where}: {QUERY} is {hidden_size} wide, which {HEADS} attention heads do not divide")
    return {
        "num_queries": num_queries,
        "hidden_size": hidden_size,
        "num_hidden_layers": len(
            {name.removeprefix(layer).split(".")[0] for name in tensors if name.startswith(layer)}
        ),
        "num_attention_heads": HEADS,
        "intermediate_size": tensor_shape(tensors, f"{layer}0.intermediate_query.dense.weight", 2, where)[0],
    }
