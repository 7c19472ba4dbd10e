"""Kill training with SIGKILL and check that every run resumes and ends with the same weights.

python analyses/fault_tests/train_kills.py                       # 5 setups, 10 kills each: about 6 minutes
python analyses/fault_tests/train_kills.py --setup lora --kills 3

Each setup trains a tiny random LSM once without interruption. It then trains it repeatedly in new folders. These runs
are killed with SIGKILL (the whole process group) and resumed, until the number of kills is reached. One kill in three
happens while a checkpoint is written, the others at any moment of the run. Every resume must succeed. Every run must
end with the right number of steps, no unfinished checkpoint, and the weights of the uninterrupted run, bit for bit.

Writes train_kills.json beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Importing takes seconds. To save this time, one process imports and forks for every run.
SERVER = """
import json, os, sys
import lsm_probe.training.run
from lsm_probe.cli import main

def run(arguments, environment, log):
    os.setsid()
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = ["lsm-probe", *arguments]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 70
    sys.stdout.flush()
    os._exit(code)

print("ready", flush=True)
for line in sys.stdin:
    order, *given = json.loads(line)
    if order == "start":
        pid = os.fork()
        if not pid:
            run(*given)
        print(pid, flush=True)
    else:
        pid, status = os.waitpid(given[0], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
"""


class Launcher:
    """Start `lsm-probe` without import time, each time in its own process group."""

    def __enter__(self) -> Launcher:
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.kill()
        self._server.wait()

    def start(self, arguments: list[str], log: Path, *, processes: int = 1) -> Victim:
        """Starts one process, or several as `torchrun` does."""
        environments: list[dict[str, str]] = [{}]
        if processes > 1:
            common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
            environments = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        return Victim(self, [self.ask("start", arguments, given, str(log)) for given in environments], log)

    def ask(self, *order: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


@dataclass
class Victim:
    """A run in one process or several.

    Attributes:
        log: file for its output.
        codes: exit codes by process id, of those that have ended; negative for a signal.
    """

    launcher: Launcher
    pids: list[int]
    log: Path
    codes: dict[int, int] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        for pid in self.pids:
            if pid not in self.codes and (code := self.launcher.ask("poll", pid)) is not None:
                self.codes[pid] = code
        return len(self.codes) == len(self.pids)

    def wait(self, until: Callable[[], bool] = lambda: False, *, seconds: float = 300) -> int | None:
        """Waits for an event or the end, at most that long. Returns the exit code of the first process."""
        end = time.monotonic() + seconds
        while not self.ended and not until() and time.monotonic() < end:
            time.sleep(0.002)
        return self.codes.get(self.pids[0])

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process group of each process, data workers included."""
        for pid in self.pids:
            if pid not in self.codes:  # after it has ended and been waited for, its id may belong to another process
                os.killpg(pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        while not self.ended:
            time.sleep(0.002)


@dataclass(frozen=True)
class Setup:
    """A training setup.

    Attributes:
        config: a YAML file.
        changes: `key=value` on top.
        processes: number of processes that train together.
    """

    config: Path
    changes: tuple[str, ...] = ()
    processes: int = 1

    def start(self, launcher: Launcher, out: Path) -> Victim:
        arguments = ["train", str(self.config), *self.changes, "--out", str(out), "--resume"]
        return launcher.start(arguments, out.with_suffix(".log"), processes=self.processes)


SETUPS: dict[str, tuple[tuple[str, ...], int]] = {
    "full": ((), 1),
    "accumulation": (("machine.per_device_batch_size=2",), 1),
    "workers": (("machine.workers=2",), 1),
    "lora": (("strategy=lora", "lora.dropout=0.1"), 1),
    "two processes": (("machine.per_device_batch_size=2",), 2),
}


def undisturbed(launcher: Launcher, setup: Setup, out: Path) -> tuple[str, float]:
    """The hash of the weights of an uninterrupted run, and its seconds."""
    began = time.monotonic()
    code = setup.start(launcher, out).wait()
    assert code == 0, out.with_suffix(".log").read_text()
    return model_sha256(out), time.monotonic() - began


def trial(
    launcher: Launcher, setup: Setup, folder: Path, *, kills: int, seed: int, expected: str, seconds: float
) -> dict[str, Any]:
    """Kill runs in `folder` until the number of kills is reached, let each finish, and count the errors.

    Args:
        expected: hash of the weights of an undisturbed run.
        seconds: duration of such a run.
    """
    rng = random.Random(seed)
    outcome: dict[str, Any] = {"kills": 0, "kills_while_saving": 0, "starts": 0, "failed": [], "hashes_differ": 0}
    hashes: list[str] = []
    while outcome["kills"] < kills and not outcome["failed"]:
        out = folder / f"run-{len(hashes)}"
        while not outcome["failed"] and not is_complete(out / "model"):
            outcome["starts"] += 1
            victim = setup.start(launcher, out)
            if outcome["kills"] < kills:
                _disturb(victim, out, rng, seconds)
            else:
                victim.wait()
            if not victim.ended:
                if outcome["kills"] == kills:
                    outcome["failed"].append("hangs")
                outcome["kills"] += 1
                outcome["kills_while_saving"] += bool(unfinished(out))
                victim.kill()
            elif any(victim.codes.values()):
                outcome["failed"].append(victim.log.read_text()[-500:])
        if not outcome["failed"]:
            hashes.append(model_sha256(out))
            outcome["failed"] += [f"left unfinished: {path.name}" for path in unfinished(out)]
    return outcome | {"runs": len(hashes), "hashes_differ": sum(found != expected for found in hashes)}


def _disturb(victim: Victim, out: Path, rng: random.Random, seconds: float) -> None:
    """Wait for the moment of a kill: during a save, or any."""
    if rng.random() < 1 / 3:
        saves = rng.randint(1, 3)
        met: set[Path] = set()

        def in_save() -> bool:
            met.update(unfinished(out))
            return len(met) >= saves and bool(unfinished(out))

        victim.wait(in_save)
        time.sleep(rng.uniform(0, 0.02))
    else:
        victim.wait(seconds=rng.uniform(0, seconds))


def is_complete(folder: Path) -> bool:
    return (folder / "checksums.json").exists()


def unfinished(out: Path) -> list[Path]:
    """Checkpoints without their last file."""
    return [path for path in out.glob("checkpoint-*") if not is_complete(path)]


def model_sha256(out: Path) -> str:
    return hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()


def _free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


def write_tiny(folder: Path) -> Path:
    """Random models, noise to train on, and a config; returns the config."""
    import numpy as np
    import soundfile
    import torch
    import yaml
    from transformers import (
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperModel,
    )

    from lsm_probe import assets

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(assets.language_model()))
    tokenizer.save_pretrained(folder / "llm")
    llm = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(llm).save_pretrained(folder / "llm")
    whisper = {f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in _TINY_WHISPER.items()}
    WhisperModel(WhisperConfig(d_model=32, **whisper)).save_pretrained(folder / "encoder")
    WhisperFeatureExtractor().save_pretrained(folder / "encoder")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(38):
        soundfile.write(folder / f"{i}.wav", 0.05 * rng.normal(size=4_000 * (1 + i % 4)), 16_000)
        target = "The quick brown fox jumps. " * (1 + i % 3)
        rows.append({"id": f"s{i}", "instruction": "Repeat it.", "audio": f"{i}.wav", "target": target})
    for name, part in (("train", rows[:34]), ("eval", rows[34:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    connector = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    parts = {"encoder": str(folder / "encoder"), "llm": str(folder / "llm"), "encoder_context": "trimmed"}
    settings = {
        "model": parts | {"connector": connector | {"dropout": 0.1}},
        "train": str(folder / "train.jsonl"),
        "eval": str(folder / "eval.jsonl"),
        "eval_steps": 8,
        "batch_size": 4,
        "epochs": 3,  # of 9 steps, the last of 2 samples
        "learning_rate": 1e-3,
        "warmup": 4,
        "machine": {"device": "cpu", "per_device_batch_size": 4, "save_steps": 2, "log_steps": 1, "report_to": []},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


_TINY_WHISPER = {"layers": 1, "attention_heads": 4, "ffn_dim": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", choices=[*SETUPS, "all"], default="all")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("lsm-probe", "torch", "transformers", "accelerate", "peft")},
        "setups": {},
    }
    with tempfile.TemporaryDirectory() as temporary, Launcher() as launcher:
        config = write_tiny(Path(temporary))
        for name in SETUPS if given.setup == "all" else [given.setup]:
            setup = Setup(config, *SETUPS[name])
            folder = Path(temporary) / name.replace(" ", "-")
            folder.mkdir()
            expected, seconds = undisturbed(launcher, setup, folder / "undisturbed")
            outcome = trial(
                launcher, setup, folder, kills=given.kills, seed=given.seed, expected=expected, seconds=seconds
            )
            result["setups"][name] = {"seconds_undisturbed": round(seconds, 1), **outcome}
            print(name, result["setups"][name], flush=True)
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
