"""A folder of manifests from a corpus, a question set, the commands world or a file of sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lsm_probe.data.build import build_manifests
from lsm_probe.data.corpora import Corpus
from lsm_probe.data.manifest import manifest_writer
from lsm_probe.data.pools import read_pool
from lsm_probe.data.problems import OnError, Problems
from lsm_probe.data.sentences import read_sentences
from lsm_probe.data.speech import SpeechSettings, SynthesisResult, synthesize, texts_sha256
from lsm_probe.data.utterance import Utterance
from lsm_probe.data.voices import check_text
from lsm_probe.errors import InputError
from lsm_probe.folders import work_folder

MANIFEST = "manifest.jsonl"

OnProgress = Callable[[str, int, int | None], None]
"""Called with the name of the step, the amount done, and the total (None: not known)."""


@dataclass(frozen=True)
class Prepared:
    """The content that was written into a folder."""

    samples: dict[str, int]  # name of each manifest and its number of samples
    left_out: list[str]  # a line for each unusable entry; also in `left_out.txt`
    spoken: SynthesisResult | None = None  # the generated speech, None for a corpus with its own speech

    def to_dict(self) -> dict[str, Any]:
        """The counts, for machines."""
        counts: dict[str, Any] = {"samples": self.samples, "left_out": len(self.left_out)}
        return counts if self.spoken is None else {**counts, **self.spoken.to_dict()}


def prepare_corpus(
    corpus: Corpus,
    root: Path,
    out: Path,
    *,
    tasks: Sequence[str],
    splits: Sequence[str] | None = None,
    instructions: Sequence[str] = ("evaluation",),
    seed: int = 0,
    limit: int | None = None,
    on_error: OnError = "fail",
    on_progress: OnProgress = lambda name, done, total: None,
) -> Prepared:
    """Reads a corpus and writes `{split}.{task}.jsonl` into an empty folder.

    Args:
        corpus: one of `CORPORA` that is spoken.
        splits: only these; all if none are named.
        instructions: names or files of the pools that instructions are drawn from.
        limit: only the first utterances.
        on_error: for an unusable entry: `fail`, and nothing is written, or `skip` and count it.
        on_progress: see [`OnProgress`].

    Raises:
        InputError: root, tasks, splits, instructions or the folder cannot be used, or entries cannot and `on_error` is
            "fail".
    """
    _check_tasks(corpus, tasks)
    pool, problems = read_pool(*instructions).only(tasks), Problems()
    utterances = islice(corpus.read(root, problems, splits), limit)
    config = {
        "command": f"data {corpus.name}",
        "root": str(root.absolute()),
        "splits": splits,
        "tasks": tasks,
        "instructions": [str(name) for name in instructions],
        "seed": seed,
        "limit": limit,
    }
    # Always from the start, because this takes minutes at most.
    with work_folder(out, config, resume=None):
        counts = build_manifests(
            utterances,
            out,
            tasks,
            pool,
            seed=seed,
            splits=splits or (),
            problems=problems,
            on_error=on_error,
            on_progress=lambda done: on_progress(corpus.title, done, None),
        )
        problems.write(out)
    return Prepared(counts, problems.found)


def prepare_questions(
    corpus: Corpus,
    root: Path,
    out: Path,
    speech: SpeechSettings,
    *,
    tasks: Sequence[str],
    limit: int | None = None,
    **how: Any,
) -> Prepared:
    """Speaks the questions of a set and writes `{file}.{task}.jsonl`; see [`prepare_utterances`].

    Raises:
        InputError: as `prepare_corpus` and `prepare_utterances`.
    """
    _check_tasks(corpus, tasks)
    problems = Problems()
    questions = list(islice(corpus.read(root, problems), limit))
    return prepare_utterances(questions, out, speech, name=f"data {corpus.name}", tasks=tasks, problems=problems, **how)


def prepare_utterances(
    utterances: Sequence[Utterance],
    out: Path,
    speech: SpeechSettings,
    *,
    name: str,
    tasks: Sequence[str],
    instructions: Sequence[str] = ("evaluation",),
    workers: int | None = None,
    resume: bool = False,
    problems: Problems | None = None,
    on_error: OnError = "fail",
    on_progress: OnProgress = lambda name, done, total: None,
) -> Prepared:
    """Synthesises utterances with known answers into `out/audio` and writes `{split}.{task}.jsonl`.

    Args:
        utterances: with text, without audio.
        speech: synthesis settings; their seed is also used for the instructions.
        name: name of the utterances' source, for `config.yaml`.
        instructions: names or files of the pools that instructions are drawn from.
        workers: processes for synthesis; None takes one per core.
        resume: continue in the folder of an interrupted run.
        problems: known problems; with `on_error` "fail" nothing is synthesised if there are any.
        on_error: for a text that cannot be spoken: `fail` before synthesis starts, or `skip` and count it.
        on_progress: see [`OnProgress`].

    Raises:
        InputError: tasks, instructions, texts or the folder cannot be used.
    """
    pool, problems = read_pool(*instructions).only(tasks), problems or Problems()
    settings = {"command": name, "tasks": list(tasks), "instructions": [str(source) for source in instructions]}
    with _spoken_in(out, utterances, speech, settings, workers, resume, problems, on_error, on_progress) as spoken:
        counts = build_manifests(
            spoken.utterances, out, tasks, pool, seed=speech.seed, problems=problems, on_error=on_error
        )
    return Prepared(counts, problems.found, spoken)


def prepare_sentences(
    path: Path,
    out: Path,
    speech: SpeechSettings,
    *,
    instructions: Sequence[str] = ("transcription",),
    workers: int | None = None,
    limit: int | None = None,
    resume: bool = False,
    on_error: OnError = "fail",
    on_progress: OnProgress = lambda name, done, total: None,
) -> Prepared:
    """Synthesises the sentences of a file into `out/audio` and writes `manifest.jsonl`.

    Args:
        path: see [`read_sentences`].
        instructions: names or files of the pools that the transcription instructions are drawn from, for sentences
            without one of their own.
        limit: only the first sentences.
        out, speech, workers, resume, on_error, on_progress: as in [`prepare_utterances`].

    Raises:
        InputError: the file, its lines, the instructions or the folder cannot be used.
    """
    pool, problems = read_pool(*instructions).only(["transcription"]), Problems()
    sentences = {sentence.utterance.id: sentence for sentence in islice(read_sentences(path, problems), limit)}
    utterances = [sentence.utterance for sentence in sentences.values()]
    settings = {"command": "data speak", "instructions": [str(source) for source in instructions]}
    with _spoken_in(out, utterances, speech, settings, workers, resume, problems, on_error, on_progress) as spoken:
        problems.settle(on_error)
        if not spoken.utterances:
            raise InputError(f"{path} holds no sentence that can be spoken; write one on each line")
        with manifest_writer(out / MANIFEST) as write:
            for utterance in spoken.utterances:
                write(sentences[utterance.id].sample(utterance.audio, pool, speech.seed))
    return Prepared({MANIFEST: len(spoken.utterances)}, problems.found, spoken)


@contextmanager
def _spoken_in(
    out: Path,
    utterances: Sequence[Utterance],
    speech: SpeechSettings,
    settings: dict[str, Any],
    workers: int | None,
    resume: bool,
    problems: Problems,
    on_error: OnError,
    on_progress: OnProgress,
) -> Iterator[SynthesisResult]:
    """Synthesises utterances into `out/audio` and yields the result, while the folder is locked for further files."""
    if on_error == "fail":
        for utterance in utterances:
            with problems.catching(utterance.place):
                check_text(utterance.text or "")
        problems.settle("fail")
    config = {**settings, **asdict(speech), "texts": texts_sha256(utterances)}
    with work_folder(out, config, resume=resume):
        yield synthesize(
            utterances,
            out / "audio",
            speech,
            workers=workers,
            problems=problems,
            on_progress=lambda done: on_progress("speech", done, len(utterances)),
        )
        problems.write(out)


def _check_tasks(corpus: Corpus, tasks: Sequence[str]) -> None:
    for task in tasks:
        if task not in corpus.all_tasks:
            known = ", ".join(corpus.all_tasks)
            raise InputError(f"--task {task!r} is not a task of {corpus.title}; choose one of: {known}")
