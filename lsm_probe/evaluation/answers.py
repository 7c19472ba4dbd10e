"""Parses a model's response: its content, and whether it has the requested format.

The instructions are those of the paper's Table 10; how the paper parses responses to them is not published. References
go through the same parser as responses, so that both have the same form.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import regex
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from lsm_probe.errors import InputError
from lsm_probe.evaluation.words import IN_WORD, words
from lsm_probe.languages import CHINESE_SCRIPTS, Language, require_language


@dataclass(frozen=True)
class Answer:
    """The content of a response.

    Attributes:
        value: a text, a label, a set of keywords or a truth value; None if nothing can be read.
        follows: whether the response has the requested format; None if that cannot be determined.
    """

    value: str | bool | frozenset[str] | None
    follows: bool | None


Parser = Callable[[str], Answer]

_QUOTES = str.maketrans(dict.fromkeys('"`´‘’‚‛“”„‟«»‹›′″「」『』', "'") | {"_": " "})
_LIST = re.compile(r"\[([^\[\]]*)\]")
_LIST_ALONE = re.compile(r"\[([^\[\]]*)\] ?[.!]?")

_OFTEN_ASKED_FOR = ("de", "en", "es", "fr", "zh")
"""Languages that the identifier chooses from, besides the target: the source and targets of the paper's tasks."""


def text(response: str) -> Answer:
    """Free text (Table 10: transcription, WebQA): the response itself; anything but blank follows."""
    response = response.strip()
    return Answer(response or None, bool(response))


def capitals(response: str) -> Answer:
    """Words in capital letters. The value is the words as they are, without punctuation. The response follows if none
    of its letters is lower case."""
    response = unicodedata.normalize("NFKC", response)
    return Answer(" ".join(words(response)) or None, response.upper() == response and response.lower() != response)


def label(labels: Sequence[str]) -> Parser:
    """One label of a list (Table 10: emotion and intent, "answer strictly as {'label'}").

    The response follows if it is one label in braces and quotes, or bare. The kind of quotes, case, underscores for
    spaces and a final full stop or exclamation mark do not matter; any other word does.

    The value is the one label that occurs in the response as whole words, however often; None if there is no label or
    more than one. Part of a word (`surprised`, `un-joy`, `joy's`) is not a label, and neither is a label directly after
    "not" or "n't". Among overlapping labels the longest counts. In scripts without spaces between words, such as
    Chinese, a label may occur anywhere.

    Raises:
        InputError: there are no labels, or a label is blank or given twice.
    """
    names = _names(labels)
    anywhere = _anywhere(names)
    alone = re.compile(rf"(?P<open>\{{ ?)?(?P<quote>' ?)?{_either(names)}(?(quote) ?')(?(open) ?\}}) ?[.!]?")

    def parse(response: str) -> Answer:
        response = _plain(response)
        found = set(anywhere.findall(response))
        value = names[found.pop()] if len(found) == 1 else None
        return Answer(value, alone.fullmatch(response) is not None)

    return parse


def keywords(labels: Sequence[str], number: int) -> Parser:
    """Several labels of a list (Table 10: keywords, "strictly a bracketed list of quoted keywords").

    The response follows if it is a list in square brackets of exactly `number` different labels, in any order. Quotes,
    case and final punctuation are treated as in [`label`].

    The value is the set of items of the first bracketed list, including items that are not labels (such a response is
    wrong). Without such a list it is the set of labels that occur as whole words; None if there are none.

    Raises:
        InputError: there are no labels, or a label is blank or given twice.
    """
    names = _names(labels)
    anywhere = _anywhere(names)

    def parse(response: str) -> Answer:
        response = _plain(response)
        listed = _LIST.search(response)
        items = [item.strip(" '") for item in listed[1].split(",")] if listed else anywhere.findall(response)
        value = frozenset(names.get(item, item) for item in items if item)
        follows = _LIST_ALONE.fullmatch(response) is not None and len(items) == len(value) == number
        return Answer(value or None, follows and value <= set(labels))

    return parse


def true_false(response: str) -> Answer:
    """True or false (Table 10: BoolQ, "only true or false"), read as [`label`] reads.

    "yes" and "no" were not requested and are not values; both words, or "not true", give None.
    """
    answer = _TRUE_FALSE(response)
    return Answer(None if answer.value is None else answer.value == "true", answer.follows)


def language(target: str) -> Parser:
    """A translation (Table 10: "translate from {source} to {target} and add nothing").

    The value is the response. It follows if it is in the language `target`. Whether it is a translation, and whether
    anything was added, is not checked.

    - Chinese, Cantonese: at least half of the letters are Chinese characters.
    - Other targets: py3langid, choosing among German, English, Spanish, French, Chinese and `target`, names `target`.
      None if it does not know `target`, or if nothing in the response identifies a language, as in "12:30".

    A blank response does not follow.

    Args:
        target: in any spelling that [`lsm_probe.languages.find_language`] knows.

    Raises:
        InputError: there is no such language.
    """
    wanted = require_language(target)

    def parse(response: str) -> Answer:
        response = response.strip()
        follows = _is_in(wanted, unicodedata.normalize("NFKC", response)) if response else False
        return Answer(response or None, follows)

    return parse


def _is_in(wanted: Language, response: str) -> bool | None:
    letters = [character for character in response if character.isalpha()]
    if not letters:
        return None
    if wanted.script in CHINESE_SCRIPTS:
        return sum(unicodedata.name(letter, "").startswith("CJK UNIFIED") for letter in letters) >= len(letters) / 2
    identifier = _identifier(wanted.code)
    if identifier is None:
        return None
    first, second = identifier.rank(response)[:2]
    return None if first[1] == second[1] else first[0] == wanted.code


@cache
def _identifier(target: str) -> LanguageIdentifier | None:
    """Chooses among the target and frequently requested languages; None if it does not know the target."""
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    if target not in identifier.labels:
        return None
    identifier.set_languages({target, *_OFTEN_ASKED_FOR})
    return identifier


def _plain(response: str) -> str:
    """Lower case, straight single quotes, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", response).translate(_QUOTES).casefold().split())


def _names(labels: Sequence[str]) -> dict[str, str]:
    """Normalised label -> label as given."""
    names = {_plain(name): name for name in labels}
    if not names or "" in names or len(names) != len(labels):
        raise InputError(f"labels {list(labels)} are empty, blank or repeated; name each label once")
    return names


def _either(names: dict[str, str]) -> str:
    # Longest first, so that "living room" is tried before "living".
    return f"({'|'.join(re.escape(name) for name in sorted(names, key=len, reverse=True))})"


def _anywhere(names: dict[str, str]) -> regex.Pattern[str]:
    whole = rf"(?<!{IN_WORD})(?<!{IN_WORD}-){_either(names)}(?!-?{IN_WORD})(?!'{IN_WORD})"
    return regex.compile(rf"(?V1)(?<!\bnot )(?<!n't )(?<!\bnot ')(?<!n't '){whole}")


_TRUE_FALSE = label(["true", "false"])
