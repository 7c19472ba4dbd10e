"""Kill self-powered generation with SIGKILL and check that no row is lost, repeated, damaged or changed.

python analyses/fault_tests/augment_kills.py                              # both engines, 8 kills x 4 seeds: 15 minutes
python analyses/fault_tests/augment_kills.py --engine local --kills 2 --seeds 1

Each trial runs `lsm-probe augment` in its own session and kills the whole process group with SIGKILL at random moments:
one in four during the start, the others after the work has begun. It then continues with --resume until the run is
complete, and compares every row with those of an uninterrupted run. The in-process engine answers with a tiny random
Llama. The datatrove engine uses a server in this process, which survives the kills. The server is slow and gives the
same answer to the same prompt. Every other trial has two workers. Shards are small, so that kills happen between shards
and inside them.

Writes augment_kills.json beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq

from lsm_probe import load
from lsm_probe.data.augmentation import local
from lsm_probe.data.augmentation import rank_progress as ranks
from lsm_probe.data.augmentation.at_scale import augment_at_scale
from lsm_probe.data.augmentation.recipe import Recipe
from lsm_probe.data.augmentation.run import augment
from lsm_probe.data.augmentation.servers import find_server
from lsm_probe.data.manifest import read_manifest
from lsm_probe.models.lookup import load_prompter

ENGINES = ("local", "datatrove")
SHARD_ROWS = 8
BATCH = 4
RECIPE: dict[str, Any] = {"max_new_tokens": 24, "max_prompt_tokens": 500, "keep": "all"}
VICTIM = (
    "from lsm_probe.data.augmentation import local, rank_progress as ranks; "
    f"local.SHARD_ROWS = ranks.SHARD_ROWS = {SHARD_ROWS}; "
    "from lsm_probe.cli import main; main()"
)

Answer = Callable[[list[int], int], tuple[str, str, int]]
"""Function from prompt and maximum length to text, finish reason and tokens of the answer."""


class CompletionServer:
    """`/v1/models` and `/v1/completions` for prompts of token ids, on a free port of this machine.

    Args:
        answer: function from a prompt to the answer; a ValueError becomes status 400.
        model: the name it serves.
    """

    def __init__(self, answer: Answer, model: str = "tiny") -> None:
        self.answer, self.model = answer, model
        self.prompts: list[list[int]] = []
        """Those met, in order; the first is the one that a client tries the server out with, each time it starts."""

    def __enter__(self) -> CompletionServer:
        self._http = _Http(("127.0.0.1", 0), _handler(self))
        self.url = f"http://localhost:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def requests(self) -> int:
        """Number of prompts received, without test requests."""
        return sum(prompt != self.prompts[0] for prompt in self.prompts)

    def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": self.model, "object": "model"}]}

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        prompt = request["prompt"]
        if not all(isinstance(token, int) for token in prompt) or request["temperature"] != 0:
            raise ValueError("give token ids and temperature 0")
        self.prompts.append(prompt)
        text, finish_reason, tokens = self.answer(prompt, request["max_tokens"])
        usage = {"prompt_tokens": len(prompt), "completion_tokens": tokens, "total_tokens": len(prompt) + tokens}
        return {"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}], "usage": usage}


class _Http(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Ignore broken connections, because clients are killed on purpose."""


def _handler(server: CompletionServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, server.models())

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                self._send(200, server.complete(request))
            except ValueError as error:
                self._send(400, {"error": {"message": str(error), "type": "BadRequestError"}})

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def slow_answer(prompt: list[int], max_tokens: int) -> tuple[str, str, int]:
    """The same text for the same prompt, after 50 to 250 ms."""
    digest = hashlib.sha256(json.dumps(prompt).encode()).hexdigest()
    time.sleep(0.05 + 0.2 * int(digest[:4], 16) / 0xFFFF)
    return f" Answer {digest} — “é”.\n", "stop", max_tokens


@dataclass
class Bench:
    """The state that all trials of an engine share.

    Attributes:
        engine: `local` or `datatrove`.
        llm: folder of the text LLM.
        data: the manifest.
        expected: sample id -> row, of an uninterrupted run.
        server: the server of the datatrove engine.
    """

    engine: str
    llm: Path
    data: Path
    server: CompletionServer | None = None
    expected: dict[str, dict[str, Any]] = field(default_factory=dict)

    def command(self, out: Path, workers: int) -> list[str]:
        options = [f"--{name.replace('_', '-')}={value}" for name, value in RECIPE.items()]
        options += [f"--data={self.data}", f"--llm={self.llm}", f"--out={out}", f"--batch-size={BATCH}", "--resume"]
        if self.server is None:
            options += ["--device=cpu"]
        else:
            options += [f"--server={self.server.url}", f"--workers={workers}"]
        return [sys.executable, "-c", VICTIM, "augment", *options]

    def work_done(self, out: Path) -> int:
        """Number of answers requested by all runs, or of rows written."""
        return len(rows_of(out)[0]) if self.server is None else self.server.requests


@contextmanager
def prepared(engine: str, llm: Path, folder: Path, samples: int) -> Iterator[Bench]:
    """Data, the server if the engine has one, and the rows of an uninterrupted run."""
    folder.mkdir(parents=True)
    data = folder / "data.jsonl"
    rows = [
        {
            "id": f"s{i}",
            "instruction": "-",
            "text": f"the quick brown fox number {i} jumps over {'a lazy dog ' * (i % 9)}.",
        }
        for i in range(samples)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = folder / "whole"
    recipe, read = Recipe(**RECIPE), read_manifest(data)
    with patch.object(local, "SHARD_ROWS", SHARD_ROWS), patch.object(ranks, "SHARD_ROWS", SHARD_ROWS):
        if engine == "local":
            bench = Bench(engine, llm, data)
            augment(load(llm, device="cpu"), read, whole, recipe, batch_size=BATCH)
            bench.expected = rows_of(whole)[0]
            yield bench
            return
        with CompletionServer(slow_answer) as server:
            bench, prompter = Bench(engine, llm, data, server), load_prompter(llm)
            found = find_server(server.url, prompter)
            augment_at_scale(prompter, read, whole, recipe, server=found, in_flight=32)
            bench.expected = rows_of(whole)[0]
            yield bench


def trial(bench: Bench, out: Path, *, kills: int, seed: int, window: float) -> dict[str, Any]:
    """Kill one run `kills` times, let it finish, and count the errors.

    Args:
        window: seconds; the longest time from the start of the work to a kill.
    """
    rng = random.Random(seed)
    workers = 1 + seed % 2
    start = bench.work_done(out)
    moments: list[int] = []  # work done at each kill
    while len(moments) < kills:
        process = _start(bench.command(out, workers), out)
        began_with = bench.work_done(out)

        def at_work(began_with: int = began_with) -> bool:
            return bench.work_done(out) != began_with

        if rng.random() < 0.25:
            _wait(process, lambda: False, rng.uniform(0, 4))
        else:
            _wait(process, at_work, 120)
            _wait(process, lambda: False, rng.uniform(0, window))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        moments.append(bench.work_done(out) - start)
    process = _start(bench.command(out, workers), out)
    code = process.wait(timeout=300)
    rows, repeated, torn = rows_of(out)
    draws = ("task", "instruction_id", "instruction")
    shared = rows.keys() & bench.expected.keys()
    outcome = {
        "seed": seed,
        "kills": len(moments),
        "answers_at_kills": moments,
        "exit_code": code,
        "rows": len(rows),
        "lost": len(bench.expected.keys() - rows.keys()),
        "repeated": repeated,
        "torn": torn + _torn_lines(out / "manifest.jsonl"),
        "draws_changed": sum(any(rows[i][key] != bench.expected[i][key] for key in draws) for i in shared),
        "rows_changed": sum(rows[i] != bench.expected[i] for i in shared),
    }
    if bench.server is not None:
        needed = sum(row["finish_reason"] in ("stop", "length") for row in bench.expected.values())
        outcome |= {"workers": workers, "requests": bench.work_done(out) - start, "requests_needed": needed}
    return outcome


def rows_of(out: Path) -> tuple[dict[str, dict[str, Any]], int, int]:
    """Rows by sample id, the number of repeated rows, and the number of unreadable files."""
    rows: list[dict[str, Any]] = []
    torn = 0
    for path in sorted((out / "shards").glob("[!.]*.parquet")):
        try:
            rows += pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowException):
            torn += 1
    counts = Counter(row["sample_id"] for row in rows)
    return {row["sample_id"]: row for row in rows}, counts.total() - len(counts), torn


def _torn_lines(path: Path) -> int:
    torn = 0
    for line in path.read_bytes().splitlines() if path.exists() else [b"missing"]:
        try:
            json.loads(line)
        except ValueError:
            torn += 1
    return torn


def _start(command: list[str], out: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)


def _wait(process: subprocess.Popen[bytes], until: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None and not until():
        time.sleep(0.005)


def tiny_llm(folder: Path) -> Path:
    """A random Llama of two layers with the embedded LLM's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from lsm_probe import assets

    tokenizer = AutoTokenizer.from_pretrained(str(assets.language_model()))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=[*ENGINES, "both"], default="both")
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--window", type=float, default=1.0, help="seconds; see trial()")
    given = parser.parse_args()
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("lsm-probe", "datatrove", "torch", "transformers", "pyarrow")},
        "samples": given.samples,
        "shard_rows": SHARD_ROWS,
        "engines": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        llm = tiny_llm(folder / "llm")
        for engine in ENGINES if given.engine == "both" else [given.engine]:
            with prepared(engine, llm, folder / engine, given.samples) as bench:
                trials = []
                for seed in range(given.seeds):
                    out = folder / engine / f"out-{seed}"
                    trials.append(trial(bench, out, kills=given.kills, seed=seed, window=given.window))
                    print(engine, trials[-1], flush=True)
            result["engines"][engine] = trials
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
