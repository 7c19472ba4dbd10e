"""Targets made by a reasoning LLM: without its thinking, unless requested."""

import asyncio
from types import SimpleNamespace

import pytest

from lsm_probe.data.augmentation.at_scale import answer
from lsm_probe.data.augmentation.recipe import Recipe
from lsm_probe.data.augmentation.run import augment
from lsm_probe.data.manifest import read_manifest
from lsm_probe.data.pools import read_pool
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.models.prompter import Prompter

THINKING = "<think>\nThey want more.\n</think>"
SAMPLES = [Sample(id=f"s{i}", instruction="unused", text=f"rain falls {i} times") for i in range(3)]


def recipe(**changes):
    return Recipe(**{"pool": read_pool("continuation"), "max_new_tokens": 60, "max_prompt_tokens": 400} | changes)


@pytest.fixture
def thinking_llm(tiny_llm, monkeypatch):
    """Two answers after thinking, and thinking without an end."""
    responses = [THINKING + "\n\nIt rains.</s>", THINKING + "\n\nAnd it rains.</s>", "<think>\nThey want more."]
    ids = [tiny_llm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in responses]
    monkeypatch.setattr(tiny_llm, "generate", lambda embedded, *, max_new_tokens: ids[: len(embedded)])
    return tiny_llm


def test_targets_contain_no_thinking(thinking_llm, tmp_path):
    report = augment(thinking_llm, SAMPLES, tmp_path / "out", recipe())
    targets = [sample.target for sample in read_manifest(tmp_path / "out" / "manifest.jsonl")]
    assert targets == ["It rains.", "And it rains."]
    assert (report["kept"], report["dropped"], report["thinking"]) == (2, {"unfinished thought": 1}, 3)


def test_responses_with_unfinished_thinking_are_always_dropped(thinking_llm, tmp_path):
    report = augment(thinking_llm, SAMPLES, tmp_path / "out", recipe(keep="all"))
    assert report["dropped"] == {"unfinished thought": 1}


def test_thinking_is_kept_on_request(thinking_llm, tmp_path):
    report = augment(thinking_llm, SAMPLES, tmp_path / "out", recipe(keep="all", thinking="keep"))
    targets = [sample.target for sample in read_manifest(tmp_path / "out" / "manifest.jsonl")]
    assert targets[0] == THINKING + "\n\nIt rains."
    assert (report["kept"], "thinking" in report) == (3, False)


def test_an_unknown_thinking_option_is_refused():
    with pytest.raises(InputError, match="--thinking 'hide' is unknown; choose one of: drop, keep"):
        recipe(thinking="hide")


def test_folders_from_before_the_thinking_option_can_be_resumed():
    assert "thinking" not in recipe().to_dict()
    assert recipe(thinking="keep").to_dict()["thinking"] == "keep"


@pytest.mark.parametrize("special", [False, True])
def test_thinking_is_removed_from_answers_of_a_server(make_tokenizer, special):
    """If the marks are special tokens, the server is asked to write them."""
    tokenizer, marks = make_tokenizer(), ("[THINK]", "[/THINK]") if special else ("<think>", "</think>")
    if special:
        tokenizer.add_special_tokens({"extra_special_tokens": list(marks)}, replace_extra_special_tokens=False)
    requests = []

    async def generate(request):
        requests.append(request)
        text = f"{marks[0]}They want more.{marks[1]} It rains." + ("</s>" if special else "")
        return SimpleNamespace(text=text, finish_reason="stop", usage={"completion_tokens": 9})

    document = SimpleNamespace(metadata={"number": 0, "sample": SAMPLES[0]})
    row = asyncio.run(answer(document, generate, llm=Prompter("llm", "llm", tokenizer, "chat"), recipe=recipe()))
    assert (row["response"], row["thinking"]) == ("It rains.", f"{marks[0]}They want more.{marks[1]}")
    assert row["keep"]
    assert requests[0].get("skip_special_tokens", True) is not special
