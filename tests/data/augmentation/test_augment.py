"""Self-powered data in process: prompts, kept answers, and resuming."""

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest
import torch
from transformers import GenerationConfig

from lsm_probe.data.augmentation import local
from lsm_probe.data.augmentation.recipe import Recipe
from lsm_probe.data.augmentation.run import augment
from lsm_probe.data.manifest import read_manifest
from lsm_probe.data.pools import read_pool
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.models.prompts import NoTokens


def rows_of(out):
    tables = [pq.read_table(path) for path in sorted((out / "shards").glob("*.parquet"))]
    return {row["sample_id"]: row for table in tables for row in table.to_pylist()}


def recipe(**changes):
    return Recipe(**{"max_new_tokens": 12, "keep": "all", "max_prompt_tokens": 400} | changes)


def test_every_answer_equals_the_greedy_response_to_instruction_and_transcript(tiny_llm, transcripts, tmp_path):
    samples, settings = transcripts(40), recipe()
    augment(tiny_llm, samples, tmp_path / "out", settings, batch_size=7)
    rows = rows_of(tmp_path / "out")
    assert sorted(rows) == sorted(sample.id for sample in samples)
    eos = tiny_llm.eos_token_ids
    tiny_llm.llm.generation_config = GenerationConfig()
    for sample in samples:
        row, assignment = rows[sample.id], settings.pool.assign(0, sample.id)
        assert (row["task"], row["instruction"]) == (assignment.task, assignment.instruction)
        assert row["text"] == sample.text
        if assignment.answer == "transcript":
            assert (row["response"], row["finish_reason"]) == (sample.text, "transcript")
            continue
        ids = tiny_llm.encode(assignment.instruction, sample.text).input_ids
        alone = tiny_llm.llm.generate(
            input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=12, eos_token_id=eos, pad_token_id=eos[0]
        )[0, len(ids) :].tolist()
        assert row["response"] == tiny_llm.decode(alone)
        assert row["response_tokens"] == len(alone)
        assert row["prompt_tokens"] == len(ids)
        assert row["finish_reason"] == ("stop" if alone[-1] in eos else "length")


def test_the_manifest_has_the_kept_samples_in_the_order_of_the_data(tiny_llm, transcripts, tmp_path):
    samples = transcripts(30)
    report = augment(tiny_llm, samples, tmp_path / "out", recipe(keep="punctuation"))
    rows = rows_of(tmp_path / "out")
    kept = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert [sample.id for sample in kept] == [sample.id for sample in samples if rows[sample.id]["keep"]]
    for sample in kept:
        row = rows[sample.id]
        assert (sample.instruction, sample.target, sample.task) == (row["instruction"], row["response"], row["task"])
        assert sample.text == row["text"]
    assert report["samples"] == 30
    assert report["kept"] == len(kept)
    assert report["kept"] + sum(report["dropped"].values()) == 30
    assert sum(task["samples"] for task in report["tasks"].values()) == 30
    assert json.loads((tmp_path / "out" / "report.json").read_text())["kept"] == len(kept)


def test_audio_and_section_are_copied_to_the_manifest(tiny_llm, tmp_path):
    clip = tmp_path / "a.wav"
    clip.touch()
    sample = Sample(id="a", instruction="x", audio=clip, start=1.5, duration=2.5, text="the old town", language="en")
    augment(tiny_llm, [sample], tmp_path / "out", recipe())
    (made,) = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert (made.audio, made.start, made.duration, made.language) == (clip, 1.5, 2.5, "en")


@pytest.mark.parametrize(
    ("keep", "response", "finish_reason", "reason"),
    [
        ("punctuation", "It is so.", "stop", None),
        ("punctuation", "It is so. ", "length", None),
        ("punctuation", "这是。", "stop", None),
        ("punctuation", "He said “no”", "stop", None),
        ("punctuation", "fox, dog", "stop", "no final punctuation"),
        ("punctuation", "price: 5 $", "stop", "no final punctuation"),
        ("punctuation", "  ", "stop", "empty"),
        ("finished", "fox, dog", "stop", None),
        ("finished", "It is so.", "length", "unfinished"),
        ("finished", "", "stop", "empty"),
        ("all", "fox, dog", "length", None),
        ("all", "\n", "stop", "empty"),
    ],
)
def test_the_keep_option_decides_which_responses_are_dropped(keep, response, finish_reason, reason):
    assert Recipe(keep=keep).drop_reason(response, finish_reason) == reason


def test_the_defaults_are_those_of_the_paper():
    default = Recipe()
    assert (default.max_new_tokens, default.max_prompt_tokens, default.keep) == (225, 149, "punctuation")
    assert len(default.pool.tasks) == 7


def test_long_prompts_are_dropped_and_counted_except_for_ground_truth(tiny_llm, transcripts, tmp_path):
    samples = transcripts(40)
    lengths = {s.id: len(tiny_llm.encode(recipe().pool.assign(0, s.id).instruction, s.text)) for s in samples}
    limit = sorted(lengths.values())[20]
    report = augment(tiny_llm, samples, tmp_path / "out", recipe(max_prompt_tokens=limit))
    rows = rows_of(tmp_path / "out")
    for sample_id, row in rows.items():
        too_long = row["task"] != "transcription" and lengths[sample_id] > limit
        assert (row["drop_reason"] == "prompt too long") == too_long
        assert (row["response"] == "") == too_long
    assert report["dropped"]["prompt too long"] == sum(row["drop_reason"] is not None for row in rows.values()) > 0


def test_one_task_makes_a_single_task_set(tiny_llm, transcripts, tmp_path):
    settings = recipe(pool=read_pool("continuation"))
    augment(tiny_llm, transcripts(6), tmp_path / "out", settings)
    assert Counter(row["instruction"] for row in rows_of(tmp_path / "out").values()) == {
        settings.pool.tasks[0].instructions[0]: 6
    }


class Killed(Exception):
    pass


def test_an_interrupted_run_is_resumed_without_repeating_an_answer(tiny_llm, transcripts, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "SHARD_ROWS", 8)
    samples = transcripts(40)
    whole = augment(tiny_llm, samples, tmp_path / "whole", recipe())

    def interrupt(done, tokens, seconds, total):
        if done >= 20:
            raise Killed

    with pytest.raises(Killed):
        augment(tiny_llm, samples, tmp_path / "out", recipe(), on_progress=interrupt)
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").iterdir()}
    assert 0 < len(finished) < 5
    with pytest.raises(InputError, match="--resume"):
        augment(tiny_llm, samples, tmp_path / "out", recipe())
    report = augment(tiny_llm, samples, tmp_path / "out", recipe(), resume=True)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole")
    manifests = [(tmp_path / name / "manifest.jsonl").read_bytes() for name in ("out", "whole")]
    assert manifests[0] == manifests[1]
    timeless = [{k: v for k, v in r.items() if "second" not in k} for r in (report, whole)]
    assert timeless[0] == timeless[1]


def test_a_damaged_shard_is_made_again(tiny_llm, transcripts, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "SHARD_ROWS", 8)
    samples = transcripts(20)
    augment(tiny_llm, samples, tmp_path / "out", recipe())
    before = rows_of(tmp_path / "out")
    shard = tmp_path / "out" / "shards" / "00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-10])
    augment(tiny_llm, samples, tmp_path / "out", recipe(), resume=True)
    assert rows_of(tmp_path / "out") == before


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"max_new_tokens": 11}, {"keep": "finished"}, {"pool": read_pool("continuation")}]
)
def test_resuming_with_another_recipe_is_refused(tiny_llm, transcripts, tmp_path, changes):
    augment(tiny_llm, transcripts(4), tmp_path / "out", recipe())
    with pytest.raises(InputError, match=r"other settings or data \(recipe\)"):
        augment(tiny_llm, transcripts(4), tmp_path / "out", recipe(**changes), resume=True)


def test_samples_without_transcript_fail_or_are_skipped_and_counted(tiny_llm, transcripts, tmp_path):
    (tmp_path / "a.wav").touch()
    samples = [*transcripts(2), Sample(id="mute", instruction="x", audio=tmp_path / "a.wav")]
    with pytest.raises(InputError, match="'mute': has no transcript"):
        augment(tiny_llm, samples, tmp_path / "out", recipe())
    with pytest.warns(UserWarning, match="left out 1"):
        report = augment(tiny_llm, samples, tmp_path / "out", recipe(), on_error="skip")
    assert (report["samples"], len(report["left_out"])) == (2, 1)
    (line,) = (tmp_path / "out" / "left_out.txt").read_text().splitlines()
    assert line.startswith("sample 'mute':")


def test_running_out_of_memory_halves_the_batch(tiny_llm, transcripts, tmp_path, monkeypatch):
    samples = transcripts(20)
    augment(tiny_llm, samples, tmp_path / "whole", recipe())
    generate = tiny_llm.generate
    sizes = []

    def small(embedded, **kwargs):
        sizes.append(len(embedded))
        if len(embedded) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(embedded, **kwargs)

    monkeypatch.setattr(tiny_llm, "generate", small)
    augment(tiny_llm, samples, tmp_path / "out", recipe())
    assert max(sizes) > 3
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole")


def test_an_lsm_is_refused(tiny_lsm, transcripts, tmp_path):
    with pytest.raises(InputError, match="is an LSM"):
        augment(tiny_lsm, transcripts(1), tmp_path / "out")


def test_a_full_disk_leaves_complete_shards_only(tiny_llm, transcripts, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "SHARD_ROWS", 8)
    samples = transcripts(20)
    write_table = pq.write_table

    written = []

    def full(table, path, *args, **kwargs):
        written.append(path)
        if len(written) == 2:
            path.write_bytes(b"PAR1 half of")
            raise OSError(28, "No space left on device")
        write_table(table, path, *args, **kwargs)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        augment(tiny_llm, samples, tmp_path / "out", recipe())
    assert [path.name for path in (tmp_path / "out" / "shards").iterdir()] == ["00000.parquet"]
    monkeypatch.setattr(pq, "write_table", write_table)
    assert augment(tiny_llm, samples, tmp_path / "out", recipe(), resume=True)["samples"] == 20


def test_partial_shards_of_a_killed_process_are_removed(tiny_llm, transcripts, tmp_path):
    samples = transcripts(4)
    augment(tiny_llm, samples, tmp_path / "out", recipe())
    shard = tmp_path / "out" / "shards" / "00000.parquet"
    for leftover, content in ((".00000.999.parquet", shard.read_bytes()), (".00001.999.parquet", b"PAR1")):
        (shard.parent / leftover).write_bytes(content)
    assert augment(tiny_llm, samples, tmp_path / "out", recipe(), resume=True)["samples"] == 4
    assert [path.name for path in shard.parent.iterdir()] == ["00000.parquet"]


def test_an_extra_shard_is_refused(tiny_llm, transcripts, tmp_path):
    augment(tiny_llm, transcripts(4), tmp_path / "out", recipe())
    shard = tmp_path / "out" / "shards" / "00000.parquet"
    (shard.parent / "00007.parquet").write_bytes(shard.read_bytes())
    with pytest.raises(InputError, match="does not hold each of the 4 samples once"):
        augment(tiny_llm, transcripts(4), tmp_path / "out", recipe(), resume=True)


@pytest.mark.parametrize("change", [{"text": "other words"}, {"language": "de"}, {"id": "other"}, None])
def test_resuming_with_changed_samples_is_refused(tiny_llm, transcripts, tmp_path, change):
    samples = transcripts(4)
    augment(tiny_llm, samples, tmp_path / "out", recipe())
    changed = [samples[0].model_copy(update=change), *samples[1:]] if change else transcripts(5)
    with pytest.raises(InputError, match=r"other settings or data \(data_sha256\)"):
        augment(tiny_llm, changed, tmp_path / "out", recipe(), resume=True)


def test_resuming_in_another_precision_is_refused(tiny_llm, transcripts, tmp_path):
    augment(tiny_llm, transcripts(4), tmp_path / "out", recipe())
    tiny_llm.model.to(torch.bfloat16)
    with pytest.raises(InputError, match="dtype"):
        augment(tiny_llm, transcripts(4), tmp_path / "out", recipe(), resume=True)


def test_the_reported_seconds_are_the_sum_over_shards(tiny_llm, transcripts, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "SHARD_ROWS", 4)
    report = augment(tiny_llm, transcripts(20), tmp_path / "out", recipe())
    shards = sorted((tmp_path / "out" / "shards").iterdir())
    seconds = [float(pq.read_schema(shard).metadata[b"seconds"]) for shard in shards]
    assert len(seconds) == 5
    assert report["seconds"] == pytest.approx(sum(seconds), abs=0.051)


def test_the_checkpoints_generation_settings_are_ignored(tiny_llm, transcripts, tmp_path):
    augment(tiny_llm, transcripts(12), tmp_path / "plain", recipe())
    tiny_llm.model.generation_config.repetition_penalty = 5.0
    augment(tiny_llm, transcripts(12), tmp_path / "penalised", recipe())
    assert rows_of(tmp_path / "plain") == rows_of(tmp_path / "penalised")


def test_prompts_longer_than_the_context_are_refused_before_the_run(tiny_llm, transcripts, tmp_path):
    with pytest.raises(InputError, match="exceed the context of 1024 tokens"):
        augment(tiny_llm, transcripts(4), tmp_path / "out", recipe(max_new_tokens=1_000))
    assert not (tmp_path / "out").exists()


def test_a_run_that_keeps_no_answer_gives_a_warning(tiny_llm, transcripts, tmp_path):
    settings = recipe(max_prompt_tokens=1, pool=read_pool("continuation"))
    with pytest.warns(UserWarning, match=r"no answer was kept: .*report\.json"):
        report = augment(tiny_llm, transcripts(3), tmp_path / "out", settings)
    assert report["dropped"] == {"prompt too long": 3}


def test_a_transcript_without_tokens_is_dropped_and_counted_and_a_bad_template_is_an_error(
    tiny_llm, transcripts, tmp_path, monkeypatch
):
    encode = tiny_llm.encode

    def without_b(instruction, text):
        if text == "b":
            raise NoTokens("source", "'b' has no tokens")
        return encode(instruction, text)

    monkeypatch.setattr(tiny_llm, "encode", without_b)
    settings = recipe(pool=read_pool("continuation"))
    samples = [*transcripts(2), Sample(id="b", instruction="x", text="b")]
    report = augment(tiny_llm, samples, tmp_path / "out", settings)
    assert report["dropped"] == {"no tokens": 1}
    monkeypatch.undo()
    tiny_llm.tokenizer.chat_template = None
    with pytest.raises(InputError, match="has no chat template"):
        augment(tiny_llm, samples, tmp_path / "other", settings)
