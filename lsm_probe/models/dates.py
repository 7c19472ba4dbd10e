"""The date that a chat template writes: a fixed one, so that numbers do not change from day to day."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

from lsm_probe.errors import InputError
from lsm_probe.models.templates import PromptTemplate

DATE = "2024-07-26"
"""The date that Llama 3's template uses if it cannot get the current date."""
_ASKS = "strftime_now"
_PINNED = re.compile(r"\{#- lsm-probe: it is (\S+) #\}.*?\{\{- \"\" \}\}", re.DOTALL)


def with_date(part: Any, date: str | None) -> Any:
    """Makes the chat templates of a tokenizer, or of a processor and its tokenizer, write a fixed date.

    Args:
        part: changed in place; a template that writes no date stays as it is.
        date: `--date`. None: the date with which the template was saved, so that a model still reads the prompts it was
            trained on, or else [`DATE`].

    Returns:
        `part`.

    Raises:
        InputError: it is not a date.
    """
    try:
        day = None if date is None else datetime.date.fromisoformat(date)
    except ValueError:
        raise InputError(f"--date {date!r} is not a date: write it as {DATE}") from None
    held: Any
    for held in (part, getattr(part, "tokenizer", None)):
        templates = getattr(held, "chat_template", None)
        if isinstance(templates, str):
            held.chat_template = _pinned(templates, day)
        elif isinstance(templates, dict):
            held.chat_template = {name: _pinned(template, day) for name, template in templates.items()}
    return part


def written_date(template: PromptTemplate, *parts: Any) -> str | None:
    """The fixed date that prompts contain; None if they contain none.

    Args:
        template: the prompt template; only a chat template writes a date.
        parts: tokenizers and processors: the first one with a chat template writes the prompts.
    """
    if not template.is_chat:
        return None
    jinja = next((found for part in parts if (found := getattr(part, "chat_template", None))), "")
    pinned = _PINNED.match(jinja.get("default", "") if isinstance(jinja, dict) else jinja)
    return pinned[1] if pinned else None


def _pinned(template: str, date: datetime.date | None) -> str:
    """The template with our own date function in place of the one that transformers provides."""
    if date is None and _PINNED.match(template):
        return template
    date = date or datetime.date.fromisoformat(DATE)
    template = _PINNED.sub("", template)
    if _ASKS not in template:
        return template
    # A macro, because transformers passes no function of ours to a template. Its last piece keeps the spaces after it.
    return (
        f"{{#- lsm-probe: it is {date} #}}{{%- macro {_ASKS}(format) -%}}{{%- set written = namespace(text=format) -%}}"
        f"{{%- for code, value in {json.dumps(_codes(date))} -%}}"
        "{%- set written.text = written.text | replace(code, value) -%}{%- endfor -%}"
        '{{- written.text -}}{%- endmacro %}{{- "" }}' + template
    )


def _codes(date: datetime.date) -> list[tuple[str, str]]:
    """What `strftime` writes for each of its codes at midnight of a date; `%-d` and the like without leading zeros."""
    midnight = datetime.datetime.combine(date, datetime.time())
    plain = [(f"%{code}", midnight.strftime(f"%{code}")) for code in "aAbBcdDeFfGhHIjmMpRSTuUVwWxXyY"]
    short = [(f"%-{code}", midnight.strftime(f"%{code}").lstrip("0") or "0") for code in "dHIjmMSUWy"]
    return [*plain, *short, ("%%", "%")]
