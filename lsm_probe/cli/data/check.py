"""The report of `lsm-probe data validate`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from lsm_probe.cli.progress import progress
from lsm_probe.data.audio import check_audio_file, read_audio
from lsm_probe.data.manifest import scan_manifest
from lsm_probe.data.problems import Problems
from lsm_probe.data.sample import Sample, naming
from lsm_probe.errors import InputError

_KEYS = ("audio", "text", "target")
"""What is counted: an LSM needs the first, a text LLM the second, a reference response the third."""


def validate_and_report(
    manifest: Path, *, headers: bool, as_json: bool, ckpt: str | None = None, template: str | None = None
) -> None:
    """Prints every problem of a manifest on stderr, what is well on stdout."""
    check_text = None if ckpt is None else _text_check(ckpt, template)
    problems, tasks, keys = Problems(), Counter[str](), Counter[str](dict.fromkeys(_KEYS, 0))
    samples = list(scan_manifest(manifest, problems))
    with progress() as on_progress:
        for done, (place, sample) in enumerate(samples, start=1):
            before = len(problems.found)
            with problems.catching(place):
                _check(sample, headers)
                if check_text is not None:
                    check_text(sample)
            if len(problems.found) == before:
                tasks[sample.task or "no task"] += 1
                keys.update(key for key in _KEYS if getattr(sample, key) is not None)
            on_progress(str(manifest), done, len(samples))
    if as_json:
        usable = sum(tasks.values())
        print(json.dumps({"usable": usable, "with": keys, "tasks": tasks, "problems": problems.found}))
    else:
        for line in problems.found:
            print(line, file=sys.stderr)
        print(f"{manifest}: {sum(tasks.values())} samples usable, {len(problems.found)} not")
        print(f"  of those, {', '.join(f'{count} with {key}' for key, count in keys.items())}")
        for task, count in sorted(tasks.items()):
            print(f"  {task}: {count}")
    if not samples and not problems.found:
        raise InputError(f"{manifest} holds no sample; write one JSON object a line")
    if problems.found:
        raise InputError  # the lines above say what is wrong


def _check(sample: Sample, headers: bool) -> None:
    if sample.audio is None:
        return
    if headers:
        check_audio_file(sample.audio, sample.start, sample.duration)
    else:
        read_audio(sample)


def _text_check(ckpt: str, template: str | None) -> Callable[[Sample], None]:
    from lsm_probe.cli.progress import quiet_transformers
    from lsm_probe.models.loading import load_text_check

    quiet_transformers()
    refuse = load_text_check(ckpt, template=template)

    def check(sample: Sample) -> None:
        with naming(sample):
            refuse(sample.instruction, sample.text, sample.target)
            if sample.context is not None:  # a task writes it behind its instruction
                try:
                    refuse(sample.context, None, None)
                except InputError as error:
                    raise InputError(str(error).replace("instruction", "context")) from None

    return check
