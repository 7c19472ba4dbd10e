"""Compare a diagnosis with the single commands that make the same measurements.

`OMP_NUM_THREADS=1 python analyses/performance/diagnosis.py` takes about 25 minutes of one core and writes
`diagnosis.json`: CPU seconds of `lsm-probe diagnose` and of the six commands on the same samples with the same options,
each in its own process. Every command measures all checkpoints.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from measuring import machine

import lsm_probe
from lsm_probe.data.manifest import write_manifest
from lsm_probe.diagnosis.plan import MAX_NEW_TOKENS, SOURCES, Plan, make_plan

LLM = "builtin:llm"
LSMS = ("builtin:vanilla_asr", "builtin:self_powered", "builtin:untrained")
TASK = {"title": "Transcription", "metrics": ["word_error_rate"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, nargs="+", default=[6, 24])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "diagnosis.json")
    options = parser.parse_args()
    runs = [compare(number) for number in options.utterances]
    found = {**machine("cpu"), "checkpoints": [*LSMS, LLM], "runs": runs}
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(options.out.read_text(encoding="utf-8"))


def compare(utterances: int) -> dict[str, Any]:
    """CPU seconds of the diagnosis and of each single command."""
    plan = make_plan(lsm_probe.read_manifest("builtin:commands"), with_base=True, utterances=utterances)
    with tempfile.TemporaryDirectory() as folder:
        seconds = {name: cpu_seconds(command) for name, command in commands(plan, Path(folder)).items()}
    single = sum(value for name, value in seconds.items() if name != "diagnose")
    return {
        "utterances": {part.name: len(part.samples) for part in plan.parts},
        "cpu_seconds": seconds,
        "single_commands": round(single, 1),
        "diagnose_divided_by_single_commands": round(seconds["diagnose"] / single, 3),
    }


def commands(plan: Plan, folder: Path) -> dict[str, list[str]]:
    """The commands by name, on files in this folder."""
    for part in plan.parts:
        write_manifest(part.samples, folder / f"{part.name}.jsonl")
    pool, task = folder / "pool.yaml", folder / "transcription.yaml"
    pool.write_text(yaml.safe_dump({"tasks": [each.model_dump() for each in plan.instructions.tasks]}), "utf-8")
    task.write_text(yaml.safe_dump(TASK), "utf-8")
    options = {part.name: part.options for part in plan.parts}
    scored = ["--instructions", str(pool), "--sources", str(SOURCES)]
    tokens = ["--max-new-tokens", str(MAX_NEW_TOKENS)]

    def command(name: str, checkpoints: tuple[str, ...], part: str, *given: str) -> list[str]:
        named = [word for each in checkpoints for word in ("--ckpt", each)]
        data = [] if name == "evaluate" else ["--data", str(folder / f"{part}.jsonl")]
        out = folder / ("diagnosis" if name == "diagnose" else part)
        return [name, *named, *data, "--out", str(out), *given]

    evaluated = f"{task}={folder / 'transcription.jsonl'}"
    longest = str(options["transcription"]["max_new_tokens"])
    base_responses = str(folder / "sensitivity" / LLM.replace(":", "-"))
    return {
        "diagnose": command("diagnose", LSMS, "attention", "--base", LLM, "--instructions", str(pool)),
        "attention": command("attention", (*LSMS, LLM), "attention", *tokens),
        "sensitivity": command("sensitivity", (*LSMS, LLM), "sensitivity", *tokens, *scored),
        "sensitivity on the base LLM's responses": command(
            "sensitivity", LSMS, "base-words", "--responses", base_responses, *scored
        ),
        "knockout": command("knockout", (*LSMS, LLM), "knockout", *tokens),
        "alignment": command(
            "alignment", LSMS, "alignment", "--perplexity", str(options["alignment"]["perplexity"])
        ),
        "transcription": command(
            "evaluate", LSMS, "transcription", "--task", evaluated, "--max-new-tokens", longest
        ),
    }  # fmt: skip


def cpu_seconds(command: list[str]) -> float:
    """CPU seconds of the command in its own process."""
    before = _used()
    subprocess.run([sys.executable, "-m", "lsm_probe", *command], check=True, stdout=subprocess.DEVNULL)
    print(f"{command[0]}: {_used() - before:.0f} CPU seconds", file=sys.stderr)
    return round(_used() - before, 1)


def _used() -> float:
    used: Any = resource.getrusage(resource.RUSAGE_CHILDREN)
    return float(used.ru_utime + used.ru_stime)


if __name__ == "__main__":
    main()
