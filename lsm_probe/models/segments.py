"""Segments: the role of each token in a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum


class Segment(IntEnum):
    """The role of a token. The values are part of the file format of results."""

    PADDING = 0
    SYSTEM = 1
    TEMPLATE = 2
    """Role words, delimiters, BOS, chat markup."""
    INSTRUCTION = 3
    SOURCE = 4
    """Speech tokens, or the transcript for a text LLM."""
    RESPONSE = 5


class SpecialToken(str):
    """The spelling of a special token that a template itself writes into a prompt, such as BOS.

    It becomes its id, and the text after it is tokenised as a text of its own: the ids of that text then do not depend
    on how a tokenizer treats text after a special token.
    """

    __slots__ = ()


Piece = tuple[Segment, str]
"""A segment, and the part of the prompt's text (or a [`SpecialToken`]) that belongs to it."""


def token_segments(pieces: Sequence[Piece], offsets: Sequence[tuple[int, int]]) -> list[Segment]:
    """Returns the segment of each token.

    A token across two pieces belongs to the piece of its first non-space character; a token of only spaces belongs to
    the piece of its first character.

    Args:
        pieces: the text, cut into segments; the tokeniser saw their concatenation.
        offsets: first and past-the-end character of each token in the concatenation.
    """
    text = "".join(piece for _, piece in pieces)
    owner = [segment for segment, piece in pieces for _ in piece]
    segments = []
    past = 0
    for start, end in offsets:
        if start == end:  # a tokenizer that trims its offsets leaves nothing of a token of spaces
            start = min(past, start)
        past = end
        first = next((i for i in range(start, end) if not text[i].isspace()), min(start, len(owner) - 1))
        segments.append(owner[first])
    return segments
