"""From utterances to manifests: an instruction and the right answer for each task, with every clip's header checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from lsm_probe.data.audio import check_audio_file
from lsm_probe.data.manifest import explain, manifest_writer
from lsm_probe.data.pools import Pool
from lsm_probe.data.problems import OnError, Problems
from lsm_probe.data.sample import Sample
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError

_AT_ONCE = 1_000
"""Utterances whose clips are opened concurrently, because waiting for a remote disk takes longer than the work."""

_MOST_FILES = 500
"""Largest number of manifests open at once; operating systems let a process open about a thousand files."""


def build_manifests(
    utterances: Iterable[Utterance],
    out: Path,
    tasks: Sequence[str],
    pool: Pool,
    *,
    seed: int = 0,
    splits: Sequence[str] = (),
    problems: Problems,
    on_error: OnError = "fail",
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, int]:
    """Writes `{split}.{task}.jsonl` into a folder for every split and task, all of them or none.

    A sample is left out, with a line in `problems`, if its clip's header cannot be right, its transcript or answer is
    missing or empty, or its id is already used.

    Args:
        tasks: names of tasks in `pool`, from which instructions are drawn.
        splits: the requested splits, which must exist.
        problems: also contains the problems that the reader of `utterances` has found.
        on_error: "fail" writes nothing if there is any problem.
        on_progress: called with the number of utterances done.

    Returns:
        File name -> number of samples.

    Raises:
        InputError: there are problems and `on_error` is "fail", a task is not in the pool, a split is not there, there
            are too many of them, or nothing is left.
    """
    pools = {task: pool.only([task]) for task in tasks}
    counts: dict[str, int] = {}
    writers: dict[str, Callable[[Sample], None]] = {}
    taken: dict[str, set[str]] = {}
    with ExitStack() as files:
        for utterance in _playable(utterances, problems, on_progress):
            for task, one_task in pools.items():
                name = f"{utterance.split}.{task}.jsonl"
                if name not in writers and len(writers) == _MOST_FILES:
                    raise InputError(f"there are more than {_MOST_FILES} splits and tasks; choose some with --split")
                with problems.catching(utterance.place):
                    sample = _draw_sample(utterance, one_task, seed)
                    ids = taken.setdefault(name, set())
                    if sample.id in ids:
                        raise InputError("another utterance of the split has the same id; ids must be unique")
                    ids.add(sample.id)
                    if name not in writers:
                        writers[name] = files.enter_context(manifest_writer(out / name))
                    writers[name](sample)
                    counts[name] = counts.get(name, 0) + 1
        problems.settle(on_error)
        for split in splits:
            if not any(name.startswith(f"{split}.") for name in counts):
                raise InputError(f"--split {split!r} was not found, or nothing in it can be used; check its name")
        if not counts:
            raise InputError(f"nothing was found for {out}: check --root, --split and --task")
    return counts


def to_sample(
    utterance: Utterance, instruction: str, target: str | None, task: str | None, alternatives: tuple[str, ...] = ()
) -> Sample:
    """The sample that asks `instruction` about an utterance.

    Raises:
        InputError: a value is not one that a sample may have.
    """
    try:
        return Sample(
            id=utterance.id,
            instruction=instruction,
            audio=utterance.audio,
            text=utterance.text,
            target=target,
            alternatives=alternatives,
            start=utterance.start,
            duration=utterance.duration,
            task=task,
            language=utterance.language,
            context=utterance.context,
        )
    except ValidationError as error:
        raise InputError(explain(error)) from None


def _playable(
    utterances: Iterable[Utterance], problems: Problems, on_progress: Callable[[int], None]
) -> Iterator[Utterance]:
    """The utterances whose clip's header can be right."""
    source, done = iter(utterances), 0
    with ThreadPoolExecutor() as threads:
        while chunk := list(islice(source, _AT_ONCE)):
            for utterance, problem in zip(chunk, threads.map(_header_problem, chunk), strict=True):
                if problem:
                    problems.add(utterance.place, problem)
                else:
                    yield utterance
            on_progress(done := done + len(chunk))


def _header_problem(utterance: Utterance) -> str | None:
    if utterance.audio is None:
        return None
    try:
        check_audio_file(utterance.audio, utterance.start, utterance.duration)
    except InputError as error:
        return str(error)
    return None


def _draw_sample(utterance: Utterance, pool: Pool, seed: int) -> Sample:
    assignment = pool.assign(seed, utterance.id, language=utterance.target_language)
    target = utterance.answer(assignment.task)
    if not target or not target.strip():
        what = "its transcript" if assignment.task == "transcription" else f"the answer to task {assignment.task!r}"
        raise InputError(f"{what} is missing or empty; correct the corpus's own file")
    alternatives = utterance.alternatives.get(assignment.task, ())
    return to_sample(utterance, assignment.instruction, target, assignment.task, alternatives)
