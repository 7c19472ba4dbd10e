"""The other instructions and the other sources: who is held against whom."""

from collections import Counter
from contextlib import suppress

import pytest
import torch

from lsm_probe.data.audio import read_audio
from lsm_probe.data.pools import Pool, Task, read_pool
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.probes.sensitivity.counterfactuals import OtherSources, other_instructions, pool_of

POOL = Pool(
    (
        Task(task="repeat", instructions=["Repeat it.", "Say it again."]),
        Task(task="translate", instructions=["Put it into {language}.", "Say it in {language}."], languages=["German"]),
        Task(task="mood", instructions=["Answer with one of: {labels}."], labels=["glad", "sad"]),
    )
)


def ask(instruction="Repeat it.", task="repeat", text="rain", sample_id="a"):
    return Sample(id=sample_id, instruction=instruction, text=text, task=task)


def spoken(words):
    """A sample for each text."""
    return [ask(text=text, sample_id=f"s{i}") for i, text in enumerate(words)]


# Instructions


def test_other_tasks_are_represented_by_their_first_wording():
    assert other_instructions(ask(), POOL, "tasks") == ["Put it into German.", "Answer with one of: 'glad', 'sad'."]


@pytest.mark.parametrize(
    "sample",
    [ask("Say it again."), ask("Say it again.", task=None), ask("In words of its own.", task="repeat")],
    ids=["by both", "by its words", "by its task"],
)
def test_a_sample_finds_its_own_task_by_name_or_words(sample):
    assert other_instructions(sample, POOL, "tasks") == ["Put it into German.", "Answer with one of: 'glad', 'sad'."]


def test_a_task_outside_the_pool_is_compared_with_the_whole_pool():
    others = other_instructions(ask("Count the words.", task="count"), POOL, "tasks")
    assert others == ["Repeat it.", "Put it into German.", "Answer with one of: 'glad', 'sad'."]


def test_whitespace_around_an_instruction_is_ignored():
    assert other_instructions(ask(" Repeat it. "), POOL, "paraphrases") == ["Say it again."]
    assert "Repeat it." not in other_instructions(ask(" Repeat it. ", task=None), POOL, "tasks")


def test_paraphrases_are_the_other_wordings_of_the_own_task():
    assert other_instructions(ask("Say it again."), POOL, "paraphrases") == ["Repeat it."]
    assert other_instructions(ask("Put it into German.", task="translate"), POOL, "paraphrases") == [
        "Say it in German."
    ]
    assert other_instructions(ask("In words of its own."), POOL, "paraphrases") == ["Repeat it.", "Say it again."]


def test_paraphrases_keep_the_language_that_was_asked_for():
    """Otherwise a paraphrase would ask for an answer in another language."""
    pool = read_pool("generation")
    languages = {task.task: task.languages for task in pool.tasks}["translation"]
    assert languages[:2] == ["German", "Chinese"]
    others = other_instructions(ask("Put the English text into Chinese.", "translation"), pool, "paraphrases")
    assert others
    assert all("Chinese" in words and "German" not in words for words in others)
    assert "Put the English text into Chinese." not in others


def test_a_task_is_found_by_its_words_in_any_of_its_languages():
    others = other_instructions(ask("Put the English text into Chinese.", None), read_pool("generation"), "tasks")
    assert not any("into German" in words for words in others)


@pytest.mark.parametrize(
    ("pool", "kind", "sample", "message"),
    [
        (Pool(POOL.tasks[:1]), "tasks", ask(), "the pool has one instruction"),
        (Pool(POOL.tasks[1:]), "paraphrases", ask(), "the pool holds no other wording of its task"),
        (
            POOL,
            "paraphrases",
            ask("Answer with one of: 'glad', 'sad'.", "mood"),
            "the pool holds no other wording of its task",
        ),
    ],
)
def test_a_pool_that_holds_nothing_else_is_refused(pool, kind, sample, message):
    with pytest.raises(InputError, match=message) as info:
        other_instructions(sample, pool, kind)
    assert "--instructions" in str(info.value)


def test_the_pool_of_samples_holds_each_wording_once_by_task():
    samples = [
        ask("Repeat it.", "repeat", sample_id="a"),
        ask("Count the words.", "count", sample_id="b"),
        ask("Say it again.", "repeat", sample_id="c"),
        ask("Repeat it.", "repeat", sample_id="d"),
    ]
    pool = pool_of(samples)
    assert {task.task: task.instructions for task in pool.tasks} == {
        "repeat": ["Repeat it.", "Say it again."],
        "count": ["Count the words."],
    }


def test_samples_without_tasks_have_one_for_each_instruction():
    samples = [ask(words, None, sample_id=words) for words in ("Repeat it.", "Say it again.", "Repeat it.")]
    assert [task.instructions for task in pool_of(samples).tasks] == [["Repeat it."], ["Say it again."]]


@pytest.mark.parametrize(
    "sample",
    [ask("Write {language} where a language is named."), ask(task=" ")],
    ids=["braces in an instruction", "a blank task"],
)
def test_any_sample_gives_a_pool_or_a_one_line_error(sample):
    """A manifest may hold both: neither `read_manifest` nor `Sample` refuses them."""
    with suppress(InputError):  # a line that says so would do as well
        pool = pool_of([sample, ask("Count the words.", "count", sample_id="b")])
        assert other_instructions(sample, pool, "tasks") == ["Count the words."]


# Sources

WORDS = ["rain", "the fox", "green", "the old town", "sea shells", "spring"]


@pytest.mark.parametrize("number", [1, 2, 5])
def test_other_sources_are_other_distinct_and_as_many_as_asked_for(tiny_llm, number):
    samples = spoken(WORDS)
    others = OtherSources(tiny_llm, samples, 0, "fail")
    for sample in samples:
        drawn = others.draw(sample, number)
        assert len(set(drawn)) == len(drawn) == number
        assert sample.text not in drawn
        assert set(drawn) <= set(WORDS)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_every_source_is_drawn_equally_often(tiny_llm, number):
    samples = spoken(WORDS)
    others = OtherSources(tiny_llm, samples, 3, "fail")
    assert Counter(source for sample in samples for source in others.draw(sample, number)) == dict.fromkeys(
        WORDS, number
    )


def test_fewer_utterances_than_asked_for_are_all_drawn(tiny_llm):
    samples = spoken(WORDS[:3])
    assert set(OtherSources(tiny_llm, samples, 0, "fail").draw(samples[0], 10)) == set(WORDS[1:3])


def test_samples_of_one_utterance_are_one_source_and_draw_alike(tiny_llm):
    samples = [ask(text=text, sample_id=f"{i}") for i, text in enumerate([*WORDS[:3], WORDS[0], WORDS[0]])]
    others = OtherSources(tiny_llm, samples, 0, "fail")
    draws = [others.draw(samples[i], 10) for i in (0, 3, 4)]
    assert draws[0] == draws[1] == draws[2]
    assert sorted(draws[0]) == sorted(WORDS[1:3])


def test_the_seed_decides_the_draw(tiny_llm):
    samples = spoken(WORDS)

    def draws(seed):
        others = OtherSources(tiny_llm, samples, seed, "fail")
        return [others.draw(sample, 2) for sample in samples]

    assert draws(0) == draws(0)
    assert len({str(draws(seed)) for seed in range(5)}) > 1


def test_a_draw_does_not_depend_on_earlier_draws(tiny_llm):
    samples = spoken(WORDS)
    forth, back = OtherSources(tiny_llm, samples, 0, "fail"), OtherSources(tiny_llm, samples, 0, "fail")
    one = {sample.id: forth.draw(sample, 2) for sample in samples}
    assert {sample.id: back.draw(sample, 2) for sample in reversed(samples)} == one


def recordings(samples, *texts):
    """The same sound files with these texts."""
    return [s.model_copy(update={"text": text}) for s, text in zip(samples, texts, strict=False)]


def test_another_recording_of_the_same_words_is_not_another_source(tiny_llm, samples):
    """Two files have the same text, so each explains the response to the other equally well."""
    mixed = recordings(samples, "rain", "green", "rain", "the fox")
    assert len({sample.utterance for sample in mixed}) == 4
    others = OtherSources(tiny_llm, mixed, 0, "fail")
    assert sorted(others.draw(mixed[0], 10)) == ["green", "the fox"]
    assert sorted(others.draw(mixed[1], 10)) == ["rain", "rain", "the fox"]
    alike = recordings(samples, "rain", "rain")
    with pytest.raises(InputError, match="at least two different utterances"):
        OtherSources(tiny_llm, alike, 0, "fail").draw(alike[0], 1)


def test_whitespace_around_a_transcript_is_ignored(tiny_llm):
    """Prompts strip whitespace, so both prompts have the same tokens."""
    alike = spoken(["rain", " rain "])
    assert tiny_llm.encode("Repeat it.", "rain") == tiny_llm.encode("Repeat it.", " rain ")
    with pytest.raises(InputError, match="at least two different utterances"):
        OtherSources(tiny_llm, alike, 0, "fail").draw(alike[0], 1)


def test_a_single_utterance_is_refused_in_one_line(tiny_llm):
    samples = [ask(sample_id="a"), ask("Say it again.", sample_id="b")]
    with pytest.raises(InputError, match="at least two different utterances"):
        OtherSources(tiny_llm, samples, 0, "fail").draw(samples[0], 3)


def test_other_speech_is_the_encoded_speech_of_other_files(tiny_lsm, samples):
    encoded = [tiny_lsm.encode_speech(read_audio(sample)) for sample in samples]
    others = OtherSources(tiny_lsm, samples, 0, "fail")
    for own, sample in enumerate(samples):
        drawn = [which(source, encoded) for source in others.draw(sample, 3)]
        assert len(set(drawn)) == 3
        assert own not in drawn


def which(source, encoded):
    """The utterance that speech tokens were made of."""
    found = [i for i, tokens in enumerate(encoded) if tokens.shape == source.shape and torch.equal(tokens, source)]
    assert len(found) == 1
    return found[0]


def test_speech_without_texts_is_told_apart_by_file(tiny_lsm, samples):
    """Without transcripts, every other file counts as another source."""
    bare = recordings(samples, None, None, None)
    encoded = [tiny_lsm.encode_speech(read_audio(sample)) for sample in bare]
    drawn = OtherSources(tiny_lsm, bare, 0, "fail").draw(bare[0], 10)
    assert sorted(which(source, encoded) for source in drawn) == [1, 2]


def test_every_utterance_is_encoded_once(tiny_lsm, samples, monkeypatch):
    encode_speech, lengths = type(tiny_lsm).encode_speech, []

    def counted(self, waveform):
        lengths.append(len(waveform))
        return encode_speech(self, waveform)

    monkeypatch.setattr(type(tiny_lsm), "encode_speech", counted)
    others = OtherSources(tiny_lsm, samples, 0, "fail")
    for sample in samples:
        others.draw(sample, 4)
    assert len(lengths) == len(samples)


def test_a_source_that_cannot_be_read_stops_the_draw_or_is_passed_over(tiny_lsm, samples, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF but no sound")
    mixed = [*samples[:3], Sample(id="bad", instruction="Repeat it.", audio=broken, text="nobody can hear this")]
    with pytest.raises(InputError, match=r"broken\.wav"):
        OtherSources(tiny_lsm, mixed, 0, "fail").draw(mixed[0], 3)
    encoded = [tiny_lsm.encode_speech(read_audio(sample)) for sample in samples[:3]]
    drawn = OtherSources(tiny_lsm, mixed, 0, "skip").draw(mixed[0], 3)
    assert sorted(which(source, encoded) for source in drawn) == [1, 2]


def test_memory_for_encoded_sources_is_bounded(tiny_llm, monkeypatch):
    monkeypatch.setattr("lsm_probe.probes.sensitivity.counterfactuals._SOURCES_KEPT", 2)
    samples = spoken(WORDS)
    wide, narrow = (OtherSources(tiny_llm, samples, 0, "fail") for _ in range(2))
    draws = [narrow.draw(sample, 4) for sample in samples]
    assert len(narrow._kept) == 2
    monkeypatch.undo()
    assert draws == [wide.draw(sample, 4) for sample in samples]
