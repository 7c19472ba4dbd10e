"""The work of `lsm-probe data speak`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from lsm_probe.cli.data.spoken import show_spoken, spoken_in
from lsm_probe.data.manifest import manifest_writer
from lsm_probe.data.pools import read_pool
from lsm_probe.data.problems import OnError, Problems
from lsm_probe.data.sentences import read_sentences
from lsm_probe.data.speech import Delivery
from lsm_probe.errors import InputError

MANIFEST = "manifest.jsonl"


def speak_sentences(
    path: Path,
    out: Path,
    delivery: Delivery,
    *,
    instructions: Sequence[str],
    workers: int | None,
    limit: int | None,
    resume: bool,
    on_error: OnError,
    as_json: bool,
) -> None:
    """Speaks the sentences of a file and writes their manifest."""
    pool, problems = read_pool(*instructions).only(["transcription"]), Problems()
    sentences = {sentence.utterance.id: sentence for sentence in islice(read_sentences(path, problems), limit)}
    with spoken_in(
        out,
        [sentence.utterance for sentence in sentences.values()],
        delivery,
        workers=workers,
        settings={"command": "data speak", "instructions": list(instructions)},
        resume=resume,
        problems=problems,
        on_error=on_error,
    ) as spoken:
        problems.settle(on_error)
        if not spoken.utterances:
            raise InputError(f"{path} holds no sentence that can be spoken; write one on each line")
        with manifest_writer(out / MANIFEST) as write:
            for utterance in spoken.utterances:
                write(sentences[utterance.id].sample(utterance.audio, pool, delivery.seed))
    show_spoken(out, {MANIFEST: len(spoken.utterances)}, spoken, problems, as_json=as_json)
