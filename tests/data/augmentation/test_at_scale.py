"""Self-powered data through datatrove and a server: the same rows as in process, also after kills and refusals."""

import importlib.util
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from lsm_probe.data.augmentation import at_scale, servers
from lsm_probe.data.augmentation import rank_progress as ranks
from lsm_probe.data.augmentation.at_scale import augment_at_scale
from lsm_probe.data.augmentation.collect import collect
from lsm_probe.data.augmentation.rank_progress import Rank
from lsm_probe.data.augmentation.recipe import Recipe
from lsm_probe.data.augmentation.run import augment
from lsm_probe.data.augmentation.servers import Server, find_server
from lsm_probe.data.augmentation.shards import SCHEMA, read_shards
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.models.lookup import load_prompter
from lsm_probe.models.prompts import Prompt

pytest.importorskip("datatrove")

KILLS = Path(__file__).parents[3] / "analyses" / "fault_tests" / "augment_kills.py"


@pytest.fixture(scope="module")
def kills():
    spec = importlib.util.spec_from_file_location("augment_kills", KILLS)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def prompter(tiny_llm_folder):
    return load_prompter(tiny_llm_folder)


@pytest.fixture
def model_answer(tiny_llm):
    """Answers like a completion server: the model's output as detokenised text."""

    def answer(prompt, max_tokens):
        (ids,) = tiny_llm.generate(tiny_llm.embed([Prompt(prompt, [])]), max_new_tokens=max_tokens)
        text = tiny_llm.tokenizer.decode(ids, skip_special_tokens=True)
        return text, "stop" if ids[-1] in tiny_llm.eos_token_ids else "length", len(ids)

    return answer


@pytest.fixture
def here(monkeypatch):
    """Runs the pipeline in this process, which halves the time."""
    from datatrove.executor.local import LocalPipelineExecutor

    def run_here(steps, out, workers, on_tick):
        LocalPipelineExecutor(steps(), tasks=workers, workers=1, logging_dir=str(out / "logs")).run()
        on_tick()

    monkeypatch.setattr(at_scale, "_run", run_here)


def recipe(**changes):
    return Recipe(**{"max_new_tokens": 12, "keep": "all", "max_prompt_tokens": 400} | changes)


def quick_answer(prompt, max_tokens):
    return f" {sum(prompt)}.", "stop", 3


def run(kills, prompter, samples, out, answer=quick_answer, settings=None, **given):
    with kills.CompletionServer(answer) as server:
        found = find_server(server.url, prompter)
        report = augment_at_scale(prompter, samples, out, settings or recipe(), server=found, in_flight=8, **given)
        return report, server.prompts[1:]


def test_prompts_equal_those_of_the_loaded_checkpoint(tiny_llm, prompter, transcripts):
    for sample in transcripts(12):
        assert prompter.encode("Say it.", sample.text) == tiny_llm.encode("Say it.", sample.text).input_ids


def test_a_server_gives_the_same_manifest_as_this_process(
    here, tiny_llm, kills, prompter, model_answer, transcripts, tmp_path
):
    (tmp_path / "out").mkdir()
    clip = tmp_path / "out" / "a.wav"  # inside the folder: its path is written relative to the manifest
    clip.touch()
    sample = Sample(
        id="é", instruction="x", audio=clip, start=1.5, duration=2.5, text="the “old”\u2028town", language="en"
    )
    samples = [*transcripts(30), sample]
    lengths = sorted(len(tiny_llm.encode(recipe().pool.assign(0, s.id).instruction, s.text)) for s in samples)
    settings = recipe(max_prompt_tokens=lengths[24])
    augment(tiny_llm, samples, tmp_path / "in", settings)
    clip.rename(tmp_path / "a.wav")
    clip.symlink_to(tmp_path / "a.wav")
    report, prompts = run(kills, prompter, samples, tmp_path / "at", model_answer, settings, workers=2)
    rows = {name: read_shards(tmp_path / name / "shards")[0].to_pylist() for name in ("in", "at")}
    for row in rows["in"]:
        row["audio"] = row["audio"] and str(clip.resolve())
    assert rows["at"] == rows["in"]
    assert report["dropped"]["prompt too long"] > 0
    assert report["seconds"] is None
    assert len(prompts) == sum(row["finish_reason"] in ("stop", "length") for row in rows["in"])
    shards = sorted(path.name for path in (tmp_path / "at" / "shards").iterdir())
    assert shards == ["00000_chunk_0.parquet", "00001_chunk_0.parquet"]


def test_the_manifest_is_identical_and_a_second_run_sends_no_requests(
    here, tiny_llm, kills, prompter, model_answer, transcripts, tmp_path, monkeypatch
):
    monkeypatch.setattr(ranks, "SHARD_ROWS", 8)
    samples = transcripts(20)
    augment(tiny_llm, samples, tmp_path / "in", recipe())
    made = tmp_path / "at"
    progress = []
    report, _ = run(
        kills, prompter, samples, made, model_answer, on_progress=lambda done, total: progress.append((done, total))
    )
    assert (made / "manifest.jsonl").read_bytes() == (tmp_path / "in" / "manifest.jsonl").read_bytes()
    assert progress[-1] == (20, 20)
    assert [pq.read_metadata(path).num_rows for path in sorted((made / "shards").iterdir())] == [8, 8, 4]
    config = yaml.safe_load((made / "config.yaml").read_text())
    assert config["engine"] == {
        "name": "datatrove",
        "server": "endpoint",
        "model": "tiny",
        "workers": 1,
        "shard_rows": 8,
    }
    written = {path: path.stat().st_mtime_ns for path in (made / "shards").iterdir()}
    again, prompts = run(kills, prompter, samples, made, resume=True)
    assert (again, prompts) == (report, [])
    assert {path: path.stat().st_mtime_ns for path in written} == written
    with pytest.raises(InputError, match=r"other settings or data \(engine\)"):
        run(kills, prompter, samples, made, resume=True, workers=2)
    with pytest.raises(InputError, match=r"other settings or data \(dtype, engine\)"):
        augment(tiny_llm, samples, made, recipe(), resume=True)


def test_the_steps_run_under_the_users_own_executor(kills, prompter, transcripts, tmp_path):
    import dill
    from datatrove.executor.local import LocalPipelineExecutor

    samples, out = transcripts(10), tmp_path / "out"
    out.mkdir()
    at_scale.write_samples(out, samples)
    with kills.CompletionServer(quick_answer) as server:
        steps = at_scale.generation_steps(out, prompter, recipe(), find_server(server.url, prompter), shard_rows=2)
        steps = dill.loads(dill.dumps(steps))  # as a cluster's executor passes them
        for first, tasks in ((0, 2), (2, 1)):  # two machines
            LocalPipelineExecutor(steps, 3, 1, str(out / "logs"), local_tasks=tasks, local_rank_offset=first).run()
    report = collect(out, [sample.id for sample in samples])
    assert report["samples"] == report["kept"] == 10
    assert len(list((out / "shards").iterdir())) == 2 + 2 + 2


@pytest.mark.parametrize("engine", ["local", "datatrove"])
def test_a_killed_run_resumes_without_lost_repeated_or_partial_rows(kills, tiny_llm_folder, tmp_path, engine):
    with kills.prepared(engine, tiny_llm_folder, tmp_path / engine, 60) as bench:
        outcome = kills.trial(bench, tmp_path / "out", kills=1, seed=2, window=0.3)
    assert (outcome["exit_code"], outcome["rows"], outcome["kills"]) == (0, 60, 1), (tmp_path / "out.log").read_text()
    wrong = ("lost", "repeated", "torn", "draws_changed", "rows_changed")
    assert {key: outcome[key] for key in wrong} == dict.fromkeys(wrong, 0)


def shard(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(SCHEMA.empty_table() if rows == 0 else SCHEMA.empty_table().from_pylist([{}] * rows, SCHEMA), path)


@pytest.mark.parametrize(
    ("shard_rows", "counted", "repaired"),
    [
        ([4, 4], "1", "1"),
        ([4, 4], "", "1"),  # killed between emptying the file and writing it
        ([4, 4], None, "1"),  # killed between closing the shard and counting it
        ([4, 4, "torn"], "2", "1"),  # killed between counting the last shard and closing it
        ([4, 3, 2], "2", "0"),  # a row that could not be saved
        (["torn"], "0", None),
        ([], None, None),
    ],
)
def test_the_row_count_is_recomputed_from_the_shards(tmp_path, shard_rows, counted, repaired):
    rank = Rank(tmp_path, 0, rows=10, shard_rows=4)
    for chunk, rows in enumerate(shard_rows):
        shard(rank.shard(chunk), 4 if rows == "torn" else rows)
        if rows == "torn":
            rank.shard(chunk).write_bytes(rank.shard(chunk).read_bytes()[:-20])
    count = tmp_path / "checkpoints" / "last_chunk" / "00000.txt"
    count.parent.mkdir(parents=True)
    if counted is not None:
        count.write_text(counted)
    rank.repair_count()
    assert (count.read_text() if count.exists() else None) == repaired
    assert not rank.is_finished
    shard(rank.shard(0), 4), shard(rank.shard(1), 4), shard(rank.shard(2), 2)
    assert rank.is_finished


def test_shards_left_unfinished_by_a_kill_are_made_again(here, kills, prompter, transcripts, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "SHARD_ROWS", 8)
    out, samples = tmp_path / "out", transcripts(20)
    run(kills, prompter, samples, out)
    whole = (out / "manifest.jsonl").read_bytes()
    last = out / "shards" / "00000_chunk_2.parquet"
    last.write_bytes(last.read_bytes()[:-20])  # datatrove considers the rank complete
    assert (out / "logs" / "completions" / "00000").exists()
    with pytest.raises(InputError, match="delete it and continue with --resume"):
        collect(out, [sample.id for sample in samples])
    _, prompts = run(kills, prompter, samples, out, resume=True)
    assert 0 < len(prompts) <= 4
    assert (out / "manifest.jsonl").read_bytes() == whole


def test_a_row_that_could_not_be_saved_is_made_in_the_next_run(
    here, kills, prompter, transcripts, tmp_path, monkeypatch
):
    monkeypatch.setattr(ranks, "SHARD_ROWS", 8)
    out, samples, row_of = tmp_path / "out", transcripts(20), at_scale._row_of

    def full(writer, document):
        if document.id == "s3":
            raise OSError(28, "No space left on device")
        return row_of(writer, document)

    monkeypatch.setattr(at_scale, "_row_of", full)  # datatrove logs the failure, and considers the rank complete
    with pytest.raises(InputError, match="does not hold each of the 20 samples once: continue with --resume"):
        run(kills, prompter, samples, out)
    monkeypatch.setattr(at_scale, "_row_of", row_of)
    report, prompts = run(kills, prompter, samples, out, resume=True)
    assert (report["samples"], len(prompts)) == (20, 1)


def test_prompts_that_the_server_refuses_are_dropped_and_counted(here, kills, prompter, transcripts, tmp_path):
    refused = []

    def picky(prompt, max_tokens):
        if len(prompt) % 3 == 0 and max_tokens > 1:
            refused.append(prompt)
            raise ValueError("this model's maximum context length is 3")
        return quick_answer(prompt, max_tokens)

    report, _ = run(kills, prompter, transcripts(30), tmp_path / "out", picky)
    assert report["samples"] == 30
    assert report["dropped"] == {"refused by the server": len(refused)}
    assert refused


def test_a_failing_server_ends_the_run_in_one_line_and_the_run_can_be_resumed(
    request, kills, prompter, transcripts, tmp_path
):
    samples, met = transcripts(30), []

    def failing(prompt, max_tokens):
        met.append(prompt)
        if len(met) > 10:
            raise RuntimeError  # the connection closes without an answer
        return quick_answer(prompt, max_tokens)

    with pytest.raises(InputError, match=r"generation stopped: .*see .*run\.log"):
        run(kills, prompter, samples, tmp_path / "out", failing)
    request.getfixturevalue("here")
    report, prompts = run(kills, prompter, samples, tmp_path / "out", resume=True)
    assert report["samples"] == 30
    assert 0 < len(prompts) <= 30 - 9


def test_another_process_at_the_same_rank_is_refused(kills, prompter, transcripts, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    at_scale.write_samples(out, transcripts(4))
    first = at_scale.Transcripts(out, 8)
    assert [document.id for document in first(None, 1, 2)] == ["s1", "s3"]
    with pytest.raises(InputError, match="another process is still working on part 1"):
        at_scale.Transcripts(out, 8)(None, 1, 2)


def test_samples_without_transcript_fail_or_are_skipped_and_counted(kills, prompter, transcripts, tmp_path):
    (tmp_path / "a.wav").touch()
    samples = [*transcripts(2), Sample(id="mute", instruction="x", audio=tmp_path / "a.wav")]
    with pytest.raises(InputError, match="'mute': has no transcript"):
        run(kills, prompter, samples, tmp_path / "out")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("sglang", "neither `vllm` nor a URL"),
        ("localhost:8000", "neither `vllm` nor a URL"),
        ("http://localhost:port", "is not a URL"),
        ("http://node7:8000", "ssh -N -L"),
        ("https://localhost:8000", "ssh -N -L"),
        ("http://localhost:8000/api", "leave out '/api'"),
    ],
)
def test_invalid_server_options_are_refused(prompter, choice, message):
    with pytest.raises(InputError, match=message):
        find_server(choice, prompter)


def test_an_unreachable_server_is_refused(prompter):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(InputError, match=f"no server at http://localhost:{port}/v1/models"):
        find_server(f"http://localhost:{port}", prompter)


def test_a_server_that_rejects_token_ids_is_refused_before_the_run(kills, prompter, monkeypatch):
    def takes_text_only(prompt, max_tokens):
        raise ValueError("prompt must be a string")

    with (
        kills.CompletionServer(takes_text_only) as server,
        pytest.raises(InputError, match=r"answers 400 to a prompt of token ids.*must be a string"),
    ):
        find_server(server.url, prompter)
    with kills.CompletionServer(quick_answer) as server:
        assert find_server(server.url + "/v1/", prompter) == Server(server.url, "tiny")
        with pytest.raises(InputError, match="--dtype is for a vLLM started here"):
            find_server(server.url, prompter, dtype="float16")
        monkeypatch.setattr(server, "models", lambda: {"data": [{"id": "a"}, {"id": "b"}]})
        with pytest.raises(InputError, match="serves a, b, not"):
            find_server(server.url, prompter)
        monkeypatch.setattr(server, "models", lambda: ["a"])
        with pytest.raises(InputError, match="does not answer as an OpenAI-compatible server"):
            find_server(server.url, prompter)


def test_a_server_that_adds_tokens_is_refused(kills, prompter, monkeypatch):
    with kills.CompletionServer(quick_answer) as server:
        complete = server.complete

        def with_bos(request):
            return complete(request | {"prompt": [1, *request["prompt"]]})

        monkeypatch.setattr(server, "complete", with_bos)
        with pytest.raises(InputError, match="changes the prompt"):
            find_server(server.url, prompter)


def test_vllm_is_started_greedy_and_without_remote_code(prompter, monkeypatch, transcripts, tmp_path):
    with pytest.raises(InputError, match=r"pip install .*vllm=="):
        find_server("vllm", prompter)
    monkeypatch.setattr(servers, "version", lambda package: "0.32.0")
    with pytest.raises(InputError, match="command `vllm`"):
        find_server("vllm", prompter)
    monkeypatch.setattr(servers.shutil, "which", lambda command: "/bin/vllm")
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    server = find_server("vllm", prompter, dtype="bfloat16")
    assert server.to_dict() == {
        "server": "vllm",
        "vllm": "0.32.0",
        "dtype": "bfloat16",
        "VLLM_BATCH_INVARIANT": "1",
    }
    prompter = replace(prompter, identity=replace(prompter.identity, revision="abc"))
    _, runner = at_scale.generation_steps(tmp_path, prompter, recipe(), server)
    assert (runner.config.server_type, runner.config.use_chat) == ("vllm", False)
    assert runner.config.model_max_context == 412
    assert runner.config.model_kwargs == {
        "dtype": "bfloat16",
        "generation-config": "vllm",
        "trust-remote-code": False,
        "revision": "abc",
    }
    with pytest.raises(InputError, match="--workers is for a running server"):
        augment_at_scale(prompter, transcripts(2), tmp_path / "out", server=server, workers=2)
