"""From instruction and source to token ids, each with its segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        features: what the model hears, by the names of its inputs; empty for text. Of an LSM: `input_features`, log-mel
            features of 30 s pieces, `[pieces, mel_bins, 3000]`, and `input_features_mask`, `[pieces, 3000]`, 1 where a
            mel frame is speech.
        speech: speech tokens that were made before, `[speech tokens, llm_dim]`, in place of the features.
    """

    input_ids: list[int]
    segments: list[Segment]
    features: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
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
    if audio_token_id is not None:
        refuse_placeholder("instruction", instruction, AUDIO_TOKEN)
    pieces = TEMPLATES[template](tokenizer, instruction, source)
    return encode_pieces(tokenizer, pieces, source_length=source_length, audio_token_id=audio_token_id)


def encode_pieces(
    tokenizer: PreTrainedTokenizerBase,
    pieces: Sequence[Piece],
    *,
    source_length: int | None = None,
    audio_token_id: int | None = None,
) -> Prompt:
    """Tokenises a rendered prompt; arguments and errors as in [`encode_prompt`]."""
    prompt = Prompt(*_tokenise(tokenizer, pieces))
    for segment in (Segment.INSTRUCTION, Segment.SOURCE):
        if segment not in prompt.segments:
            text = "".join(piece for own, piece in pieces if own is segment)
            raise NoTokens(f"the {segment.name.lower()} {text!r} has no tokens")
    return prompt if source_length is None else resize_source(prompt, source_length, audio_token_id)


def refuse_placeholder(name: str, text: str, placeholder: str) -> None:
    """Refuses a text that holds what stands for the speech.

    Raises:
        InputError: it does.
    """
    if placeholder in text:
        raise InputError(f"the {name} holds {placeholder}, which stands for the speech: take it out")


def _tokenise(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece]) -> tuple[list[int], list[Segment]]:
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} gives no character offsets, which segments need: use its fast version"
        )
    text = "".join(piece for _, piece in pieces)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["input_ids"]), token_segments(pieces, encoded["offset_mapping"])


def resize_source(prompt: Prompt, length: int, audio_token_id: int | None = None) -> Prompt:
    """Repeats the source's tokens (or the speech token's id) in a cycle up to `length` tokens."""
    ids, segments, positions = prompt.input_ids, prompt.segments, prompt.positions(Segment.SOURCE)
    first, past = positions[0], positions[-1] + 1
    spelled = ids[first:past] if audio_token_id is None else [audio_token_id]
    return Prompt(
        [*ids[:first], *islice(cycle(spelled), length), *ids[past:]],
        [*segments[:first], *[Segment.SOURCE] * length, *segments[past:]],
    )
