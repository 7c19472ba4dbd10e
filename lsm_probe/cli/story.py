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
    rates = f"warmup={max(1, steps // 8)} learning_rate=5e-4 connector_learning_rate=2e-4 max_grad_norm=1"
    often = f"max_steps={steps} eval_steps={steps} machine.save_steps={steps} eval_limit=16"
    arms = "--ckpt builtin:vanilla_asr --ckpt OUT/repaired/model --ckpt builtin:self_powered"
    probed = f"--ckpt builtin:llm {arms} --data builtin:commands --max-new-tokens 32"
    # No more answers than the steps see.
    trained, held = f"--limit {min(96, 8 * steps)}", f"--limit {min(24, 8 * steps)}"
    tasks = "--task repetition --task sentiment --task keywords --max-new-tokens 32 --keep all"
    return [
        Step(
            "Speech to train on: household commands, spoken here, whose meaning is known.",
            "data commands --count 240 --out OUT/commands",
            "commands/test.transcription.jsonl",
        ),
        Step(
            "Self-powered data: SmolLM2 itself answers instructions about the transcripts.",
            f"augment --data OUT/commands/train.transcription.jsonl {trained} --out OUT/answers/train {tasks}",
            "answers/train/manifest.jsonl",
        ),
        Step(
            "The same for commands that nobody trains on: whether training gets anywhere.",
            f"augment --data OUT/commands/validation.transcription.jsonl {held} --out OUT/answers/validation {tasks}",
            "answers/validation/manifest.jsonl",
        ),
        Step(
            "The repair: builtin:vanilla_asr, trained on transcription alone, goes on with SmolLM2's answers.",
            "train mini/lora model.start=builtin:vanilla_asr train=OUT/answers/train/manifest.jsonl "
            f"eval=OUT/answers/validation/manifest.jsonl {often} {rates} --out OUT/repaired",
            "repaired/model",
        ),
        Step(
            "Where do the answers look, layer by layer: at the instruction or at the speech? Before, after, and "
            "after a longer repair (builtin:self_powered).",
            f"attention {probed} --limit {limit} --out OUT/attention",
            "attention/comparison.json",
        ),
        Step(
            "The same question without attention: what are instruction and speech worth to the answer?",
            f"sensitivity {probed} --limit {max(2, limit // 2)} --out OUT/sensitivity",
            "sensitivity/comparison.json",
        ),
        Step(
            "All of it on one page.",
            "report OUT/attention OUT/sensitivity --out OUT/report.html --no-notebook",
            "report.html",
        ),
        Step(
            "A guard for CI: has eta fallen against the checkpoint that was accepted? (Here it is to find something.)",
            "check --baseline OUT/attention/builtin-self_powered --current OUT/attention/builtin-vanilla_asr",
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
