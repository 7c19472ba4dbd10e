"""The demo: speech anchor bias and its repair, in steps that are command lines of this package."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

from lsm_probe import assets
from lsm_probe.errors import CheckFailed, InputError
from lsm_probe.files import check_can_write, replacing
from lsm_probe.training.config import read_config
from lsm_probe.training.timing import seconds_per_sample

PLANNED_SECONDS = 330
"""Planned duration of the whole demo, without downloads."""
_SIZE = "repair.json"
_ANSWERS = "--instructions smollm2 --max-new-tokens 24 --keep finished"
_BUILTIN = "--ckpt builtin:vanilla_asr --ckpt builtin:self_powered"
_RESUMABLE = ("diagnose", "data", "augment", "train")


@dataclass(frozen=True)
class Step:
    """One step: `OUT` in its command is the output folder; `makes` is a path below it that exists when the step is
    done."""

    why: str
    command: str
    makes: str
    may_fail: bool = False


@dataclass(frozen=True)
class TrainingSize:
    """Optimizer steps of the repair, and the samples in each."""

    steps: int
    batch: int


FULL = TrainingSize(40, 8)
_SMALLEST = TrainingSize(24, 4)


def diagnosis_steps(utterances: int) -> list[Step]:
    """The steps before the training."""
    return [
        Step(
            "Diagnose two small speech LLMs that come with the package: do they follow the instruction, or do they "
            "ignore it and repeat the speech? builtin:vanilla_asr was trained on transcription alone, and "
            "builtin:self_powered on self-powered data, which repairs the bias. builtin:llm is the text LLM inside "
            "both.",
            f"diagnose {_BUILTIN} {_diagnosed(utterances)}",
            "diagnosis/report.html",
        ),
        Step(
            "Synthesise speech to train on: household commands.",
            "data commands --count 240 --out OUT/commands",
            "commands/test.transcription.jsonl",
        ),
    ]


def repair_steps(size: TrainingSize, utterances: int) -> list[Step]:
    """The steps that train the biased model on self-powered data, and measure it again."""
    rates = f"warmup={max(1, size.steps // 8)} learning_rate=5e-4 connector_learning_rate=2e-4 max_grad_norm=1"
    sizes = f"max_steps={size.steps} batch_size={size.batch} machine.per_device_batch_size={size.batch}"
    saved = f"machine.save_steps={size.steps} machine.log_steps=1"
    return [
        Step(
            "Generate self-powered training data: SmolLM2, the text LLM inside the models, answers instructions about "
            "the transcripts.",
            f"augment --data OUT/commands/train.transcription.jsonl --limit {min(192, size.steps * size.batch)} "
            f"--out OUT/answers {_ANSWERS}",
            "answers/manifest.jsonl",
        ),
        Step(
            "Repair builtin:vanilla_asr: train it on SmolLM2's answers.",
            "train mini/lora model.start=builtin:vanilla_asr train=OUT/answers/manifest.jsonl 'eval=[]' "
            f"{sizes} {saved} {rates} --out OUT/repaired",
            "repaired/model",
        ),
        Step(
            "Diagnose the repaired model as well. What was measured before is not measured again.",
            f"diagnose {_BUILTIN} --ckpt OUT/repaired/model {_diagnosed(utterances)}",
            "",
        ),
        Step(
            "Run a regression check, as in CI: is eta lower than in the baseline? This check is expected to fail, "
            "because the baseline is builtin:self_powered and the current result is from builtin:vanilla_asr.",
            "check --baseline OUT/diagnosis/attention/builtin-self_powered "
            "--current OUT/diagnosis/attention/builtin-vanilla_asr",
            "",
            may_fail=True,
        ),
    ]


def run_demo(
    run_command: Callable[[list[str]], object], out: Path, *, size: TrainingSize | None, utterances: int, resume: bool
) -> None:
    """Run the steps one after another.

    Args:
        run_command: runs a command line of this package, and raises if it fails.
        out: the output folder.
        size: size of the training; None chooses what fits into [`PLANNED_SECONDS`] on this machine. A resumed demo
            keeps the size it was started with.
        utterances: number of utterances that are measured.
        resume: continue where an earlier demo stopped.

    Raises:
        InputError: `out` holds files and `resume` is False.
        CommandError: a step failed.
    """
    check_can_write("--out", out, folder=True)
    if not resume and out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out} holds files already: continue with --resume, or choose another folder")
    first = diagnosis_steps(utterances)
    total = len(first) + len(repair_steps(FULL, utterances))
    assets.speech_encoder()
    assets.language_model()
    begun = monotonic()
    seconds = _run_steps(run_command, first, out, number=1, total=total)
    earlier = _earlier_size(out)
    if earlier and size not in (None, earlier):
        print(
            f"The training keeps the size that the demo was started with: {earlier.steps} steps of {earlier.batch} "
            "samples"
        )
    size = earlier or size or _fitting_size(out, PLANNED_SECONDS - (monotonic() - begun), seconds)
    with replacing(out / _SIZE) as temporary:
        temporary.write_text(json.dumps(asdict(size)) + "\n", encoding="utf-8")
    _run_steps(run_command, repair_steps(size, utterances), out, number=1 + len(first), total=total)
    print(f"\nThe demo took {(monotonic() - begun) / 60:.1f} minutes. Open {out / 'diagnosis' / 'report.html'}")


def _diagnosed(utterances: int) -> str:
    return f"--base builtin:llm --quick --data builtin:commands --utterances {utterances} --out OUT/diagnosis"


def _run_steps(
    run_command: Callable[[list[str]], object], steps: Sequence[Step], out: Path, *, number: int, total: int
) -> list[float]:
    """Runs the steps, and returns the seconds that each took."""
    seconds = []
    for i, step in enumerate(steps, start=number):
        command = step.command.replace("OUT", shlex.quote(str(out)))
        arguments = shlex.split(command)
        own = Path(arguments[arguments.index("--out") + 1]) if arguments[0] in _RESUMABLE else None
        if own is not None and own.is_dir() and any(not entry.name.startswith(".") for entry in own.iterdir()):
            command, arguments = f"{command} --resume", [*arguments, "--resume"]
        print(f"\n[{i}/{total}] {step.why}\n$ lsm-probe {command}\n", flush=True)
        begun = monotonic()
        if step.makes and (out / step.makes).exists():
            print("already done")
        else:
            try:
                run_command(arguments)
            except CheckFailed:
                if not step.may_fail:
                    raise
        seconds.append(monotonic() - begun)
    return seconds


def _earlier_size(out: Path) -> TrainingSize | None:
    try:
        return TrainingSize(**json.loads((out / _SIZE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _fitting_size(out: Path, seconds_left: float, diagnosis_seconds: Sequence[float]) -> TrainingSize:
    """The training that fits into the remaining time, minus later steps; never below the smallest useful one."""
    print("\nTiming two training passes to choose a training size for this machine", flush=True)
    data = out / "commands" / "train.transcription.jsonl"
    each = seconds_per_sample(
        read_config("mini/lora", ["model.start=builtin:vanilla_asr", f"train={shlex.quote(str(data))}"])
    )
    after = diagnosis_seconds[0] / 2  # one model instead of three, with longer responses than builtin:vanilla_asr's
    size = largest_training(seconds_left - after, each)
    print(
        f"{each:.2f} s per sample: the repair takes {size.steps} steps of {size.batch} samples, about "
        f"{size.steps * size.batch * each:.0f} s (--full takes {FULL.steps} steps of {FULL.batch}, about "
        f"{FULL.steps * FULL.batch * each / 60:.0f} minutes)",
        flush=True,
    )
    return size


def largest_training(seconds: float, seconds_per_sample: float) -> TrainingSize:
    """The largest training up to [`FULL`] that takes at most `seconds`, with 30 s for loading, encoding and saving."""
    passes = (seconds - 30) / seconds_per_sample
    if passes >= FULL.steps * FULL.batch:
        return FULL
    return TrainingSize(min(FULL.steps, max(_SMALLEST.steps, int(passes / _SMALLEST.batch))), _SMALLEST.batch)
