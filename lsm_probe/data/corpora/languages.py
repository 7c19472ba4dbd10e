"""Languages of the corpora: code to English name and back."""

from __future__ import annotations

from lsm_probe.errors import InputError

NAMES = {
    "ar": "Arabic",
    "ca": "Catalan",
    "cy": "Welsh",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "et": "Estonian",
    "fa": "Persian",
    "fr": "French",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "lv": "Latvian",
    "mn": "Mongolian",
    "nl": "Dutch",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sl": "Slovenian",
    "sv": "Swedish",
    "ta": "Tamil",
    "tr": "Turkish",
    "vi": "Vietnamese",
    "zh": "Chinese",
}
_CODES = {name.lower(): code for code, name in NAMES.items()}


def base(code: str) -> str:
    """`zh-CN` to `zh`."""
    return code.partition("-")[0]


def english_name(code: str) -> str:
    """`zh-CN` to `Chinese`.

    Raises:
        InputError: the language is in no corpus we read.
    """
    if base(code) not in NAMES:
        raise InputError(f"language {code!r} is unknown here; known are: {', '.join(NAMES)}")
    return NAMES[base(code)]


def code_of(language: str) -> str:
    """`English` to `en`; codes and languages unknown here stay as they are."""
    return _CODES.get(language.lower(), language)
