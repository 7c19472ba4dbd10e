"""Right answers in the form that the evaluation instructions ask for."""

from collections.abc import Sequence


def label_answer(label: str) -> str:
    """`{'joy'}`"""
    return "{" + repr(label) + "}"


def keywords_answer(keywords: Sequence[str]) -> str:
    """`['kitchen', 'turn on']`"""
    return repr(list(keywords))
