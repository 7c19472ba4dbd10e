"""Languages by their usual spellings: ISO 639 codes, BCP 47 tags and names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import langcodes
from langcodes.tag_parser import LanguageTagError
from language_data.names import TRIES, normalize_name

from lsm_probe.errors import InputError

UNSPACED_SCRIPTS = (
    *("Hani", "Bopo", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"),
    *("Tale", "Talu", "Lana", "Tavt", "Yiii", "Java", "Bali"),
)
"""ISO 15924 codes of the scripts that put no spaces between words."""
CHINESE_SCRIPTS = ("Hani", "Hans", "Hant", "Hanb")
_JAPANESE_SCRIPTS = ("Jpan", "Hrkt")
_NO_LANGUAGE = ("und", "mul", "mis", "zxx")
"""Codes of ISO 639-2 for an undetermined language, several languages, and no language."""


@dataclass(frozen=True)
class Language:
    """A language.

    Attributes:
        code: ISO 639 code, with two letters if there is such a code: "zh" also for `cmn`, but "yue" for Cantonese.
        name: English name.
        script: ISO 15924 code of its script: the usual script unless the spelling named another.
    """

    code: str
    name: str
    script: str

    @property
    def is_spaced(self) -> bool:
        """Whether it is written with spaces between words."""
        return self.script not in (*UNSPACED_SCRIPTS, *CHINESE_SCRIPTS, *_JAPANESE_SCRIPTS)


def find_language(spelling: str | None, where: str = "") -> Language | None:
    """Finds a language by code or tag in any case (`zh`, `cmn`, `zh_CN`, `ZH`) or by name (`Mandarin`, `Deutsch`).

    A spelling that can be a code is read as one: "mon" is Mongolian, and the language called Mon is "mnw".

    Args:
        spelling: the code, tag or name.
        where: beginning of an error message.

    Returns:
        None for None, for a blank, and for the codes that name no single language (`und`, `mul`, `mis`, `zxx`).

    Raises:
        InputError: there is no such language.
    """
    if spelling is None or not spelling.strip():
        return None
    if spelling.strip().lower() == "nan":  # as pandas writes a missing value
        raise InputError(
            f"{where}{spelling!r} may be a missing value, or Min Nan Chinese: leave it out, or write 'nan-Hant'"
        )
    found = _read(spelling.strip())
    if found is None:
        raise InputError(
            f"{where}{spelling!r} is not a language; write an ISO 639 code such as 'de', a tag such as 'zh-TW', or an "
            "English name such as 'German'"
        )
    return None if found.code in _NO_LANGUAGE else found


def require_language(spelling: str, where: str = "") -> Language:
    """Like [`find_language`], but raises InputError if the spelling names no single language."""
    found = find_language(spelling, where)
    if found is None:
        raise InputError(f"{where}{spelling!r} names no single language; write one, such as 'de' or 'German'")
    return found


@lru_cache(maxsize=4096)
def _read(spelling: str) -> Language | None:
    # Many tools write "Chinese (Simplified)" for `zh-Hans`.
    found = _by_tag(spelling) or _by_name(spelling) or _by_name(spelling.partition("(")[0])
    if found is None:
        return None
    code = found.prefer_macrolanguage().language or "und"
    return Language(code, langcodes.Language.make(code).display_name(), found.maximize().script or "Zyyy")


def _by_tag(spelling: str) -> langcodes.Language | None:
    try:
        found = langcodes.Language.get(spelling)
    except LanguageTagError:
        return None
    # langcodes accepts a private tag such as "x-foo" as a language.
    return found if found.is_valid() and not spelling.lower().startswith("x-") else None


def _by_name(spelling: str) -> langcodes.Language | None:
    # Short Latin strings are wrong codes ("gb", "jp"); a search by name would find unrelated rare languages for them.
    if spelling.isascii() and sum(map(str.isalpha, spelling)) <= 3:
        return None
    if re.search(r"[,;/|&+]", spelling):  # several languages: langcodes drops punctuation, so "en,de" would become Ende
        return None
    try:
        found = langcodes.find(spelling)
    except LookupError:
        return None
    # langcodes also matches the beginning of a string: for "pirate" it finds Yine, also called Pira.
    is_whole = normalize_name(spelling) in TRIES["und/name_to_language"]
    return _by_tag(found.to_tag()) if is_whole else None
