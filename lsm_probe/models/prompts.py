"""From instruction and source to token ids, each with its segment."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import cycle, groupby, islice
from typing import Any

from torch import Tensor
from transformers import AddedToken, PreTrainedTokenizerBase

from lsm_probe.errors import InputError
from lsm_probe.models.segments import Piece, Segment, SpecialToken, token_segments
from lsm_probe.models.templates import AUDIO_TOKEN, PromptTemplate, find_template


class RefusedText(InputError):
    """A text cannot be part of a prompt or response.

    Args:
        part: the kind of text: instruction, source, transcript or target.
        reason: the problem, as the continuation of a sentence that starts with the part.
    """

    def __init__(self, part: str, reason: str):
        super().__init__(f"the {part} {reason}")
        self.part, self.reason = part, reason

    def renamed(self, part: str) -> RefusedText:
        """The same error for a text that was checked as another part."""
        return type(self)(part, self.reason)


class NoTokens(RefusedText):
    """The tokenizer makes no token of the text, or the model none of the speech."""


@dataclass(frozen=True)
class Prompt:
    """One tokenised prompt, up to the position that predicts the first response token.

    Attributes:
        input_ids: token ids; a speech token is the model's `audio_token_id`.
        segments: the segment of each token, aligned with `input_ids`.
        features: the speech, by the names of the model's inputs; empty for text. For an LSM: `input_features`, log-mel
            features of 30 s pieces, `[pieces, mel_bins, 3000]`, and `input_features_mask`, `[pieces, 3000]`, 1 where a
            mel frame is speech; with BEATs also `beats_features` and `beats_frames`.
        speech: precomputed speech tokens, `[speech tokens, llm_dim]`, instead of the features.
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
        """Positions of the tokens of a segment."""
        return [i for i, own in enumerate(self.segments) if own is segment]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    template: str | PromptTemplate,
    instruction: str,
    source: str,
    *,
    source_length: int | None = None,
    audio_token_id: int | None = None,
) -> Prompt:
    """Renders and tokenises one prompt.

    Args:
        tokenizer: a fast tokenizer (segments come from its character offsets).
        template: a prompt template, its name, or its YAML file.
        instruction: what the model is told to do; empty for a template without one.
        source: the transcript, or [`AUDIO_TOKEN`] for speech.
        source_length: number of source tokens. For speech the number of speech tokens (required); for text the
            transcript's tokens are repeated in a cycle or cut to this length, for length-matched controls.
        audio_token_id: the id of a speech token; required for speech.

    Raises:
        InputError: if the template is unknown, instruction or source tokenise to nothing or hold a control token,
            the instruction holds the audio placeholder, or there is one and the template has no place for it.
    """
    template = find_template(template)
    instruction, source = instruction.strip(), source.strip()
    if instruction:
        require_instruction(template)
    if audio_token_id is not None:
        refuse_placeholder("instruction", instruction, AUDIO_TOKEN)
    pieces = template.render(tokenizer, instruction, source)
    placeholder = None if audio_token_id is None else AUDIO_TOKEN
    prompt = encode_pieces(tokenizer, pieces, placeholder=placeholder, split_at_source=template.split_at_source)
    return prompt if source_length is None else resize_source(prompt, source_length, audio_token_id)


def encode_pieces(
    tokenizer: PreTrainedTokenizerBase,
    pieces: Sequence[Piece],
    *,
    placeholder: str | None = None,
    split_at_source: bool = False,
) -> Prompt:
    """Tokenises a rendered prompt.

    Args:
        tokenizer: a fast tokenizer.
        pieces: the prompt's text, cut into segments; a [`SpecialToken`] in it is converted to its id.
        placeholder: text that stands for the speech; a source equal to it is not checked for control tokens.
        split_at_source: tokenise the text before the source, the source, and the text after it separately.

    Raises:
        InputError: instruction or source tokenise to nothing or hold a control token, or the tokenizer is a slow one.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} gives no character offsets, which are needed to find the segments: use "
            "its fast version"
        )
    prompt = Prompt([], [])
    for part in _split(pieces, split_at_source):
        ids, segments = _encode_part(tokenizer, part)
        prompt = Prompt([*prompt.input_ids, *ids], [*prompt.segments, *segments])
    for segment in (Segment.INSTRUCTION, Segment.SOURCE):
        texts = [piece for own, piece in pieces if own is segment]
        if segment is Segment.INSTRUCTION and not texts:
            continue  # a template without an instruction
        text = "".join(texts)
        if segment not in prompt.segments:
            raise NoTokens(segment.name.lower(), f"{text!r} has no tokens")
        if text != placeholder:
            _refuse_control_tokens(tokenizer, prompt, segment, text)
    return prompt


def require_instruction(template: PromptTemplate) -> None:
    """Raises InputError for a template without an instruction, because measurements need one."""
    if not template.has_instruction:
        raise InputError(
            f"template {template.name!r} has no instruction, and the instructions of samples would be left out: "
            "choose another --template for measurements; this one can only be used for prompt_ids and logits"
        )


def _split(pieces: Sequence[Piece], split_at_source: bool) -> list[list[Piece]]:
    """The pieces that are tokenised together; special tokens are separate."""

    def kind(piece: Piece) -> tuple[bool, bool]:
        segment, text = piece
        return isinstance(text, SpecialToken), split_at_source and segment is Segment.SOURCE

    return [list(part) for _, part in groupby(pieces, key=kind)]


def _encode_part(tokenizer: PreTrainedTokenizerBase, part: Sequence[Piece]) -> tuple[list[int], list[Segment]]:
    if isinstance(part[0][1], SpecialToken):
        ids: Any = tokenizer.convert_tokens_to_ids([str(token) for _, token in part])
        return ids, [segment for segment, _ in part]
    text = "".join(piece for _, piece in part)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], token_segments(part, encoded["offset_mapping"])


def encode_target(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a reference response, without an end-of-response token.

    Raises:
        InputError: the text contains a special token, such as EOS.
    """
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    added = _added_tokens(tokenizer, len(tokenizer))
    _refuse_written(added, "target", text, {token for token in ids if token in added and added[token].special})
    return ids


def _refuse_control_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, segment: Segment, text: str) -> None:
    """Refuses text that the tokenizer reads as markup: it would open a new turn, or end the current one."""
    added = _added_tokens(tokenizer, len(tokenizer))
    positions = [*prompt.positions(Segment.TEMPLATE), *prompt.positions(Segment.SYSTEM)]
    written = {prompt.input_ids[i] for i in positions}
    found = {prompt.input_ids[i] for i in prompt.positions(segment)}
    # Control tokens are all special tokens, and other added tokens that the template also writes.
    control = {token for token in found if token in added and (added[token].special or token in written)}
    _refuse_written(added, segment.name.lower(), text, control)


def _refuse_written(added: Mapping[int, AddedToken], what: str, text: str, control: set[int]) -> None:
    """Refuses a text that contains one of these tokens. An unknown character may become one without that spelling."""
    for token in sorted(control):
        spelling = added[token].content.strip()
        if spelling and not spelling.isalnum() and _folded(spelling) in _folded(text):
            reason = f"holds {spelling}, which the tokenizer reads as a control token and not as text: take it out"
            raise RefusedText(what, reason)


def _folded(text: str) -> str:
    """The text, normalised as a tokenizer may do before it searches for its tokens."""
    return unicodedata.normalize("NFKC", text).casefold()


@lru_cache(maxsize=8)
def _added_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> Mapping[int, AddedToken]:
    """Tokens added to the vocabulary, by id; none if text is never read as one of them (mistral-common)."""
    # `size` is a key of the cache: tokens may be added later.
    found = tokenizer.added_tokens_decoder  # thousands in some, made anew whenever it is asked for
    return found if isinstance(found, Mapping) else {}


def example_prompt(
    tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, source: str = "{source}"
) -> Sequence[tuple[int, object]]:
    """A prompt with fixed words in the place of instruction and source, neighbouring pieces of one segment as one.

    Raises:
        InputError: the template cannot render it.
    """
    rendered = groupby(template.render(tokenizer, "{instruction}", source), key=lambda piece: piece[0])
    pieces = [(segment, "".join(text for _, text in group)) for segment, group in rendered]
    return [*pieces, (Segment.PADDING, "split_at_source")] if template.split_at_source else pieces


def prompt_sha256(pieces: Sequence[tuple[int, object]]) -> str:
    """sha256 (hexadecimal) of an example prompt, as rendered and cut into segments."""
    return hashlib.sha256(json.dumps([[int(segment), part] for segment, part in pieces]).encode()).hexdigest()


def refuse_placeholder(name: str, text: str, placeholder: str) -> None:
    """Raises InputError for a text that contains the speech placeholder."""
    if placeholder in text:
        raise RefusedText(name, f"holds {placeholder}, which stands for the speech: take it out")


def resize_source(prompt: Prompt, length: int, audio_token_id: int | None = None) -> Prompt:
    """Repeats the source's tokens (or the speech token's id) in a cycle up to `length` tokens."""
    ids, segments, positions = prompt.input_ids, prompt.segments, prompt.positions(Segment.SOURCE)
    first, past = positions[0], positions[-1] + 1
    spelled = ids[first:past] if audio_token_id is None else [audio_token_id]
    return Prompt(
        [*ids[:first], *islice(cycle(spelled), length), *ids[past:]],
        [*segments[:first], *[Segment.SOURCE] * length, *segments[past:]],
    )
