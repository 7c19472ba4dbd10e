"""The demo's steps: each is a command line of this package, run as it is printed."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import typer

from lsm_probe.errors import InputError


@dataclass(frozen=True)
class Step:
    """One step of the story.

    Attributes:
        why: what it is for.
        command: what is run, without `lsm-probe`.
        makes: a file or folder that is there when the step is done, below the output folder.
        may_fail: whether exit code 1, "the check failed", is part of the story.
    """

    why: str
    command: str
    makes: str
    may_fail: bool = False


def story(*, steps: int, limit: int) -> list[Step]:
    """The steps; `OUT` stands for the output folder."""
    rate = f"max_steps={steps} eval_steps={steps} machine.save_steps={steps} eval_limit=16 warmup={max(1, steps // 8)}"
    checkpoints = "--ckpt builtin:llm --ckpt OUT/vanilla/model --ckpt OUT/self-powered/model"
    probed = f"{checkpoints} --data OUT/answers/test/manifest.jsonl --limit {limit} --response reference"
    tasks = "--task repetition --task sentiment --task keywords --max-new-tokens 32 --keep all"
    return [
        Step(
            "Speech to train on: household commands, spoken here, whose meaning is known.",
            "data commands --count 240 --out OUT/commands",
            "commands/test.transcription.jsonl",
        ),
        Step(
            "Self-powered data: SmolLM2 itself answers instructions about the transcripts.",
            f"augment --data OUT/commands/train.transcription.jsonl --limit 48 --out OUT/answers/train {tasks}",
            "answers/train/manifest.jsonl",
        ),
        Step(
            "The same for commands that nobody trains on: what the probes will ask.",
            f"augment --data OUT/commands/test.transcription.jsonl --out OUT/answers/test {tasks}",
            "answers/test/manifest.jsonl",
        ),
        Step(
            "Vanilla training: transcription alone. Nothing in it rewards reading the instruction.",
            "train mini/vanilla_asr train=OUT/commands/train.transcription.jsonl "
            f"eval=OUT/commands/validation.transcription.jsonl {rate} --out OUT/vanilla",
            "vanilla/model",
        ),
        Step(
            "Self-powered training: SmolLM2's answers as targets, which depend on the instruction.",
            "train mini/commands train=OUT/answers/train/manifest.jsonl "
            f"eval=OUT/answers/test/manifest.jsonl {rate} --out OUT/self-powered",
            "self-powered/model",
        ),
        Step(
            "Where do the answers look, layer by layer: at the instruction or at the speech?",
            f"attention {probed} --out OUT/attention",
            "attention/comparison.json",
        ),
        Step(
            "The same question without attention: what is the instruction worth to the answer?",
            f"sensitivity {probed} --out OUT/sensitivity",
            "sensitivity/comparison.json",
        ),
        Step(
            "All of it on one page.",
            "report OUT/attention OUT/sensitivity --out OUT/report.html --no-notebook",
            "report.html",
        ),
        Step(
            "A guard for CI: has eta fallen against the checkpoint that was accepted? (Here it is to find something.)",
            "check --baseline OUT/attention/self-powered-model --current OUT/attention/vanilla-model",
            "",
            may_fail=True,
        ),
    ]


def tell(out: Path, *, steps: int, limit: int, resume: bool) -> None:
    """Runs the steps one after another; with `resume` those whose output is there are passed over.

    Raises:
        InputError: `out` holds files and `resume` is False.
        typer.Exit: a step failed, with its code.
    """
    if not resume and out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out} holds files already: go on with --resume, or choose another folder")
    told = story(steps=steps, limit=limit)
    for number, step in enumerate(told, start=1):
        command = step.command.replace("OUT", shlex.quote(str(out)))
        print(f"\n[{number}/{len(told)}] {step.why}\n$ lsm-probe {command}\n", flush=True)
        if step.makes and (out / step.makes).exists():
            print("done before")
            continue
        code = _run(shlex.split(command))
        if code and not (step.may_fail and code == 1):
            raise typer.Exit(code)
    print(f"\nThe page to read: {out / 'report.html'}")


def _run(arguments: list[str]) -> int:
    """Runs a command of this package in this process; its exit code."""
    from lsm_probe.cli import app

    code = typer.main.get_command(app).main(arguments, prog_name="lsm-probe", standalone_mode=False)
    return code if isinstance(code, int) else 0
