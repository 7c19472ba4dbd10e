"""Normalisation of texts before words or characters are counted: Whisper's normalisers, by language.

Whisper's English normaliser damages other languages: it deletes the vowel signs of Hindi, umlauts and tildes. Its basic
normaliser, for other languages, removes combining marks unless told to keep them, as here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import regex
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from lsm_probe.evaluation.words import is_latin, is_unspaced
from lsm_probe.languages import Language

ENGLISH, BASIC, WITHOUT_POINTS = "whisper-english", "basic-with-marks", "basic-without-vowel-points"

_LOWER_CASE = str.maketrans({"İ": "i", "I": "ı"})
"""Lower case for Turkish and Azerbaijani; Python converts both letters as in English."""
_TURKISH_CASE = ("tr", "az")
_VOWEL_POINTS = {"Arab": r"[\u064B-\u0652\u0670\u0640]", "Hebr": r"[\u05B0-\u05BC\u05BF\u05C1\u05C2\u05C7]"}
"""Optional vowel signs of Arabic and Hebrew script, and the line that stretches Arabic words."""


@dataclass(frozen=True)
class Normaliser:
    """How texts are normalised (`apply` separates the units by spaces), and the unit that is counted."""

    name: str
    unit: Literal["word", "character"]
    apply: Callable[[str], str]


class NormalisedPair(NamedTuple):
    """A normalised reference and response.

    Attributes:
        unexpected_script: the language is English or unknown, and the reference is not in Latin script.
        failed: the English normaliser failed, as for numbers of more than 4,300 digits, and the basic one was used.
    """

    reference: str
    response: str
    normaliser: Normaliser
    unexpected_script: bool = False
    failed: bool = False


def normalise_pair(reference: str, response: str, language: Language | None) -> NormalisedPair:
    """Normalises a reference and a response; text of unknown language in Latin script is treated as English.

    Reference and language determine how both are normalised. Characters are counted if the language, or more than half
    of the reference, is written without spaces.
    """
    unspaced = is_unspaced(reference) or (language is not None and not language.is_spaced)
    maybe_english = language is None or language.code == "en"
    unexpected_script = maybe_english and not is_latin(reference)
    chosen = basic = _basic(language, unspaced)
    if maybe_english and not unexpected_script:
        chosen = _english()
    try:
        return NormalisedPair(chosen.apply(reference), chosen.apply(response), chosen, unexpected_script)
    except (AssertionError, ValueError):
        return NormalisedPair(basic.apply(reference), basic.apply(response), basic, unexpected_script, failed=True)


@cache
def _english() -> Normaliser:
    normalise = EnglishTextNormalizer()
    return Normaliser(ENGLISH, "word", lambda text: normalise(_quick_to_read(text)))


@cache
def _basic(language: Language | None, unspaced: bool) -> Normaliser:
    normalise = BasicTextNormalizer(preserve_marks=True, split_letters=unspaced)
    has_points = language is not None and language.script in _VOWEL_POINTS
    points = re.compile(_VOWEL_POINTS[language.script] if language is not None and has_points else "(?!)")
    is_turkish = language is not None and language.code in _TURKISH_CASE

    def apply(text: str) -> str:
        if is_turkish:
            text = text.translate(_LOWER_CASE)
        # Invisible characters: the zero-width space separates words, others (joiners, directions) are not part of the
        # text.
        text = regex.sub(r"\p{Cf}", "", text.replace("\u200b", " "))
        return points.sub("", normalise(_quick_to_read(text))).strip()

    return Normaliser(WITHOUT_POINTS if has_points else BASIC, "character" if unspaced else "word", apply)


def _quick_to_read(text: str) -> str:
    """A text with the same result in Whisper's normalisers, but in linear time.

    These normalisers search for the end of every bracket and every run of spaces again at each character: 50,000 open
    brackets take 51 s. So text in brackets is removed here, as they do, and unclosed brackets, which they treat as
    punctuation, become other punctuation.
    """
    for pattern, opening, closing in ((r"[<\[][^>\]]*[>\]]", r"[<\[]", r"[>\]]"), (r"\(([^)]+?)\)", r"\(", r"\)")):
        end = max((found.end() for found in re.finditer(closing, text)), default=0)
        text = re.sub(pattern, "", text[:end]) + re.sub(opening, "|", text[end:])
    return re.sub(r"\s{3,}", "  ", text)
