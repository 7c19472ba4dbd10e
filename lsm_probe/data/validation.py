"""Check of a manifest: every line, every sound file, and the texts for a checkpoint's control tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsm_probe.data.audio import check_audio_file, read_audio
from lsm_probe.data.manifest import scan_manifest
from lsm_probe.data.problems import Problems
from lsm_probe.data.sample import Sample, naming

KEYS = ("audio", "text", "target")
"""Keys that are counted. An LSM needs `audio`, a text LLM `text`, and a reference response `target`."""

CheckTexts = Callable[[str, str | None, str | None], None]
"""Called with instruction, transcript and target; see [`lsm_probe.models.loading.load_text_check`]."""


@dataclass(frozen=True)
class Validation:
    """The content of a manifest."""

    tasks: dict[str, int]  # number of usable samples of each task
    keys: dict[str, int]  # number of usable samples that have each of `KEYS`
    problems: list[str]  # a line for each unusable sample: where, what, and how to fix it

    @property
    def usable(self) -> int:
        return sum(self.tasks.values())

    def to_dict(self) -> dict[str, Any]:
        return {"usable": self.usable, "with": self.keys, "tasks": self.tasks, "problems": self.problems}


def validate_manifest(
    manifest: Path,
    *,
    headers: bool = False,
    check_texts: CheckTexts | None = None,
    on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Validation:
    """Reads a manifest and decodes its sound files.

    Args:
        headers: read only the headers of sound files; much faster, but finds fewer problems.
        check_texts: refuses texts that a checkpoint's tokenizer would read as control tokens.
        on_progress: called with the manifest's name, samples done and all samples.

    Raises:
        InputError: the manifest cannot be read.
    """
    problems, tasks, keys = Problems(), Counter[str](), Counter[str](dict.fromkeys(KEYS, 0))
    samples = list(scan_manifest(manifest, problems))
    for done, (place, sample) in enumerate(samples, start=1):
        before = len(problems.found)
        with problems.catching(place):
            if sample.audio is not None and headers:
                check_audio_file(sample.audio, sample.start, sample.duration)
            elif sample.audio is not None:
                read_audio(sample)
            if check_texts is not None:
                with naming(sample):
                    _check_texts(sample, check_texts)
        if len(problems.found) == before:
            tasks[sample.task or "no task"] += 1
            keys.update(key for key in KEYS if getattr(sample, key) is not None)
        on_progress(str(manifest), done, len(samples))
    return Validation(dict(tasks), dict(keys), problems.found)


def _check_texts(sample: Sample, check_texts: CheckTexts) -> None:
    from lsm_probe.models.prompts import RefusedText  # half a second of torch, which a check without --ckpt is spared

    check_texts(sample.instruction, sample.text, sample.target)
    if sample.context is not None:  # a task writes it behind its instruction
        try:
            check_texts(sample.context, None, None)
        except RefusedText as error:
            raise error.renamed("context") from None
