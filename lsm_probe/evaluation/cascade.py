"""The cascade: a recogniser transcribes, and a text LLM answers to the transcript (Table 7 of arXiv:2410.03798)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from lsm_probe.errors import InputError
from lsm_probe.evaluation.transcriber import Transcriber, check_transcriber, load_transcriber
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.loading import load, look_up

NOTHING_HEARD = "[inaudible]"
"""What the LLM reads where the recogniser has heard no word."""
PLUS = " + "
"""Stands in a cascade's name between recogniser and LLM."""


@dataclass(kw_only=True)
class Cascade(Checkpoint):
    """A text LLM that is given speech, and what transcribes it."""

    transcriber: Transcriber

    def preprocess_audio(self, sources: list[Any], languages: list[str | None]) -> list[Any]:
        """The transcripts of the waveforms of a batch."""
        return [heard.strip() or NOTHING_HEARD for heard in self.transcriber.transcribe(sources, languages)]


def cascade(llm: Checkpoint, transcriber: Transcriber) -> Cascade:
    """Puts a recogniser before a text LLM.

    Raises:
        InputError: the LLM is none, but a model that hears.
    """
    if llm.processor is not None:
        raise InputError(f"{llm.name} hears by itself: a cascade is of a recogniser and a text LLM")
    return Cascade(
        name=cascade_name(transcriber.name, llm.name),
        model=llm.model,
        tokenizer=llm.tokenizer,
        template=llm.template,
        identity=replace(llm.identity, transcriber=transcriber.identity),
        source="speech",
        transcriber=transcriber,
    )


def cascade_name(transcriber: str, llm: str) -> str:
    """How a cascade is called, and named to [`load_any`]."""
    return f"{transcriber}{PLUS}{llm}"


def load_any(name: str, **loading: Any) -> Checkpoint:
    """Loads a cascade by its [`cascade_name`], anything else as [`load`] does.

    Raises:
        InputError: as [`load`], or there is no such recogniser.
    """
    transcriber, plus, llm = name.partition(PLUS)
    if not plus:
        return load(name, **loading)
    running = {key: loading[key] for key in ("device", "dtype") if key in loading}
    return cascade(load(llm, **loading), load_transcriber(transcriber, **running))


def look_up_any(name: str) -> Literal["speech", "text"] | None:
    """As [`look_up`], also of a cascade: it is given speech.

    Raises:
        InputError: as [`look_up`], or there is no such recogniser.
    """
    transcriber, plus, llm = name.partition(PLUS)
    if not plus:
        return look_up(name)
    check_transcriber(transcriber)
    look_up(llm)
    return "speech"
