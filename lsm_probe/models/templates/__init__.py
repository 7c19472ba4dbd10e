"""Prompt templates: the layout of instruction and source for an LLM.

A template is a small YAML file; [`lsm_probe.models.templates.layout`] says what it holds. Those in this folder are
found by name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lsm_probe.errors import InputError
from lsm_probe.models.hub_files import find_file
from lsm_probe.models.segments import Piece
from lsm_probe.models.templates.layout import AUDIO_TOKEN, PromptTemplate, read_template
from lsm_probe.registry import Registry

__all__ = [
    "AUDIO_TOKEN",
    "TEMPLATES",
    "PromptTemplate",
    "carried_template",
    "default_template",
    "find_template",
]

FILE = "prompt_template.yaml"
"""File name of the template in a checkpoint's folder."""

Render = Callable[[PreTrainedTokenizerBase, str, str], list[Piece]]
"""Called with tokenizer, instruction and source; returns the prompt's text in segments."""
TEMPLATES: Registry[PromptTemplate | Render] = Registry(
    "lsm_probe.templates", "prompt template", lambda name, found: callable(found) or isinstance(found, PromptTemplate)
)
"""Prompt templates by name. Those of other packages come from the entry-point group `lsm_probe.templates`: a
[`PromptTemplate`], or a function of tokenizer, instruction and source that returns the prompt's text in segments."""

_FIRST = ("vicuna", "vicuna_text", "llama3", "chat", "chat_source_first")
for _path in sorted(Path(__file__).parent.glob("*.yaml"), key=lambda path: (path.stem not in _FIRST, path.stem)):
    TEMPLATES.register(_path.stem)(read_template(_path))


def find_template(template: str | Path | PromptTemplate) -> PromptTemplate:
    """The template of a name or of a YAML file.

    Raises:
        InputError: there is no template of this name, or the file is none.
    """
    if isinstance(template, PromptTemplate):
        return template
    name = str(template)
    if name.endswith((".yaml", ".yml")):
        return read_template(Path(name))
    if name not in TEMPLATES:
        raise InputError(f"--template {name!r} is unknown; give a YAML file, or one of: {', '.join(TEMPLATES)}")
    found: Any = TEMPLATES[name]
    return found if isinstance(found, PromptTemplate) else PromptTemplate(name, found)


def default_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """`chat` where the tokenizer has a chat template, the paper's `vicuna` where not."""
    return "chat" if tokenizer.chat_template else "vicuna"


def carried_template(name: str | Path) -> PromptTemplate | None:
    """The template that the folder (or hub name) of a checkpoint carries; None if it carries none.

    It has the name of the built-in template of the same content, else the folder's.

    Raises:
        InputError: the file is not a template.
    """
    path = find_file(name, FILE)
    if path is None:
        return None
    read = read_template(path, Path(name).name)
    built_in = [known for known in TEMPLATES.built_in.values() if isinstance(known, PromptTemplate)]
    return next((known for known in built_in if known.content == read.content), read)
