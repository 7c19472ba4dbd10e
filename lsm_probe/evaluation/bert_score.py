"""BERTScore: similarity of a response and its reference by a BERT model (Zhang et al. 2020, arXiv 1904.09675).

The arithmetic is that of the library bert-score, but models are loaded here. The library's own loader treats any path
with "t5" in it as a T5, ends in a traceback if a model is not available, and under transformers 5 tokenises the first
word of a text differently than for the published scores.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer

from lsm_probe.assets.notice import quiet_log
from lsm_probe.errors import InputError
from lsm_probe.evaluation.metrics import Floats, Metric, same_length
from lsm_probe.extras import install_command
from lsm_probe.memory import fitting, run_in_halves
from lsm_probe.models.devices import resolve_device
from lsm_probe.models.identification import check_folder, identify
from lsm_probe.models.pretrained import pretrained, pretrained_model

NAME = "bert_score"
_MOST_TOKENS = 4096
"""Maximum number of tokens for models without a limit, because attention memory grows with the square of the length."""

_HEAD = re.compile(r"(cls|\w*lm_head|classifier|score|qa_outputs|(lm|mask)_predictions\w*|vocab_\w+|\w*generator\w*)\.")
"""Task heads on top of a BERT model; not every `config.json` names a class that has them."""


@dataclass(frozen=True, eq=False)  # a model is its own key
class BertScorer:
    """A loaded model for comparing texts.

    Attributes:
        model: its first `layer` layers, in float32.
        tokenizer: adds two special tokens around a text, and cuts texts that are too long for the model.
        identity: model, hashes of its weights, layer and conventions; the details of each score hold them.
    """

    model: Any
    tokenizer: Any
    identity: dict[str, Any]

    def length(self, text: str) -> int:
        """Number of tokens of a text, before cutting, without the two special tokens."""
        # The library also strips texts.
        return len(self.tokenizer(text.strip(), add_special_tokens=False, verbose=False)["input_ids"])

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
        """Precision, recall and F1 of pairs of a reference and a response, both of them not empty.

        Texts are encoded in batches, but each pair is matched separately: in a batch of pairs, the library treats
        padding as tokens orthogonal to all others.
        """
        from bert_score.utils import get_bert_embedding, greedy_cos_idf

        texts = [text for pair in pairs for text in pair]
        # Token weights: a special token may be matched by another token, but does not count in the mean.
        weight = defaultdict(lambda: 1.0, {self.tokenizer.cls_token_id: 0.0, self.tokenizer.sep_token_id: 0.0})
        embedded, mask, weights = get_bert_embedding(
            texts, self.model, self.tokenizer, weight, device=self.model.device
        )

        lengths = mask.sum(1).tolist()

        def own(i: int) -> tuple[Tensor, Tensor, Tensor]:
            tokens = int(lengths[i])
            return embedded[i : i + 1, :tokens], mask[i : i + 1, :tokens], weights[i : i + 1, :tokens]

        scores = [torch.cat(greedy_cos_idf(*own(i), *own(i + 1))) for i in range(0, len(texts), 2)]
        found: list[list[float]] = torch.stack(scores).tolist()
        return found


def bert_score(
    references: Sequence[str], responses: Sequence[str], scorer: BertScorer, *, batch_size: int = 64
) -> Metric:
    """BERTScore's F1: the mean over samples; without idf weights, not rescaled.

    Each token of the response is matched with the reference token of the nearest embedding by cosine. The mean cosine
    is the precision; the reverse direction gives the recall. An empty response or reference scores 0. Texts are cut to
    the model's maximum length; details report how many samples this affects. The model runs in float32 and the mean in
    float64. Neither order nor batch size matters.

    Args:
        scorer: what [`load_bert_scorer`] returns.
        batch_size: samples compared together; halved if memory runs out.

    Raises:
        InputError: there are no samples, the numbers of responses and references differ, or scores are not finite.
    """
    same_length(references=references, responses=responses)
    pairs = list(zip(references, responses, strict=True))
    lengths = np.array([[scorer.length(text) for text in pair] for pair in pairs])
    # Texts of similar length together, for little padding.
    rows = [row for row in lengths.max(1).argsort(kind="stable").tolist() if lengths[row].all()]
    scores: Floats = np.zeros((len(pairs), 3))
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        scores[batch] = run_in_halves(scorer.compare, [pairs[row] for row in batch])
    if not np.isfinite(scores).all():
        raise InputError(f"{scorer.identity['model']} gives BERTScores that are not finite: its weights hold NaN")
    precision, recall, _ = 100 * scores.mean(0)
    details = {
        **scorer.identity,
        "precision": float(precision),
        "recall": float(recall),
        "empty_references": int((lengths[:, 0] == 0).sum()),
        "empty_responses": int((lengths[:, 1] == 0).sum()),
        "cut": int((lengths.max(1) + 2 > scorer.tokenizer.model_max_length).sum()),
    }
    counts = np.stack([scores[:, 2], np.ones(len(pairs))], axis=1)
    return Metric(NAME, counts, lambda sums: 100 * sums[..., 0] / sums[..., 1], len(pairs), details)


def load_bert_scorer(model: str, layer: int | None = None, *, device: str = "auto") -> BertScorer:
    """Loads a model for comparing texts.

    Args:
        model: folder or hub name of a bidirectional text model. The library uses `roberta-large` for English,
            `bert-base-chinese` for Chinese, and `bert-base-multilingual-cased` for all other languages.
        layer: number of the layer whose output is compared, from 1; 0 is the embeddings. By default the layer that the
            library's authors found closest to human judgement, known for about 130 hub names. Other models have no
            default: the last layer is rarely the best, and scores of different layers are not comparable.
        device: as in [`lsm_probe.load`].

    Raises:
        InputError: bert-score is not installed; the model or layer does not exist; or the model is not a BERT.
    """
    try:
        from bert_score.utils import get_hash, model2layers
    except ImportError as error:
        raise InputError(
            f"BERTScore needs bert-score, which cannot be imported ({error}): {install_command('evaluation')}"
        ) from error
    torch_device = resolve_device(device)
    checksums = check_folder(model)
    config = pretrained(AutoConfig, model)
    layers = getattr(config, "num_hidden_layers", 0)
    layer = model2layers.get(model) if layer is None else layer
    if layer is None:
        raise InputError(f"bert-score recommends no layer of {model}: give one of its {layers} layers")
    if not 0 <= layer <= layers:
        raise InputError(f"{model} has {layers} layers, and no layer {layer}: give one of them")
    # transformers 5 ignores this setting where the library gives it.
    options = {"add_prefix_space": True} if config.model_type == "roberta" else {}
    tokenizer = pretrained(AutoTokenizer, model, **options)
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    # The library gives these two tokens no weight, and treats a text of two tokens as empty.
    if None in (*special, tokenizer.pad_token_id) or sorted(tokenizer("")["input_ids"]) != sorted(special):
        raise InputError(
            f"{model} cannot be used for BERTScore: its tokenizer does not put [CLS] and [SEP] around a text"
        )
    with quiet_log():  # messages about the layers and heads that are left out
        bert: Any = pretrained_model(
            AutoModel,
            model,
            torch.float32,
            part="(?!pooler)",
            left_out=partial(_is_unneeded, layer),
            num_hidden_layers=layer,
        )
    bert = bert.get_encoder() if config.is_encoder_decoder else bert
    tokenizer.model_max_length = min(tokenizer.model_max_length, _most_tokens(bert))
    identity = {
        "model": model,
        **identify(model, config, checksums).to_dict(),
        "layer": layer,
        "idf": False,
        "rescale": False,
        "library": get_hash(model, layer, False, False, False, False),
    }
    with fitting(model, torch_device, "a smaller model, or the CPU"):
        return BertScorer(bert.to(torch_device).eval(), tokenizer, identity)


def _is_unneeded(layer: int, tensor: str) -> bool:
    """Whether a tensor belongs to a head, or to a layer above the one whose states are compared."""
    number = re.search(r"\.(\d+)\.", tensor)
    return _HEAD.match(tensor) is not None or (number is not None and int(number[1]) >= layer)


def _most_tokens(bert: Any) -> int:
    """Maximum text length that a model has positions for."""
    positions = getattr(bert.config, "max_position_embeddings", None) or -1
    if positions < 0:  # relative positions
        return _MOST_TOKENS
    # In RoBERTa and similar models, positions start after the padding token's index.
    table = getattr(getattr(bert, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return int(positions if padding is None else positions - padding - 1)
