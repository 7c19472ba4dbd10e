"""Words of any script: `\\w` of the standard library leaves out combining marks, such as the vowel signs of Hindi."""

from __future__ import annotations

import unicodedata

import regex

from lsm_probe.languages import UNSPACED_SCRIPTS

_SCRIPTS = "".join(rf"\p{{scx={script}}}" for script in UNSPACED_SCRIPTS)
_UNSPACED = regex.compile(rf"(?V1)[\p{{L}}&&[{_SCRIPTS}]]")
_LATIN = regex.compile(r"\p{Latin}")

IN_WORD = rf"[[\w\p{{N}}]--[{_SCRIPTS}]]"
"""Matches a character of a word, in scripts with spaces between words; for `regex`, under `(?V1)`."""
_WORD = regex.compile(rf"(?V1){IN_WORD}+|[[\w\p{{N}}]&&[{_SCRIPTS}]]\p{{M}}*")


def words(text: str) -> list[str]:
    """The words of a text, without punctuation; of scripts without spaces, each character with its marks."""
    return _WORD.findall(unicodedata.normalize("NFKC", text))


def is_latin(text: str) -> bool:
    """Whether at least half of the letters are Latin ones; true of a text without letters."""
    return 2 * len(_LATIN.findall(text)) >= _letters(text)


def is_unspaced(text: str) -> bool:
    """Whether more than half of the letters are of scripts without spaces between words."""
    return 2 * len(_UNSPACED.findall(text)) > _letters(text)


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))
