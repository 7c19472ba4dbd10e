"""Strategy `align`: trains only the connector, to match the transcript in the LLM's token embeddings.

A connector with random weights gives the LLM noise, and the LLM's loss teaches it slowly. This strategy first trains
the connector without the LLM, which makes a step much cheaper. With CTC (Graves et al. 2006), each speech token moves
towards the embedding of a transcript token, or towards the origin, which represents CTC's blank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint_kinds import Lsm
from lsm_probe.models.modeling_lsm import SPEECH_INPUTS
from lsm_probe.training.dataset import IGNORED, TrainingSet

CANDIDATES = 4000
"""Tokens that a speech token is compared with in a training step, besides those of the batch's transcripts."""

_SHARPNESS = 5.0
"""Logit of a token whose embedding has the mean norm, for a speech token at the same point; the blank's logit is 0."""

_NEVER = -1e4
"""Log-probability of a missing column; it contributes nothing, and unlike -inf gives no NaN in the gradient."""


def spelling(tokenizer: Any, text: str) -> list[int]:
    """The target tokens for CTC: those of the words in lower case, without punctuation."""
    words = re.sub(r"[^\w']+", " ", text.lower().replace("_", " ")).split()
    return tokenizer(" " + " ".join(words), add_special_tokens=False).input_ids if words else []


class AlignmentSet(TrainingSet):
    """Samples whose `response` is the CTC target: in lower case, without punctuation.

    Raises:
        InputError: for the reasons that [`TrainingSet`] gives, or a target needs more speech tokens than there are.
    """

    def _response(self, checkpoint: Lsm, sample: Sample, speech_tokens: int) -> list[int]:
        tokens = spelling(checkpoint.tokenizer, sample.target or "")
        needed = len(tokens) + sum(first == second for first, second in pairwise(tokens))  # a blank between equals
        if needed > speech_tokens:
            raise InputError(
                f"the target needs {needed} speech tokens, but the speech has only {speech_tokens}: use the transcript "
                "as target, or leave the sample out (--on-error skip)"
            )
        return tokens


class AlignmentLoss:
    """The negative log-probability of transcripts under CTC, from speech tokens and token embeddings.

    A speech token z gives the token with embedding e the logit -c |z - e|^2, and the blank -c |z|^2, with one constant
    c for the LLM. The vocabulary is that of the transcripts.

    Args:
        checkpoint: the LSM whose connector is trained.
        sets: the training and held-out samples, each an [`AlignmentSet`].
    """

    def __init__(self, checkpoint: Lsm, sets: Sequence[TrainingSet]):
        spelled = [torch.from_numpy(ids) for samples in sets for ids in samples.responses]
        self.vocabulary = torch.cat(spelled).long().unique()
        self.audio_token_id = checkpoint.model.config.audio_token_id

    def __call__(self, lsm: Any, inputs: dict[str, Any]) -> Tensor:
        """Nats and tokens of each transcript, `[batch, 2]`, in float32.

        In evaluation each speech token is compared with the whole vocabulary. In training it is compared with the
        tokens of the batch's transcripts and [`CANDIDATES`] others, drawn with PyTorch's generator.

        Args:
            lsm: the LSM.
            inputs: a batch of [`collate`].
        """
        is_speech = inputs["input_ids"] == self.audio_token_id
        given = {key: value for key, value in inputs.items() if key in SPEECH_INPUTS}
        speech = lsm.embed(inputs["input_ids"], **given)[is_speech]
        transcripts = [labels[labels != IGNORED] for labels in inputs["shift_labels"].cpu()]
        candidates = self._candidates(transcripts) if lsm.training else self.vocabulary
        log_probs = self._log_probs(lsm.get_input_embeddings().weight.detach(), speech, candidates)
        nats = _ctc(log_probs.split(is_speech.sum(1).tolist()), transcripts, candidates)
        return torch.stack([nats, nats.new_tensor([len(transcript) for transcript in transcripts])], dim=-1)

    def _candidates(self, transcripts: Sequence[Tensor]) -> Tensor:
        """Ids of the tokens that a step compares with, in ascending order."""
        if len(self.vocabulary) <= CANDIDATES:
            return self.vocabulary
        drawn = self.vocabulary[torch.randperm(len(self.vocabulary))[:CANDIDATES]]
        return torch.cat([*transcripts, drawn]).unique()

    def _log_probs(self, embeddings: Tensor, speech: Tensor, candidates: Tensor) -> Tensor:
        """`[speech tokens, 1 + candidates]`; the first column is the blank's."""
        with torch.autocast(speech.device.type, enabled=False):
            norm = embeddings[self.vocabulary.to(embeddings.device)].float().norm(dim=1).mean()
            compared = embeddings[candidates.to(embeddings.device)].float()
            logits = (2 * speech.float() @ compared.T - compared.pow(2).sum(1)) * (_SHARPNESS / norm**2)
            return torch.log_softmax(torch.nn.functional.pad(logits, (1, 0)), dim=-1)


def _ctc(log_probs: Sequence[Tensor], transcripts: Sequence[Tensor], candidates: Tensor) -> Tensor:
    """The nats of each transcript, `[batch]`.

    PyTorch's loss needs every column in every row. A transcript needs only the columns of the blank and its own tokens,
    so these are selected first: a few dozen columns instead of thousands.
    """
    picked, labels = [], []
    for row, transcript in zip(log_probs, transcripts, strict=True):
        own, label = transcript.unique(return_inverse=True)
        columns = torch.nn.functional.pad(torch.searchsorted(candidates, own) + 1, (1, 0))
        picked.append(row[:, columns.to(row.device)])
        labels.append(label + 1)
    width = max(row.shape[1] for row in picked)
    padded = pad_sequence([torch.nn.functional.pad(row, (0, width - row.shape[1]), value=_NEVER) for row in picked])
    spoken, spelled = (torch.tensor([len(part) for part in parts]) for parts in (picked, labels))
    return torch.nn.functional.ctc_loss(padded, torch.cat(labels).to(padded.device), spoken, spelled, reduction="none")
