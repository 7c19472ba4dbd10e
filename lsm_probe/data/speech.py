"""Synthesis of utterances into FLAC files: in parallel, resumable, with output independent of the processes."""

from __future__ import annotations

import hashlib
import io
import json
import math
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from lsm_probe.data.audio import RATE, check_audio_file
from lsm_probe.data.problems import Problems
from lsm_probe.data.seeded_hash import seeded_hash
from lsm_probe.data.utterance import Utterance
from lsm_probe.data.voices import DEFAULT_VOICE, FASTEST, SLOWEST, check_voice, synthesize_text
from lsm_probe.errors import InputError, Terminated
from lsm_probe.files import replacing

_CHUNK_SIZE = 8
"""Texts that a process synthesizes at a time, which takes less than a second."""


@dataclass(frozen=True)
class SpeechSettings:
    """Synthesis settings: a voice, a speed and a seed for the voice's noise are chosen for each text.

    Raises:
        InputError: a voice is not available, or a speed is not between `SLOWEST` and `FASTEST`.
    """

    voices: tuple[str, ...] = (DEFAULT_VOICE,)  # of [`lsm_probe.data.voices.available_voices`]
    speeds: tuple[float, ...] = (1.0,)  # 1.0 is a voice's own speed
    seed: int = 0

    def __post_init__(self) -> None:
        for voice in self.voices:
            check_voice(voice)
        for speed in self.speeds:
            if not SLOWEST <= speed <= FASTEST:
                raise InputError(
                    f"--speed {speed} is not between {SLOWEST} and {FASTEST}; 1.0 is the voice's own speed"
                )

    def choose(self, sample_id: str) -> tuple[str, float, int]:
        """Voice, speed and seed for a sample."""
        voice = self.voices[seeded_hash(self.seed, "voice", sample_id) % len(self.voices)]
        speed = self.speeds[seeded_hash(self.seed, "speed", sample_id) % len(self.speeds)]
        return voice, speed, seeded_hash(self.seed, "noise", sample_id) % 2**32


@dataclass(frozen=True)
class SynthesisResult:
    """The result of `synthesize`."""

    utterances: list[Utterance]  # those that have `audio`, in the order given
    new: int  # number of utterances spoken in this run; the others already existed
    seconds: float  # of speech made in this run
    wall_seconds: float  # wall time of this synthesis

    @property
    def already(self) -> int:
        return len(self.utterances) - self.new

    @property
    def times_real_time(self) -> float:
        return self.seconds / self.wall_seconds

    def to_dict(self) -> dict[str, Any]:
        """The counts, as plain values."""
        return {
            "spoken": self.new,
            "already": self.already,
            "seconds": round(self.seconds, 3),
            "wall_seconds": round(self.wall_seconds, 3),
            "times_real_time": round(self.times_real_time, 1),
        }


@dataclass(frozen=True)
class _Job:
    """One text to be spoken into one file."""

    path: Path
    text: str
    voice: str
    speed: float
    seed: int


def texts_sha256(utterances: Iterable[Utterance]) -> str:
    """Hash of all ids and texts in their order, which identifies the content of an output folder."""
    total = hashlib.sha256()
    for utterance in utterances:
        total.update(json.dumps([utterance.split, utterance.id, utterance.text]).encode() + b"\n")
    return total.hexdigest()


def synthesize(
    utterances: Sequence[Utterance],
    folder: Path,
    speech: SpeechSettings,
    *,
    workers: int | None = None,
    problems: Problems,
    on_progress: Callable[[int], None] = lambda done: None,
) -> SynthesisResult:
    """Speaks each utterance's text into `folder/<2 hex>/<name>.flac`, 16 kHz mono, 16 bits.

    An existing file with a plausible header is used unchanged, so the caller must keep other texts and speech settings
    out of the folder ([`lsm_probe.folders.work_folder`] with `texts_sha256`). Files are written atomically. An
    utterance that cannot be spoken, or whose id is already used in its split, is left out, with a line in `problems`.

    Args:
        utterances: with text.
        folder: for the files; only one process may fill it.
        speech: how they are spoken.
        workers: number of processes, one core each; None takes one per core. 1 works in this process; with more, a
            script that calls this must guard its entry by `if __name__ == "__main__"`.
        on_progress: called with the number of texts done in this run and before.

    Raises:
        InputError: a worker process was killed from outside.
        OSError: the folder cannot be written to; ENOSPC if the disk is full.
    """
    began = time.monotonic()
    _remove_leftovers(folder)
    files = _files(utterances, folder, problems)
    jobs = [
        _Job(path, utterance.text or "", *speech.choose(utterance.id))
        for path, utterance in files.items()
        if not _is_spoken(path)
    ]
    failed, seconds, done = {}, 0.0, len(files) - len(jobs)
    try:
        with closing(_outcomes(jobs, workers or os.cpu_count() or 1)) as outcomes:
            for job, outcome in outcomes:
                if isinstance(outcome, str):
                    failed[job.path] = outcome
                else:
                    seconds += outcome
                on_progress(done := done + 1)
    finally:
        _remove_leftovers(folder)
    for path, reason in failed.items():
        problems.add(files[path].place, reason)
    spoken = [replace(utterance, audio=path) for path, utterance in files.items() if path not in failed]
    return SynthesisResult(spoken, len(jobs) - len(failed), seconds, time.monotonic() - began)


def _is_spoken(path: Path) -> bool:
    """Whether the file exists and is not empty or truncated, as after a system crash."""
    try:
        check_audio_file(path)
    except InputError:
        return False
    return True


def _remove_leftovers(folder: Path) -> None:
    """Removes the incomplete files of a killed process."""
    for leftover in folder.glob("??/.*.flac"):
        leftover.unlink()


def _files(utterances: Iterable[Utterance], folder: Path, problems: Problems) -> dict[Path, Utterance]:
    files: dict[Path, Utterance] = {}
    for utterance in utterances:
        path = folder / _relative_path(utterance)
        if path in files:
            problems.add(utterance.place, "an earlier utterance has the same id")
        else:
            files[path] = utterance
    return files


def _relative_path(utterance: Utterance) -> Path:
    """A readable and safe file name for any id; the hash separates ids, also if a disk ignores case."""
    digest = hashlib.sha256(json.dumps([utterance.split, utterance.id]).encode()).hexdigest()[:16]
    readable = re.sub("[^a-z0-9_]+", "-", utterance.id.lower()).strip("-")[:40]
    return Path(digest[:2]) / f"{readable}-{digest}.flac"


def _outcomes(jobs: Sequence[_Job], workers: int) -> Generator[tuple[_Job, float | str]]:
    """Each job with the seconds of its speech, or why there is none."""
    with _processes(min(workers, math.ceil(len(jobs) / _CHUNK_SIZE))) as parallel_map:
        yield from zip(jobs, parallel_map(_run_job, jobs), strict=True)


@contextmanager
def _processes(count: int) -> Iterator[Callable[..., Iterator[float | str]]]:
    """A `map` over this many processes."""
    if count <= 1:
        yield map
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _initialize_worker)

    def parallel_map(work: Callable[[_Job], float | str], jobs: Sequence[_Job]) -> Iterator[float | str]:
        with _interrupts_blocked():  # the processes start here
            return pool.map(work, jobs, chunksize=_CHUNK_SIZE)

    try:
        yield parallel_map
    except (KeyboardInterrupt, Terminated, GeneratorExit):  # the remaining results are not needed
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    except BrokenProcessPool:
        raise InputError(
            "a process that synthesizes speech was killed, perhaps because memory ran out: use fewer --workers "
            "and continue with --resume"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Delays interrupts until the end of the block; processes started inside it leave interrupts to the parent."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _initialize_worker() -> None:
    """In a new process: ends it when its parent ends, for any reason."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _run_job(job: _Job) -> float | str:
    try:
        samples, rate = synthesize_text(job.text, job.voice, speed=job.speed, seed=job.seed)
    except InputError as error:
        return str(error)
    samples = soxr.resample(samples, rate, RATE, quality="VHQ")
    # Encoded in memory and written by Python, whose errors report a full disk; libsndfile's do not.
    encoded = io.BytesIO()
    soundfile.write(encoded, _sixteen_bits(samples), RATE, format="FLAC", subtype="PCM_16")
    with replacing(job.path) as temporary:
        temporary.write_bytes(encoded.getvalue())
    return len(samples) / RATE


def _sixteen_bits(samples: np.ndarray) -> np.ndarray:
    """int16; scaled down if resampling exceeds full scale, because clipping distorts."""
    peak = max(1.0, float(np.abs(samples).max()))
    return np.rint(samples * (32_767 / peak)).astype(np.int16)
