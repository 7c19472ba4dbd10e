"""From instruction and source to token ids, each with its segment."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import cycle, islice

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lsm_probe.errors import InputError
from lsm_probe.models.segments import Piece, Segment, token_segments
from lsm_probe.models.templates import AUDIO_TOKEN, TEMPLATES


class NoTokens(InputError):
    """An instruction or a source that a tokenizer has no token for."""


@dataclass(frozen=True)
class Prompt:
    """One tokenised prompt, up to the position that predicts the first response token.

    Attributes:
        input_ids: token ids; a speech token is the model's `audio_token_id`.
        segments: what each token is, aligned with `input_ids`.
        input_features: log-mel features of the speech in 30 s pieces, `[pieces, mel_bins, 3000]`; None for text.
        input_features_mask: `[pieces, 3000]`, 1 where a mel frame is speech; None for text.
        speech: speech tokens that were made before, `[speech tokens, llm_dim]`, in place of the features.
    """

    input_ids: list[int]
    segments: list[Segment]
    input_features: Tensor | None = field(default=None, repr=False)
    input_features_mask: Tensor | None = field(default=None, repr=False)
    speech: Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.input_ids)

    def count(self, segment: Segment) -> int:
        return self.segments.count(segment)

    def positions(self, segment: Segment) -> list[int]:
        """Where the tokens of a segment stand."""
        return [i for i, own in enumerate(self.segments) if own is segment]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    instruction: str,
    source: str,
    *,
    source_length: int | None = None,
    audio_token_id: int | None = None,
) -> Prompt:
    """Renders and tokenises one prompt.

    Args:
        tokenizer: a fast tokenizer (segments come from its character offsets).
        template: a name in [`TEMPLATES`].
        instruction: what the model is told to do.
        source: the transcript, or [`AUDIO_TOKEN`] for speech.
        source_length: number of source tokens. For speech the number of speech tokens (required); for text the
            transcript's tokens are repeated in a cycle or cut to this length, for length-matched controls.
        audio_token_id: the id of a speech token; required for speech.

    Raises:
        InputError: if the template is unknown, instruction or source tokenise to nothing, or the instruction
            holds the audio placeholder.
    """
    if template not in TEMPLATES:
        raise InputError(f"template '{template}' is unknown; choose one of: {', '.join(TEMPLATES)}")
    instruction, source = instruction.strip(), source.strip()
    if audio_token_id is not None and AUDIO_TOKEN in instruction:
        raise InputError(f"the instruction holds {AUDIO_TOKEN}, which stands for the speech: take it out")
    ids, segments = _tokenise(tokenizer, TEMPLATES[template](tokenizer, instruction, source))
    for segment in (Segment.INSTRUCTION, Segment.SOURCE):
        if segment not in segments:
            name = segment.name.lower()
            raise NoTokens(f"the {name} {instruction if name == 'instruction' else source!r} has no tokens")
    if source_length is not None:
        spelled = None if audio_token_id is None else [audio_token_id]
        ids, segments = _resize_source(ids, segments, source_length, spelled)
    return Prompt(ids, segments)


def _tokenise(tokenizer: PreTrainedTokenizerBase, pieces: list[Piece]) -> tuple[list[int], list[Segment]]:
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} gives no character offsets, which segments need: use its fast version"
        )
    text = "".join(piece for _, piece in pieces)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["input_ids"]), token_segments(pieces, encoded["offset_mapping"])


def _resize_source(
    ids: list[int], segments: list[Segment], length: int, replacement: list[int] | None
) -> tuple[list[int], list[Segment]]:
    """Repeats the source's tokens (or `replacement`) in a cycle up to `length` tokens."""
    positions = Prompt(ids, segments).positions(Segment.SOURCE)
    first, past = positions[0], positions[-1] + 1
    tokens = list(islice(cycle(replacement or ids[first:past]), length))
    return (
        [*ids[:first], *tokens, *ids[past:]],
        [*segments[:first], *[Segment.SOURCE] * length, *segments[past:]],
    )
