"""Training and held-out samples of a stage, and two controls that test whether the model uses its inputs."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from itertools import islice
from pathlib import Path

from lsm_probe.data.audio import check_audio_file
from lsm_probe.data.audio_bytes import AudioBytes
from lsm_probe.data.manifest import scan_manifest
from lsm_probe.data.problems import OnError, Problems
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError


def read_samples(
    manifests: Sequence[Path], *, tasks: Sequence[str] | None, limit: int | None, on_error: OnError
) -> list[Sample]:
    """Reads the samples of all manifests in their order. The same id may occur in several.

    Raises:
        InputError: a manifest cannot be read, a line or a sample is unusable (with `on_error` "fail"), or no sample is
            left.
    """
    problems = Problems()
    found: list[Sample] = []
    for manifest in manifests:
        wanted = (entry for entry in scan_manifest(manifest, problems) if tasks is None or entry[1].task in tasks)
        for place, sample in islice(wanted, limit):
            with problems.catching(place):
                found.append(_trainable(sample))
    problems.settle(on_error)
    if not found:
        of_task = f" of task {' or '.join(tasks)}" if tasks else ""
        raise InputError(f"{', '.join(map(str, manifests))}: no usable sample{of_task}")
    return found


def _trainable(sample: Sample) -> Sample:
    if sample.audio is None:
        raise InputError(f"sample {sample.id!r}: has no audio; add 'audio' to it, or leave the sample out")
    if not sample.target or not sample.target.strip():
        raise InputError(f"sample {sample.id!r}: has no target; add 'target', the response that is to be learned")
    if sample.context is not None:
        raise InputError(f"sample {sample.id!r}: has a context, which no prompt template takes yet; leave it out")
    seconds(sample.audio, sample.start, sample.duration)
    return sample


def seconds(audio: Path | AudioBytes, start: float, duration: float | None) -> float:
    """Length of a section of a sound file, from its header.

    Samples of several tasks share their speech, so each header is read only once, and again if the file changes.

    Raises:
        InputError: the file or the section cannot be used.
    """
    if isinstance(audio, AudioBytes):  # not cached, so that the cache does not keep the bytes in memory
        return check_audio_file(audio, start, duration)
    return _seconds(audio, start, duration, file_state(audio))


@cache
def _seconds(audio: Path, start: float, duration: float | None, _: object) -> float:
    return check_audio_file(audio, start, duration)


def file_state(path: Path) -> tuple[int, int] | None:
    """Time and size of a file, to detect changes; None if the file does not exist."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size


def with_speech_shuffled(samples: Sequence[Sample], seed: int) -> list[Sample] | None:
    """Each sample with the speech of another utterance; None if there is only one utterance.

    If a model ignores the speech, its loss on these equals that on the true samples.
    """
    return _with_others(samples, seed, lambda sample: sample.utterance, ("audio", "start", "duration", "text"))


def with_instructions_shuffled(samples: Sequence[Sample], seed: int) -> list[Sample] | None:
    """Each sample with the instruction of another task (of another wording if there is one task, or if tasks share
    wordings); None if all have the same instruction.

    If a model ignores the instruction, its loss on these equals that on the true samples.
    """
    wordings = {sample.instruction for sample in samples}
    tasks = {sample.task for sample in samples}
    # If tasks share wordings, another task's instruction may be the sample's own.
    by_task = len(tasks) > 1 and len({(sample.task, sample.instruction) for sample in samples}) == len(wordings)
    key = (lambda sample: sample.task) if by_task else (lambda sample: sample.instruction)
    return _with_others(samples, seed, key, ("instruction",))


def _with_others(
    samples: Sequence[Sample], seed: int, key: Callable[[Sample], Hashable], fields: Sequence[str]
) -> list[Sample] | None:
    """Each sample with the `fields` of one with another `key`, each used about once; None if all have the same key."""
    groups: dict[Hashable, list[int]] = {}
    for i in random.Random(seed).sample(range(len(samples)), len(samples)):
        groups.setdefault(key(samples[i]), []).append(i)
    if len(groups) < 2:
        return None
    # With samples grouped by key, rotating the list by the largest group's size gives every sample one from another
    # group. If that group has more than half of all samples, those left in it take from the other groups in turn.
    order = [i for group in sorted(groups.values(), key=len, reverse=True) for i in group]
    largest = max(map(len, groups.values()))
    partner = {order[k]: order[(k + largest) % len(order)] for k in range(len(order))}
    rest = order[largest:]
    for n, i in enumerate(order[:largest]):
        if key(samples[i]) == key(samples[partner[i]]):
            partner[i] = rest[n % len(rest)]
    return [
        sample.model_copy(update={field: getattr(samples[partner[i]], field) for field in fields})
        for i, sample in enumerate(samples)
    ]
