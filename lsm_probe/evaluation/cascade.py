"""The cascade: a recogniser transcribes, and a text LLM responds to the transcript (Table 7 of arXiv:2410.03798)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from lsm_probe.errors import InputError
from lsm_probe.evaluation.transcriber import Transcriber, check_transcriber, load_transcriber
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.checkpoint_kinds import TextLlm
from lsm_probe.models.loading import load
from lsm_probe.models.lookup import look_up
from lsm_probe.runner.identity import cascade_name
from lsm_probe.runner.named_checkpoints import loading_for
from lsm_probe.runner.run import ToMeasure

NO_WORDS = "[inaudible]"
"""The LLM's input if the recogniser transcribes no word."""


@dataclass(kw_only=True)
class Cascade(TextLlm):
    """A text LLM that gets speech, with the recogniser that transcribes it."""

    transcriber: Transcriber

    def preprocess_audio(self, sources: list[Any], languages: list[str | None]) -> list[Any]:
        """The transcripts of the waveforms of a batch."""
        return [text.strip() or NO_WORDS for text in self.transcriber.transcribe(sources, languages)]


def cascade(llm: Checkpoint, transcriber: Transcriber) -> Cascade:
    """Combines a recogniser and a text LLM.

    Raises:
        InputError: the LLM is not a text LLM but takes speech itself.
    """
    if not isinstance(llm, TextLlm):
        raise InputError(f"{llm.name} takes speech itself: a cascade consists of a speech recogniser and a text LLM")
    return Cascade(
        name=cascade_name(transcriber.name, llm.name),
        model=llm.model,
        tokenizer=llm.tokenizer,
        template=llm.template,
        identity=replace(llm.identity, transcriber=transcriber.identity),
        source="speech",
        transcriber=transcriber,
        cascade_of=(transcriber.name, llm.name),
    )


def named_cascade(transcriber: str, llm: str, loading: dict[str, Any]) -> ToMeasure:
    """A cascade for a run, by the names of its parts; device and dtype of `loading` also apply to the recogniser."""
    running = {key: loading[key] for key in ("device", "dtype") if key in loading}

    def look_up_parts() -> Literal["speech"]:
        check_transcriber(transcriber)
        look_up(llm)
        return "speech"

    return ToMeasure(
        cascade_name(transcriber, llm),
        lambda: cascade(load(llm, **loading_for(llm, loading)), load_transcriber(transcriber, **running)),
        look_up_parts,
        (transcriber, llm),
    )
