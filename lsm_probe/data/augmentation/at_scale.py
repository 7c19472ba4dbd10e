"""Generation at scale: datatrove's `InferenceRunner` with vLLM or any OpenAI-compatible server, to the same shards.

The data is split into ranks, each with its own checkpoint, so a killed run resumes without losing or repeating rows.
Prompts are sent as the token ids of the in-process engine, because servers add their own tokens to text.

With `VLLM_BATCH_INVARIANT=1` (beta; GPUs of compute capability 8.0 or higher), vLLM's responses do not depend on which
prompts are batched together. Without it, another run rounds differently and sometimes gives another response.

On a cluster, pass the steps to one of datatrove's executors:

    out, llm, samples = Path("out"), load_prompter("lmsys/vicuna-7b-v1.5"), read_manifest("clips.jsonl")
    write_samples(out, samples)
    steps = generation_steps(out, llm, Recipe(), find_server("vllm", llm))
    SlurmPipelineExecutor(steps, tasks=16, logging_dir="out/logs", time="20:00:00", partition="gpu").run()
    ...
    collect(out, [sample.id for sample in samples])  # when the tasks are done
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from lsm_probe.data.augmentation import rank_progress
from lsm_probe.data.augmentation.collect import SHARDS, collect
from lsm_probe.data.augmentation.plan import digest, make_job
from lsm_probe.data.augmentation.rank_progress import CHECKPOINTS, LOGS, SHARD_NAME, split
from lsm_probe.data.augmentation.recipe import Recipe
from lsm_probe.data.augmentation.servers import IN_FLIGHT, Server
from lsm_probe.data.augmentation.shards import SCHEMA
from lsm_probe.data.manifest import manifest_writer
from lsm_probe.data.problems import OnError, Problems
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.extras import install_command
from lsm_probe.folders import work_folder
from lsm_probe.models.prompter import Prompter
from lsm_probe.models.thinking import find_thought_in_text, without_special_tokens

if TYPE_CHECKING:
    from datatrove.data import Document

SAMPLES = "samples.jsonl"
"""File in the output folder with the samples to answer; each rank reads its own lines."""

REFUSED = "refused by the server"
"""Reason for dropping a prompt that the server rejects as a bad request."""


def augment_at_scale(
    llm: Prompter,
    samples: Sequence[Sample],
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    server: Server,
    workers: int = 1,
    in_flight: int = IN_FLIGHT,
    resume: bool = False,
    on_error: OnError = "fail",
    problems: Problems | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Makes self-powered data as [`augment`] does, with responses from a server.

    Writes the files of `augment`, and `samples.jsonl`, `checkpoints/` and `logs/`. Prompts that the server refuses are
    dropped and counted.

    Args:
        llm: the text LLM that the server runs.
        samples, out, recipe, resume, on_error, problems: as in [`augment`].
        server: the server; see [`find_server`].
        workers: processes that send prompts in parallel; a resumed run uses as many as at its start.
        in_flight: number of simultaneous requests of each process.
        on_progress: called every second with rows done and rows in all.

    Returns:
        The report; see [`collect`]. Its seconds are None, because the server's time is not measured.

    Raises:
        InputError: datatrove is not installed, samples or folder cannot be used, or the server failed.
    """
    require_datatrove()
    out, recipe, shard_rows = Path(out), recipe or Recipe(), rank_progress.SHARD_ROWS
    if server.url is None and workers > 1:
        raise InputError(
            "--workers is for a running server; for several GPUs start one, `vllm serve LLM --generation-config vllm "
            "--data-parallel-size N`, and give --server http://localhost:8000"
        )
    problems = problems or Problems()
    for sample in samples:
        if sample.text is None:
            problems.add(f"sample {sample.id!r}", "has no transcript; add 'text' to it")
    problems.settle(on_error)
    samples = [sample for sample in samples if sample.text is not None]
    if not samples:
        raise InputError("no sample has a transcript; add 'text' to the manifest")
    config = {
        "command": "augment",
        "engine": {"name": "datatrove", **server.to_dict(), "workers": workers, "shard_rows": shard_rows},
        "llm": {"name": llm.name, "template": llm.template.name, **llm.identity.to_dict()},
        "data_sha256": digest(samples),
        "recipe": recipe.to_dict(),
    }
    with work_folder(out, config, resume=resume):
        parts = split(out, len(samples), workers, shard_rows)
        unfinished = [part for part in parts if not part.is_finished]
        if unfinished:
            for part in unfinished:  # datatrove marks a rank complete even if a row could not be saved
                part.completion_marker.unlink(missing_ok=True)
            write_samples(out, samples)
            steps = partial(generation_steps, out, llm, recipe, server, in_flight=in_flight, shard_rows=shard_rows)
            _run(steps, out, workers, lambda: on_progress(sum(part.rows_done() for part in parts), len(samples)))
        on_progress(len(samples), len(samples))
        problems.write(out)
        return collect(out, [sample.id for sample in samples]) | {"left_out": problems.found}


def require_datatrove() -> None:
    """Raises InputError if datatrove or one of its companions is not installed."""
    try:
        for package in ("datatrove", "aiofiles", "aiosqlite", "httpx", "orjson", "xxhash"):
            version(package)
    except PackageNotFoundError as error:
        raise InputError(f"--server needs {error.name}, which is not installed: {install_command('scale')}") from None


def write_samples(out: Path, samples: Sequence[Sample]) -> None:
    """Writes the samples, all with transcripts, to the file that the ranks read."""
    with manifest_writer(out / SAMPLES) as write:
        for sample in samples:
            write(sample)


def generation_steps(
    out: str | Path,
    llm: Prompter,
    recipe: Recipe,
    server: Server,
    *,
    in_flight: int = IN_FLIGHT,
    shard_rows: int = rank_progress.SHARD_ROWS,
) -> list[Any]:
    """The pipeline for an executor of datatrove's, whose `logging_dir` should be `out/logs`.

    `out` is a folder with `samples.jsonl`, on a local or shared disk; `in_flight` is the number of simultaneous
    requests of each rank.
    """
    from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
    from datatrove.pipeline.writers.parquet import ParquetWriter

    out = Path(out).absolute()
    writer = ParquetWriter(
        str(out / SHARDS),
        SHARD_NAME,
        adapter=_row_of,
        schema=SCHEMA,
        max_file_size=-1,
        use_content_defined_chunking=False,
    )
    config = InferenceConfig(
        **server.inference(llm, recipe, in_flight=in_flight, log_folder=str(out / LOGS / "server"))
    )
    runner = InferenceRunner(
        answer,
        config,
        writer,
        shared_context={"llm": llm, "recipe": recipe},
        checkpoints_local_dir=str(out / CHECKPOINTS),
        records_per_chunk=shard_rows,
    )
    return [Transcripts(out, shard_rows), runner]


class Transcripts:
    """First step of the pipeline: a rank's samples, every `world_size`-th, in order.

    Raises, when called:
        InputError: another process is writing the same rank.
    """

    def __init__(self, out: Path, shard_rows: int) -> None:
        self.out, self.shard_rows = out, shard_rows
        self._lock: filelock.BaseFileLock | None = None

    def __call__(self, data: object, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Repairs what a kill left of this rank, immediately: the next step reads it before it asks for samples."""
        with (self.out / SAMPLES).open("rb") as file:
            rows = sum(1 for _ in file)
        part = split(self.out, rows, world_size, self.shard_rows)[rank]
        path = self.out / CHECKPOINTS / f"{rank:05d}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(path, timeout=0)  # held while this step exists
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise InputError(
                f"another process is still working on part {rank} of {self.out}: wait for it, or stop it"
            ) from None
        part.repair_count()
        return self._documents(rank, world_size)

    def _documents(self, rank: int, world_size: int) -> Iterator[Document]:
        from datatrove.data import Document

        with (self.out / SAMPLES).open("rb") as file:
            for number, line in enumerate(file):
                if number % world_size == rank:
                    sample = Sample.model_validate_json(line)
                    if isinstance(sample.audio, Path):
                        sample = sample.model_copy(update={"audio": self.out / sample.audio})
                    assert sample.text is not None
                    yield Document(text=sample.text, id=sample.id, metadata={"number": number, "sample": sample})


async def answer(
    document: Document, generate: Callable[[dict[str, Any]], Awaitable[Any]], *, llm: Prompter, recipe: Recipe
) -> dict[str, Any]:
    """The row of one sample; datatrove calls it with `generate`, which sends a request to the server."""
    from datatrove.pipeline.inference.types import InferenceError

    # Popped, because what stays in the metadata is written to the checkpoint.
    number, sample = document.metadata.pop("number"), document.metadata.pop("sample")
    job = make_job(llm.encode, number, sample, recipe)
    if not job.generates:
        return job.row_without_generation(recipe)
    request: dict[str, Any] = {"prompt": job.prompt, "max_tokens": recipe.max_new_tokens, "temperature": 0.0}
    if recipe.thinking == "drop" and llm.has_special_marks:
        request["skip_special_tokens"] = False  # for vLLM and SGLang; without the marks, thinking looks like an answer
    try:
        result = await generate(request)
    except InferenceError as error:
        if "BadRequestError" not in str(error.error):  # datatrove's name for status 400
            raise
        return replace(job, drop_reason=REFUSED).row_without_generation(recipe)
    ended = result.finish_reason == "stop"
    thought = find_thought_in_text(llm.tokenizer, result.text, llm.opening, ended=ended)
    text = without_special_tokens(llm.tokenizer, result.text) if "skip_special_tokens" in request else result.text
    return job.row(recipe, text.strip(), result.finish_reason, result.usage["completion_tokens"], thought)


def _row_of(writer: object, document: Document) -> dict[str, Any]:
    row: dict[str, Any] = document.metadata["rollout_results"][0]
    return row


def _run(steps: Callable[[], list[Any]], out: Path, workers: int, on_tick: Callable[[], None]) -> None:
    """Builds and runs the steps in a separate process, because their logs would fill the terminal."""
    log = out / LOGS / "run.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(steps, str(out / LOGS), workers, log, sender))
    process.start()
    sender.close()
    try:
        while process.exitcode is None:
            process.join(1)
            on_tick()
    finally:
        _stop(process)
    if process.exitcode != 0:
        try:
            reason = receiver.recv()
        except EOFError:
            reason = f"its process ended with {process.exitcode}"
        raise InputError(f"generation stopped: {reason}; see {log}; correct the cause and continue with --resume")


def _work(steps: Callable[[], list[Any]], logs: str, workers: int, log: Path, sender: Connection) -> None:
    """Runs in the new process."""
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        from datatrove.executor.local import LocalPipelineExecutor

        LocalPipelineExecutor(steps(), tasks=workers, workers=workers, logging_dir=logs).run()
    except Exception as error:
        sender.send(_reason(error))
        raise


def _end_with_the_parent() -> None:
    """Ends this process, and the server that it started, when the parent is killed."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGINT)


def _stop(process: Any) -> None:
    """Ends a process that an interrupted parent leaves; Ctrl-C at the terminal also reaches it."""
    process.join(5 if process.exitcode is None else None)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGINT)
        process.join(30)
    if process.exitcode is None:
        process.kill()
        process.join()


def _reason(error: BaseException) -> str:
    """The cause of an error in one line, because datatrove's nested errors repeat the whole request."""
    while isinstance(inner := getattr(error, "error", None), BaseException):
        error = inner
    return " ".join(str(getattr(error, "error", None) or error or type(error).__name__).split())[:300]
