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
    """Reads the samples of all manifests in their order. The same id may stand in several.

    Raises:
        InputError: a manifest cannot be read, a line or a sample is unusable (with `on_error` "fail"), or none is left.
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
    """Length of a section of a sound file, by its header.

    Samples of several tasks share their speech: a header is read once, and again when the file has changed.

    Raises:
        InputError: the file or the section cannot be used.
    """
    if isinstance(audio, AudioBytes):  # not kept alive by the cache
        return check_audio_file(audio, start, duration)
    return _seconds(audio, start, duration, file_state(audio))


@cache
def _seconds(audio: Path, start: float, duration: float | None, _: object) -> float:
    return check_audio_file(audio, start, duration)


def file_state(path: Path) -> tuple[int, int] | None:
    """What differs when a file has changed: its time and its size; None where there is no such file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size


def with_speech_shuffled(samples: Sequence[Sample], seed: int) -> list[Sample] | None:
    """Each sample with the speech of another utterance; None where there is but one utterance.

    A model that ignores the speech has as low a loss on these as on the true ones.
    """
    return _with_others(samples, seed, lambda sample: sample.utterance, ("audio", "start", "duration", "text"))


def with_instructions_shuffled(samples: Sequence[Sample], seed: int) -> list[Sample] | None:
    """Each sample with the instruction of another task (of another wording where there is one task, or tasks share
    wordings); None where all have the same.

    A model that ignores the instruction has as low a loss on these as on the true ones.
    """
    wordings = {sample.instruction for sample in samples}
    tasks = {sample.task for sample in samples}
    # Another task's instruction may be the sample's own where tasks share wordings.
    by_task = len(tasks) > 1 and len({(sample.task, sample.instruction) for sample in samples}) == len(wordings)
    key = (lambda sample: sample.task) if by_task else (lambda sample: sample.instruction)
    return _with_others(samples, seed, key, ("instruction",))


def _with_others(
    samples: Sequence[Sample], seed: int, key: Callable[[Sample], Hashable], fields: Sequence[str]
) -> list[Sample] | None:
    """Each sample with the `fields` of one with another `key`, each chosen about once; None where all have one key."""
    groups: dict[Hashable, list[int]] = {}
    for i in random.Random(seed).sample(range(len(samples)), len(samples)):
        groups.setdefault(key(samples[i]), []).append(i)
    if len(groups) < 2:
        return None
    # Grouped by key, the list turned by the size of the largest group brings every sample to another group, unless
    # that group is more than half of all; what it leaves in place takes from the rest in turn.
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
