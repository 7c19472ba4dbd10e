"""The sensitivity probe: its numbers against plain passes and loops, models trained to behave, and its result."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import lsm_probe
from lsm_probe.data.audio import read_audio
from lsm_probe.data.identity import DataIdentity
from lsm_probe.data.pools import Pool, Task
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.instruments.scoring import NOT_FINITE
from lsm_probe.models.checkpoint_kinds import TextLlm
from lsm_probe.probes.sensitivity.counterfactuals import OtherSources
from lsm_probe.probes.sensitivity.result import SensitivityConventions, SensitivityResult
from lsm_probe.runner.comparison import compare
from lsm_probe.runner.identity import CheckpointIdentity

TRANSLATE, REPEAT, ANSWER = (
    ["Translate the speech into German.", "Say it in German."],
    ["Write down what the speaker says, and repeat it twice.", "Repeat it."],
    ["Answer the question about the speech in one word."],
)
POOL = Pool(
    (
        Task(task="translation", instructions=TRANSLATE),
        Task(task="repetition", instructions=REPEAT),
        Task(task="answer", instructions=ANSWER),
    )
)
COUNT = "Count the words."
# Task and instruction of each sample, and what the pool holds beside them: of other tasks, and of the same.
ASKED = [
    ("translation", TRANSLATE[0], [REPEAT[0], ANSWER[0]], [TRANSLATE[1]]),
    ("repetition", REPEAT[1], [TRANSLATE[0], ANSWER[0]], [REPEAT[0]]),
    ("answer", ANSWER[0], [TRANSLATE[0], REPEAT[0]], None),
    (None, TRANSLATE[1], [REPEAT[0], ANSWER[0]], [TRANSLATE[0]]),  # found by its words
    ("count", COUNT, [TRANSLATE[0], REPEAT[0], ANSWER[0]], None),  # not in the pool: one more to be held against
    ("repetition", "Say that again, please.", [TRANSLATE[0], ANSWER[0]], REPEAT),  # found by its task
    ("answer", ANSWER[0], [TRANSLATE[0], REPEAT[0]], None),
    ("translation", TRANSLATE[0], [REPEAT[0], ANSWER[0]], [TRANSLATE[1]]),
]
OTHER_TASKS = [others for _, _, others, _ in ASKED]
# Of several lengths, so that shorter ones are padded in the result.
RESPONSES = {f"s{i}": [20 + i, 31, 47 - i, 90, 8, 2][: 1 + i % 6] for i in range(8)}


@pytest.fixture
def asked(samples):
    """The eight samples under instructions of several tasks."""
    return [
        sample.model_copy(update={"task": task, "instruction": instruction})
        for sample, (task, instruction, *_) in zip(samples, ASKED, strict=True)
    ]


def probe(checkpoint, samples, **options):
    return lsm_probe.sensitivity(checkpoint, samples, **{"max_new_tokens": 6, "instructions": POOL, **options})


# The numbers, by brute force


@torch.no_grad()
def plain(checkpoint, instruction, source, response):
    """log P of each token of the response: one pass by itself, nothing shared or kept, the softmax in float64."""
    prompt = checkpoint.encode(instruction, source)
    said = checkpoint.llm.get_input_embeddings()(torch.tensor(response))
    inputs = torch.cat([checkpoint.embed([prompt])[0], said])[None]
    log_probs = checkpoint.llm(inputs_embeds=inputs, use_cache=False).logits[0].double().log_softmax(-1)
    return [log_probs[len(prompt) - 1 + m, token].item() for m, token in enumerate(response)]


def sensitivity_written_out(pool, per):
    """D from log-probabilities by pool member and token, the own first: the formula as loops."""
    own = pool[0]
    if per == "token":
        by_token = []
        for m in range(len(own)):
            mean = math.fsum(math.exp(member[m]) for member in pool) / len(pool)
            by_token.append(own[m] - math.log(mean))
        return math.fsum(by_token) / len(by_token)
    wholes = [math.fsum(member) for member in pool]
    # Shifted by the largest, or a long response's probability is 0 in float64.
    top = max(wholes)
    mean = math.fsum(math.exp(whole - top) for whole in wholes) / len(wholes)
    return wholes[0] - top - math.log(mean)


def source_of(checkpoint, sample):
    return read_audio(sample) if checkpoint.source == "speech" else sample.text


def drawn_samples(checkpoint, samples, number, seed):
    """For each sample the samples whose sources it is held against, told by their content."""
    others = OtherSources(checkpoint, samples, seed, "fail")
    sources = [
        sample.text if checkpoint.source == "text" else checkpoint.encode_speech(read_audio(sample))
        for sample in samples
    ]

    def whose(source):
        return next(s for s, own in zip(samples, sources, strict=True) if same(own, source))

    return [[whose(source) for source in others.draw(sample, number[i])] for i, sample in enumerate(samples)]


def same(one, other):
    return one == other if isinstance(one, str) else one.shape == other.shape and torch.equal(one, other)


def check_drawn(samples, drawn, number):
    for sample, others, count in zip(samples, drawn, number, strict=True):
        assert len(others) == count
        assert len({other.utterance for other in others}) == count
        assert sample.utterance not in {other.utterance for other in others}
        assert sample.text not in {other.text for other in others}


def brute_force(checkpoint, samples, responses, instructions, number, seed=0):
    """D_i and D_s by `per`, each `[samples]`, and the log-probabilities that they are made of."""
    drawn = drawn_samples(checkpoint, samples, number, seed)
    check_drawn(samples, drawn, number)
    pools = []
    for sample, words, others in zip(samples, instructions, drawn, strict=True):
        source, response = source_of(checkpoint, sample), responses[sample.id]
        pools.append(
            (
                [plain(checkpoint, i, source, response) for i in (sample.instruction, *words)],
                [plain(checkpoint, sample.instruction, source_of(checkpoint, s), response) for s in (sample, *others)],
            )
        )
    return pools, {
        per: [np.array([sensitivity_written_out(pair[k], per) for pair in pools]) for k in (0, 1)]
        for per in ("token", "response")
    }


def assert_equals_brute_force(result, pools, expected, atol=1e-5):
    for i, pair in enumerate(pools):
        for stored, pool in zip((result.instruction_log_probs[i], result.source_log_probs[i]), pair, strict=True):
            written = np.array(pool)
            np.testing.assert_allclose(stored[: written.shape[0], : written.shape[1]], written, rtol=1e-5, atol=atol)
            assert np.isfinite(stored).sum() == written.size
    for per, numbers in expected.items():
        for measured, written in zip(result.with_conventions(per=per).by_sample(), numbers, strict=True):
            np.testing.assert_allclose(measured, written, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("given", [True, False], ids=["given responses", "its own responses"])
def test_numbers_equal_those_of_plain_passes(tiny_llm, asked, given):
    tiny_llm.model.double()
    result = probe(tiny_llm, asked, responses=RESPONSES if given else None)
    number = [len(others) for others in OTHER_TASKS]
    assert_equals_brute_force(result, *brute_force(tiny_llm, asked, result.responses(), OTHER_TASKS, number))


def test_numbers_about_speech_equal_those_of_plain_passes(tiny_lsm, asked):
    """Every plain pass encodes the speech again."""
    tiny_lsm.model.double()
    result = probe(tiny_lsm, asked[3:5], responses=RESPONSES)
    assert_equals_brute_force(result, *brute_force(tiny_lsm, asked[3:5], RESPONSES, OTHER_TASKS[3:5], [1, 1]))


def test_numbers_of_paraphrases_and_of_more_sources_equal_those_of_plain_passes(tiny_llm, asked):
    chosen = [i for i, (*_, paraphrases) in enumerate(ASKED) if paraphrases]
    samples = [asked[i] for i in chosen]
    tiny_llm.model.double()
    result = probe(tiny_llm, samples, pool="paraphrases", sources=4, seed=5, responses=RESPONSES)
    instructions = [ASKED[i][3] for i in chosen]
    expected = brute_force(tiny_llm, samples, RESPONSES, instructions, [3] * len(samples), seed=5)
    assert_equals_brute_force(result, *expected)


def test_single_precision_is_near_enough(tiny_llm, asked):
    result = probe(tiny_llm, asked, responses=RESPONSES)
    number = [len(others) for others in OTHER_TASKS]
    assert_equals_brute_force(result, *brute_force(tiny_llm, asked, RESPONSES, OTHER_TASKS, number), atol=1e-4)
    assert result.self_check["mean"] <= result.self_check["worst"] < 1e-5


def test_numbers_under_a_sliding_window_equal_those_of_plain_passes(asked, make_tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=448, num_hidden_layers=3, sliding_window=16, initializer_range=0.2, **sizes)
    checkpoint = TextLlm("window", MistralForCausalLM(config).double().eval(), make_tokenizer(), "chat")
    samples = [sample.model_copy(update={"instruction": "Say. " * 20 + REPEAT[0]}) for sample in asked[1::4]]
    responses = {sample.id: [20, 31, 2] for sample in samples}
    result = probe(checkpoint, samples, responses=responses)
    instructions = [[TRANSLATE[0], ANSWER[0]]] * 2
    assert_equals_brute_force(result, *brute_force(checkpoint, samples, responses, instructions, [1, 1]))


def test_numbers_per_token_and_per_response_differ(tiny_llm, asked):
    """The tests above would not notice a convention that has no effect."""
    result = probe(tiny_llm, asked, responses=RESPONSES)
    (d_i, d_s), (whole_i, whole_s) = result.by_sample(), result.with_conventions(per="response").by_sample()
    assert np.abs(d_i - d_s).min() > 1e-3
    longer = [len(RESPONSES[i]) > 1 for i in result.ids]
    assert np.abs(d_i - whole_i)[longer].min() > 1e-3
    assert np.abs(d_s - whole_s)[longer].min() > 1e-3


# Models that must behave: small, but really trained

ASK = {
    "translation": ["Translate the speech.", "Write German."],
    "repetition": ["Write down the speech.", "Repeat it."],
    "continuation": ["Continue the text.", "Continue writing."],
    "answer": ["Answer colour.", "Answer green."],
}
SOURCES = ["fox", "lazy dog", "rain", "shells", "old town", "spring"]
FIRST, SECOND = ["fox", "dog", "rain", "sea", "town", "spring"], ["German", "word", "speaker", "year", "forest", "text"]
CELLS = np.random.default_rng(0).permutation(len(ASK) * len(SOURCES)).reshape(len(ASK), len(SOURCES))
# What is answered to task number t about source number s.
WORLDS = {
    "source alone": lambda t, s: FIRST[s],
    "instruction alone": lambda t, s: FIRST[t],
    "both": lambda t, s: f"{FIRST[CELLS[t, s] % 6]} {SECOND[CELLS[t, s] // 6]}",
}
TOY_CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}\n"


def world(name):
    """A sample for each wording of each task and each source."""
    return [
        Sample(id=f"{task}-{w}-{s}", instruction=words, text=text, target=WORLDS[name](t, s), task=task)
        for t, (task, wordings) in enumerate(ASK.items())
        for w, words in enumerate(wordings)
        for s, text in enumerate(SOURCES)
    ]


@pytest.fixture(scope="module")
def trained(make_tokenizer):
    """`trained(world)` trains a two-layer Llama on that world's answers, once."""
    done = {}

    def checkpoint(name):
        if name not in done:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                done[name] = train(untrained(make_tokenizer(TOY_CHAT)), world(name))
        return done[name]

    return checkpoint


def untrained(tokenizer):
    config = LlamaConfig(
        vocab_size=448,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    return TextLlm("toy", LlamaForCausalLM(config), tokenizer, "chat")


def train(checkpoint, samples, steps=130, batch=24, rate=5e-3):
    """Cross-entropy of the target after its prompt, a plain loop of about a second."""
    rows = [(checkpoint.encode(s.instruction, s.text).input_ids, checkpoint.encode_response(s.target)) for s in samples]
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    ids = torch.full((len(rows), longest), 2)
    labels = torch.full((len(rows), longest), -100)
    for i, (prompt, response) in enumerate(rows):
        ids[i, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        labels[i, len(prompt) : len(prompt) + len(response)] = torch.tensor(response)
    optimizer = torch.optim.AdamW(checkpoint.model.parameters(), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    checkpoint.model.train()
    for _ in range(steps):
        chosen = torch.randperm(len(rows))[:batch]
        loss = checkpoint.model(input_ids=ids[chosen], labels=labels[chosen]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    checkpoint.model.eval()
    assert loss.item() < 0.05
    return checkpoint


def measured(checkpoint, name, **options):
    options = {"response": "reference", "sources": len(SOURCES), "batch_size": 48, **options}
    return lsm_probe.sensitivity(checkpoint, world(name), **options)


@pytest.fixture(scope="module")
def both(trained):
    """What the answers of a model trained on both are worth."""
    return measured(trained("both"), "both")


def test_a_model_trained_to_ignore_the_instruction_has_no_instruction_sensitivity(trained):
    result = measured(trained("source alone"), "source alone")
    instruction, source = result.instruction(), result.source()
    assert -0.05 < instruction.ci_low <= instruction.mean <= instruction.ci_high < 0.05
    assert source.ci_low > 0.3
    assert result.info_eta() is None or result.info_eta().mean < 0.05
    # As a whole the answer tells which of the six sources it was, and no more can be known.
    assert result.with_conventions(per="response").source().mean == pytest.approx(math.log(6), abs=0.05)


def test_a_model_trained_on_the_instruction_alone_has_no_source_sensitivity(trained):
    result = measured(trained("instruction alone"), "instruction alone")
    instruction, source = result.instruction(), result.source()
    assert -0.05 < source.ci_low <= source.mean <= source.ci_high < 0.05
    assert instruction.ci_low > 0.3
    assert result.info_eta() is None or result.info_eta().mean > 0.95
    assert result.with_conventions(per="response").instruction().mean == pytest.approx(math.log(4), abs=0.05)


def test_a_model_trained_on_both_is_sensitive_to_both(both):
    assert both.instruction().ci_low > 0.2
    assert both.source().ci_low > 0.2
    info_eta = both.info_eta()
    assert info_eta.ci_low <= info_eta.mean <= info_eta.ci_high  # wide: six utterances
    assert 0.3 < info_eta.mean < 0.7
    whole = both.with_conventions(per="response")
    assert whole.instruction().mean == pytest.approx(math.log(4), abs=0.05)
    assert whole.source().mean == pytest.approx(math.log(6), abs=0.05)
    assert whole.info_eta().mean == pytest.approx(math.log(4) / (math.log(4) + math.log(6)), abs=0.02)


def test_a_trained_model_generates_the_references(trained, both):
    """The model's own answers equal the references, and give the same numbers."""
    own = measured(trained("both"), "both", response="generated", max_new_tokens=8)
    assert own.responses() == both.responses()
    np.testing.assert_allclose(own.by_sample(), both.by_sample(), rtol=1e-5, atol=1e-6)


def test_shuffled_weights_lower_both_sensitivities(trained, both):
    shuffled = copy.deepcopy(trained("both"))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in shuffled.model.parameters():
            weights.copy_(weights.flatten()[torch.randperm(weights.numel(), generator=draw)].view_as(weights))
    result = measured(shuffled, "both")
    for label in ("instruction", "source"):
        assert getattr(result, label)().mean < 0.2 * getattr(both, label)().ci_low
    assert result.info_eta() is None


def test_paraphrases_that_a_model_treats_alike_give_zero_sensitivity(trained, both):
    paraphrases = measured(trained("both"), "both", pool="paraphrases")
    assert np.abs(paraphrases.by_sample()[0]).max() < 0.01
    assert paraphrases.instruction().ci_high < 0.05 * both.instruction().ci_low
    np.testing.assert_allclose(paraphrases.by_sample()[1], both.by_sample()[1], rtol=1e-4, atol=1e-5)


def test_paraphrases_that_a_model_distinguishes_give_positive_sensitivity(trained):
    """Two tasks that are declared as one task have a high paraphrase sensitivity."""
    false = Pool((Task(task="one", instructions=[words for wordings in ASK.values() for words in wordings[:1]]),))
    samples = [s.model_copy(update={"task": "one"}) for s in world("both") if s.id.split("-")[1] == "0"]
    result = lsm_probe.sensitivity(
        trained("both"), samples, pool="paraphrases", instructions=false, response="reference"
    )
    assert result.with_conventions(per="response").instruction().mean == pytest.approx(math.log(4), abs=0.05)


def answers(checkpoint, task_step=0, source_step=0):
    """What is the answer to the next task or source, by the id of a sample of the world of both."""
    targets = {sample.id: sample.target for sample in world("both")}
    tasks = list(ASK)
    taken = {}
    for own in targets:
        task, wording, source = own.split("-")
        task = tasks[(tasks.index(task) + task_step) % len(tasks)]
        source = (int(source) + source_step) % len(SOURCES)
        taken[own] = checkpoint.encode_response(targets[f"{task}-{wording}-{source}"])
    return taken


def test_answers_to_the_wrong_transcript_are_not_worth_the_own(trained, both):
    checkpoint = trained("both")
    assert answers(checkpoint) == both.responses()
    result = measured(checkpoint, "both", responses=answers(checkpoint, source_step=1))
    assert result.source().ci_high < 0 < both.source().ci_low
    assert result.info_eta() is None


def test_answers_to_the_wrong_instruction_are_not_worth_the_own(trained, both):
    result = measured(trained("both"), "both", responses=answers(trained("both"), task_step=1))
    assert result.instruction().ci_high < 0 < both.instruction().ci_low
    assert result.info_eta() is None


# The result


def made(instruction, source=None, *, name="model", clusters=None, responses=None, tasks=None, **fields):
    """A result of these D_i and D_s by sample, below log 2: pools of two, responses of one token."""
    source = instruction if source is None else source
    arrays = [
        np.stack([np.full(len(d), -1.0), -1 + np.log(2 * np.exp(-np.array(d)) - 1)], 1)[:, :, None].astype(np.float32)
        for d in (instruction, source)
    ]
    return result_of(*arrays, name, clusters, responses, tasks, **fields)


def drawn(seed=0, samples=12, pools=(5, 4), tokens=7, spread=3.0, **fields):
    """A result of random log-probabilities, pools and responses of random sizes up to these."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, tokens + 1, samples)
    lengths[0] = tokens
    arrays = []
    for pool in pools:
        values = -rng.exponential(spread, size=(samples, pool, tokens)).astype(np.float32)
        sizes = rng.integers(2, pool + 1, samples)
        sizes[0] = pool
        for i in range(samples):
            values[i, sizes[i] :] = np.nan
            values[i, :, lengths[i] :] = np.nan
        arrays.append(values)
    return result_of(*arrays, "model", None, None, None, **fields)


def result_of(instruction, source, name, clusters, responses, tasks, **fields):
    count = len(instruction)
    return SensitivityResult(
        instruction_log_probs=instruction,
        source_log_probs=source,
        clusters=np.arange(count) if clusters is None else np.array(clusters),
        samples=[
            {
                "id": f"s{i}",
                "task": None if tasks is None else tasks[i],
                "response_ids": [i, 2] if responses is None else responses[i],
            }
            for i in range(count)
        ],
        checkpoint=CheckpointIdentity(name=name, source="text", template="chat", dtype="float32"),
        data=DataIdentity("data", "abc", count),
        **{
            "conventions": SensitivityConventions(),
            "self_check": {"mean": 1e-7, "bound": 1e-3, "unit": "nats per token"},
            **fields,
        },
    )


def named(result, name):
    return replace(result, checkpoint=replace(result.checkpoint, name=name))


def sizes(log_probs):
    return [int(np.isfinite(pool[:, 0]).sum()) for pool in log_probs]


def members(log_probs):
    """Each sample's own part of a padded array, as lists."""
    return [
        [[p for p in member.astype(float).tolist() if p == p] for member in pool if member[0] == member[0]]
        for pool in log_probs
    ]


@pytest.mark.parametrize("per", ["token", "response"])
def test_either_reading_equals_its_definition(per):
    result = drawn().with_conventions(per=per)
    for measured_, log_probs in zip(
        result.by_sample(), (result.instruction_log_probs, result.source_log_probs), strict=True
    ):
        expected = [sensitivity_written_out(pool, per) for pool in members(log_probs)]
        np.testing.assert_allclose(measured_, expected, rtol=1e-9, atol=1e-12)
    assert result.summary()["unit"] == f"nats per {per}"


def test_either_reading_is_in_the_summary_of_both():
    result = drawn()
    whole = result.with_conventions(per="response")
    assert result.summary()["by_convention"] == whole.summary()["by_convention"]
    for read in (result, whole):
        stored = read.summary()["by_convention"][read.conventions.per]
        assert stored["instruction"] == read.summary()["instruction"]["mean"]
        assert stored["source"] == read.summary()["source"]["mean"]
    assert whole.with_conventions(per="token").summary() == result.summary()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": "paraphrases"}, "pool 'paraphrases' cannot be read from a result made with 'tasks': run it again"),
        ({"response": "reference"}, "response 'reference' cannot be read from a result made with 'generated'"),
        ({"per": "word"}, "per 'word' is unknown; choose one of: token, response"),
    ],
)
def test_what_needs_another_run_cannot_be_changed_when_reading(change, message):
    with pytest.raises(InputError, match=message):
        drawn().with_conventions(**change)


def test_the_same_choices_may_be_named_again():
    result = drawn().with_conventions(pool="tasks", response="generated", per="token")
    assert result.conventions == SensitivityConventions()


def test_each_tokens_sensitivity_is_there_and_its_mean_is_the_samples():
    result = drawn()
    for by_token, d, log_probs in zip(
        result.by_token(), result.by_sample(), (result.instruction_log_probs, result.source_log_probs), strict=True
    ):
        for i, pool in enumerate(members(log_probs)):
            length = len(pool[0])
            expected = [sensitivity_written_out([[member[m]] for member in pool], "token") for m in range(length)]
            np.testing.assert_allclose(by_token[i, :length], expected, rtol=1e-9)
            assert np.isnan(by_token[i, length:]).all()
            assert d[i] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("per", ["token", "response"])
def test_no_sensitivity_is_above_the_ceiling_of_its_pool(seed, per):
    result = drawn(seed, spread=10.0 ** (seed % 5 - 1)).with_conventions(per=per)
    ceilings = result.ceilings()
    for d, by_token, log_probs, ceiling in zip(
        result.by_sample(),
        result.by_token(),
        (result.instruction_log_probs, result.source_log_probs),
        ceilings,
        strict=True,
    ):
        own = np.log(sizes(log_probs))
        assert (d <= own + 1e-12).all()
        assert (np.nan_to_num(by_token, nan=-np.inf) <= own[:, None] + 1e-12).all()
        assert ceiling == pytest.approx(own.mean())
    assert result.instruction().mean <= ceilings[0] + 1e-12
    assert result.source().mean <= ceilings[1] + 1e-12


def test_the_ceiling_is_reached_where_no_other_explains_anything():
    result = drawn(samples=6)
    arrays = {}
    for name in SensitivityResult.BY_SAMPLE:
        arrays[name] = getattr(result, name).copy()
        arrays[name][:, 1:] -= 500
    for per in ("token", "response"):
        sharp = replace(result, **arrays).with_conventions(per=per)
        assert (sharp.instruction().mean, sharp.source().mean) == pytest.approx(sharp.ceilings())


def test_a_pool_that_changes_nothing_is_worth_nothing():
    result = drawn()
    arrays = {
        name: np.where(np.isnan(log_probs), np.nan, log_probs[:, :1])
        for name, log_probs in ((name, getattr(result, name)) for name in SensitivityResult.BY_SAMPLE)
    }
    for per in ("token", "response"):
        flat = replace(result, **arrays).with_conventions(per=per)
        np.testing.assert_allclose(flat.by_sample(), 0, atol=1e-12)
        assert flat.info_eta() is None


def test_log_probabilities_far_below_float64s_smallest_number_still_compare():
    """exp(-5000) is 0 in float64, so the mean over the pool must be computed from logarithms."""
    result = drawn()
    arrays = {name: getattr(result, name) - 5_000 for name in SensitivityResult.BY_SAMPLE}
    for per in ("token", "response"):
        read, low = result.with_conventions(per=per), replace(result, **arrays).with_conventions(per=per)
        np.testing.assert_allclose(low.by_sample(), read.by_sample(), atol=5e-2)
        assert np.isfinite(low.by_sample()).all()


def test_longer_samples_in_the_batch_do_not_change_a_sample():
    """Padding by other samples' longer responses and larger pools: each sample alone has the same numbers."""
    result = drawn()
    widths = ((0, 0), (0, 3), (0, 4))
    wider = replace(
        result,
        **{name: np.pad(getattr(result, name), widths, constant_values=np.nan) for name in SensitivityResult.BY_SAMPLE},
    )
    for per in ("token", "response"):
        together = np.array(result.with_conventions(per=per).by_sample())
        np.testing.assert_allclose(wider.with_conventions(per=per).by_sample(), together, rtol=1e-12)
        for i in range(len(result.samples)):
            trimmed = [
                np.array(members(getattr(result, name))[i], dtype=np.float32)[None]
                for name in SensitivityResult.BY_SAMPLE
            ]
            alone = result_of(*trimmed, "alone", None, None, None).with_conventions(per=per)
            np.testing.assert_allclose(np.array(alone.by_sample())[:, 0], together[:, i], rtol=1e-12)
    assert wider.ceilings() == result.ceilings()


def test_made_results_are_what_they_say():
    d_i, d_s = [0.1, 0.3, -0.5], [0.6, 0.2, 0.0]
    np.testing.assert_allclose(made(d_i, d_s).by_sample(), [d_i, d_s], atol=1e-6)


def test_the_interval_is_over_utterances(slow_interval):
    d = np.linspace(0.1, 0.6, 8)
    clusters = [0, 0, 0, 1, 1, 2, 3, 3]
    result = made(d, clusters=clusters, seed=4)
    low, high = slow_interval(lambda kept: d[kept].mean(), clusters)
    curve = result.instruction()
    assert (curve.mean, curve.ci_low, curve.ci_high) == pytest.approx((d.mean(), low, high), abs=1e-6)
    # Samples of one utterance say no more than one would: the interval is wider than if they were independent.
    assert curve.ci_high - curve.ci_low > 1.2 * np.ptp([made(d).instruction().ci_low, made(d).instruction().ci_high])


def test_info_eta_is_the_ratio_of_the_means_with_the_interval_of_that_ratio(slow_interval):
    rng = np.random.default_rng(0)
    d_i, d_s = rng.uniform(0.05, 0.3, 30), rng.uniform(0.2, 0.6, 30)
    info_eta = made(d_i, d_s).info_eta()
    assert info_eta.mean == pytest.approx(d_i.mean() / (d_i.mean() + d_s.mean()), abs=1e-6)
    expected = slow_interval(lambda kept: d_i[kept].sum() / (d_i[kept].sum() + d_s[kept].sum()), range(30))
    np.testing.assert_allclose([info_eta.ci_low, info_eta.ci_high], expected, atol=1e-6)


@pytest.mark.parametrize("which", ["instruction", "source", "both", "negative"])
def test_info_eta_is_undefined_unless_both_intervals_are_above_zero(which):
    sure, unsure = np.linspace(0.3, 0.6, 10), np.array([-0.4, 0.45] * 5)
    d_i, d_s = {
        "instruction": (unsure, sure),
        "source": (sure, unsure),
        "both": (unsure, unsure),
        "negative": (-sure, sure),
    }[which]
    result = made(d_i, d_s)
    assert result.info_eta() is None
    assert result.summary()["info_eta"] is None
    assert made(sure, sure).info_eta().mean == pytest.approx(0.5)
    differences = compare([made(sure, sure), named(result, "second")])["pairs"][0]
    assert differences["info_eta_difference"] is None


def test_a_subset_holds_the_numbers_of_its_samples_in_its_order():
    result = drawn()
    part = result.subset(["s7", "s2", "s5"])
    assert part.ids == ["s7", "s2", "s5"]
    np.testing.assert_array_equal(part.by_sample(), np.array(result.by_sample())[:, [7, 2, 5]])
    assert part.responses() == {i: result.responses()[i] for i in part.ids}


def test_a_result_compared_with_itself_does_not_differ():
    d = np.linspace(0.2, 0.6, 12)
    twin = replace(named(made(d, d[::-1]), "twin"), seed=7)
    pair = compare([made(d, d[::-1]), twin])["pairs"][0]
    for what in ("instruction", "source", "info_eta"):
        assert pair[f"{what}_difference"] == {"mean": 0, "ci_low": 0, "ci_high": 0}
    assert pair["same_responses"]
    assert pair["warning"] is None


def test_differences_are_paired_and_second_minus_first():
    """The results differ by the same small step on every sample, so the paired interval is much narrower."""
    rng = np.random.default_rng(0)
    d_i, d_s = rng.uniform(0.05, 0.4, 40), rng.uniform(0.05, 0.4, 40)
    first, second = made(d_i, d_s), made(d_i + 0.02, d_s - 0.01, name="second")
    pair = compare([first, second])["pairs"][0]
    assert pair["instruction_difference"] == pytest.approx({"mean": 0.02, "ci_low": 0.02, "ci_high": 0.02}, abs=1e-5)
    assert pair["source_difference"] == pytest.approx({"mean": -0.01, "ci_low": -0.01, "ci_high": -0.01}, abs=1e-5)
    eta = pair["info_eta_difference"]
    assert eta["mean"] == pytest.approx(second.info_eta().mean - first.info_eta().mean, abs=1e-5)
    own = first.info_eta()
    assert 0 < eta["ci_low"] <= eta["mean"] <= eta["ci_high"]
    assert eta["ci_high"] - eta["ci_low"] < 0.2 * (own.ci_high - own.ci_low)


def test_comparing_different_responses_gives_a_warning():
    d = np.linspace(0.2, 0.6, 4)
    responses = [[5, 2], [6, 2], [7, 2], [8, 2]]
    first = made(d, responses=responses)
    second = made(d, name="second", responses=[*responses[:3], [9, 2]])
    pair = compare([first, second])["pairs"][0]
    assert not pair["same_responses"]
    assert "model and second are measured on different responses" in pair["warning"]
    assert "\n" not in pair["warning"]
    alike = compare([first, made(d - 0.1, name="second", responses=responses)])["pairs"][0]
    assert alike["same_responses"]
    assert alike["warning"] is None


def test_saving_and_loading_preserves_the_result(tmp_path):
    result = drawn(excluded={"empty response": ["x"]}, seed=5).with_conventions(per="response")
    loaded = SensitivityResult.load(result.save(tmp_path / "result"))
    assert loaded.to_dict() == result.to_dict()
    assert loaded.conventions == result.conventions
    assert loaded.samples == result.samples
    for name in ("instruction_log_probs", "source_log_probs", "clusters"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(result, name))
        assert getattr(loaded, name).dtype == getattr(result, name).dtype
    np.testing.assert_array_equal(loaded.by_sample(), result.by_sample())
    files = {"arrays.npz", "result.json", "samples.jsonl"}
    assert {path.name for path in (tmp_path / "result").iterdir()} == files


def test_result_json_is_strict_json_whatever_is_undefined(tmp_path):
    """Padding is NaN in the arrays and info-eta is undefined here; the file must hold null instead of NaN."""

    def refuse(name):
        raise AssertionError(name)

    for result in (drawn(), made([-0.1, 0.1, 0.0])):
        result.save(tmp_path)
        text = (tmp_path / "result.json").read_text()
        stored = json.loads(text, parse_constant=refuse)
        assert stored == json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert stored["schema"] == "lsm-probe/sensitivity/2"
    assert stored["info_eta"] is None


def test_the_summary_has_numbers_for_each_task():
    d_i, d_s = [0.1, 0.2, 0.6, 0.4], [0.5, 0.3, 0.1, 0.0]
    by_task = made(d_i, d_s, tasks=["a", "b", "a", None]).summary()["by_task"]
    assert {task: row["n_samples"] for task, row in by_task.items()} == {"a": 2, "b": 1, "none": 1}
    assert {task: row["instruction"] for task, row in by_task.items()} == pytest.approx(
        {"a": 0.35, "b": 0.2, "none": 0.4}, abs=1e-5
    )
    assert {task: row["source"] for task, row in by_task.items()} == pytest.approx(
        {"a": 0.3, "b": 0.3, "none": 0.0}, abs=1e-5
    )
    assert set(made(d_i, d_s).summary()["by_task"]) == {"none"}


def test_frame_has_a_row_for_each_sample():
    result = drawn()
    frame = result.to_frame()
    assert frame["id"].tolist() == result.ids
    np.testing.assert_array_equal(frame[["D_instruction", "D_source"]].to_numpy().T, result.by_sample())
    assert set(frame["checkpoint"]) == {"model"}


# What a run says about itself, and what changes its numbers


def test_the_result_records_its_checkpoint_and_data(checkpoint, asked):
    result = probe(checkpoint, asked, response="reference", per="response")
    summary = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert summary["schema"] == "lsm-probe/sensitivity/2"
    choices = {"per": "response", "pool": "tasks", "response": "reference", "sources": None}
    assert choices.items() <= summary["conventions"].items()
    assert summary["checkpoint"]["source"] == checkpoint.source
    assert summary["checkpoint"]["weights_sha256"]
    assert summary["self_check"]["mean"] <= summary["self_check"]["bound"]
    assert summary["n_samples"] == 8
    assert summary["instruction"]["ceiling"] == pytest.approx((7 * math.log(3) + math.log(4)) / 8, abs=1e-6)
    assert set(summary["by_task"]) == {"translation", "repetition", "answer", "count", "none"}
    for sample, stored in zip(asked, result.samples, strict=True):
        assert stored["response_ids"] == checkpoint.encode_response(sample.target)


def test_results_over_different_pools_are_not_compared(tiny_llm, asked):
    one = probe(tiny_llm, asked, responses=RESPONSES)
    for options in ({"sources": 4}, {"instructions": lsm_probe.read_pool("probing")}):
        other = replace(
            probe(tiny_llm, asked, responses=RESPONSES, **options),
            checkpoint=CheckpointIdentity(name="other", source="text", template="chat", dtype="float32"),
        )
        with pytest.raises(InputError, match="different conventions"):
            compare([one, other])


def test_pools_are_as_large_as_asked_for(tiny_llm, asked):
    result = probe(tiny_llm, asked, responses=RESPONSES)
    assert sizes(result.instruction_log_probs) == sizes(result.source_log_probs) == [3, 3, 3, 3, 4, 3, 3, 3]
    more = probe(tiny_llm, asked, responses=RESPONSES, sources=6)
    assert sizes(more.source_log_probs) == [6] * 8
    all_there_are = probe(tiny_llm, asked, responses=RESPONSES, sources=100)
    assert sizes(all_there_are.source_log_probs) == [8] * 8
    for other in (more, all_there_are):
        np.testing.assert_allclose(other.instruction_log_probs, result.instruction_log_probs, rtol=1e-5, atol=1e-5)


def test_instructions_of_the_samples_are_the_pool_by_default(tiny_llm, asked):
    chosen = asked[:3]
    own = Pool(tuple(Task(task=sample.task, instructions=[sample.instruction]) for sample in chosen))
    default = lsm_probe.sensitivity(tiny_llm, chosen, responses=RESPONSES)
    given = lsm_probe.sensitivity(tiny_llm, chosen, responses=RESPONSES, instructions=own)
    np.testing.assert_array_equal(default.instruction_log_probs, given.instruction_log_probs)
    assert sizes(default.instruction_log_probs) == [3, 3, 3]


def test_both_pools_hold_the_same_own(checkpoint, asked):
    result = probe(checkpoint, asked[:3])
    np.testing.assert_array_equal(result.instruction_log_probs[:, 0], result.source_log_probs[:, 0])


def test_numbers_do_not_depend_on_the_batch(checkpoint, asked):
    asked = asked[:4] if checkpoint.source == "speech" else asked
    together = probe(checkpoint, asked, batch_size=8)
    for batch_size in (1, 3):
        again = probe(checkpoint, asked, batch_size=batch_size, responses=together.responses())
        for name in SensitivityResult.BY_SAMPLE:
            np.testing.assert_allclose(getattr(again, name), getattr(together, name), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(again.by_sample(), together.by_sample(), rtol=1e-5, atol=1e-5)


def test_the_seed_changes_the_draw_of_sources_only(tiny_llm, asked):
    results = [probe(tiny_llm, asked, responses=RESPONSES, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(results[0].source_log_probs, results[1].source_log_probs)
    np.testing.assert_array_equal(results[0].instruction_log_probs, results[2].instruction_log_probs)
    np.testing.assert_array_equal(results[0].source_log_probs[:, 0], results[2].source_log_probs[:, 0])
    assert np.nanmax(np.abs(results[0].source_log_probs - results[2].source_log_probs)[:, 1:]) > 1e-3
    assert [result.seed for result in results] == [0, 0, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"instructions": Pool((*POOL.tasks, Task(task="count", instructions=[COUNT])))},
        {"instructions": Pool((Task(task="translation", instructions=TRANSLATE[::-1]), *POOL.tasks[1:]))},
        {"instructions": None},
        {"pool": "paraphrases"},
        {"sources": 4},
        {"seed": 1},
        {"response": "reference"},
    ],
    ids=["a task more", "other wordings", "the samples' own", "paraphrases", "sources", "seed", "response"],
)
def test_resuming_under_other_settings_is_refused(tiny_llm, asked, tmp_path, stopped, change):
    chosen = [asked[0], asked[1], asked[3]]
    stopped(probe, tiny_llm, chosen, batch_size=1, progress_folder=tmp_path)
    with pytest.raises(InputError, match="another checkpoint, data or settings"):
        probe(tiny_llm, chosen, batch_size=1, progress_folder=tmp_path, **change)


def test_a_run_can_be_resumed_under_conventions_that_only_affect_reading(tiny_llm, asked, tmp_path, stopped):
    """What a token or a response is worth is made of the same log-probabilities."""
    stopped(probe, tiny_llm, asked[:3], batch_size=1, progress_folder=tmp_path)
    resumed = probe(tiny_llm, asked[:3], batch_size=1, progress_folder=tmp_path, per="response")
    assert resumed.to_dict() == probe(tiny_llm, asked[:3], batch_size=1, per="response").to_dict()


def test_prompts_that_do_not_fit_together_are_scored_in_parts(tiny_llm, asked, monkeypatch):
    from lsm_probe.probes.sensitivity import measure as module

    whole = probe(tiny_llm, asked[:3], responses=RESPONSES)
    score, tried = module.log_probabilities, []

    def scarce(llm, embedded, response):
        tried.append(len(embedded))
        if len(embedded) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return score(llm, embedded, response)

    monkeypatch.setattr(module, "log_probabilities", scarce)
    parts = probe(tiny_llm, asked[:3], responses=RESPONSES)
    assert max(tried) == 3
    for name in SensitivityResult.BY_SAMPLE:
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("faulty", ["s1", "s7"])
def test_the_faulty_sample_of_a_batch_is_identified(tiny_llm, asked, monkeypatch, faulty):
    from lsm_probe.probes.sensitivity import measure as module

    score = module.log_probabilities

    def off_where_prompts_share_a_pass(llm, embedded, response):
        off = 2e-3 if len(embedded) > 1 and response == RESPONSES[faulty] else 0
        return score(llm, embedded, response) + off

    monkeypatch.setattr(module, "log_probabilities", off_where_prompts_share_a_pass)
    with pytest.raises(InputError, match=rf"by 2.0e-03 in sample {faulty} \(bound 1e-03\)"):
        probe(tiny_llm, asked, responses=RESPONSES)


def test_a_prompt_that_does_not_fit_into_memory_names_its_sample_or_is_counted(tiny_llm, asked, monkeypatch):
    from lsm_probe.probes.sensitivity import measure as module

    score = module.log_probabilities

    def scarce(llm, embedded, response):
        if response == RESPONSES["s1"]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return score(llm, embedded, response)

    monkeypatch.setattr(module, "log_probabilities", scarce)
    with pytest.raises(InputError, match="sample s1 alone does not fit into memory"):
        probe(tiny_llm, asked[:3], responses=RESPONSES)
    result = probe(tiny_llm, asked[:3], responses=RESPONSES, on_error="skip")
    assert result.excluded == {"does not fit into memory": ["s1"]}
    assert result.ids == ["s0", "s2"]


def test_a_model_with_a_faulty_cache_is_refused(tiny_llm, asked, monkeypatch):
    from lsm_probe.instruments import scoring

    run = scoring._run_shared

    def forgetful(llm, embedded, shared):
        cache = run(llm, embedded, shared)
        cache.layers[0].values = cache.layers[0].values.roll(1, 2)
        return cache

    monkeypatch.setattr(scoring, "_run_shared", forgetful)
    with pytest.raises(InputError, match="key-value cache or batching changes its results"):
        probe(tiny_llm, asked, responses=RESPONSES)


# Mistakes


def refusal(checkpoint, samples, **options):
    with pytest.raises(InputError) as info:
        probe(checkpoint, samples, **options)
    return str(info.value)


def test_a_pool_of_one_instruction_is_refused(checkpoint, samples):
    """All samples belong to one task, so there is no other instruction to compare with."""
    message = refusal(checkpoint, samples, instructions=None)
    assert "the pool has one instruction" in message
    assert "--instructions" in message


def test_a_refusal_names_its_sample_once(tiny_llm, samples):
    message = refusal(tiny_llm, samples, instructions=None)
    assert message.startswith("sample s0: ")
    assert message.count("s0") == 1


def test_paraphrases_without_another_wording_are_refused(tiny_llm, asked):
    assert "the pool holds no other wording of its task" in refusal(tiny_llm, asked[2:3], pool="paraphrases")
    assert "the pool holds no other wording of its task" in refusal(tiny_llm, asked[4:5], pool="paraphrases")


def test_a_sample_without_paraphrases_can_be_skipped(tiny_llm, asked):
    result = probe(tiny_llm, asked, pool="paraphrases", responses=RESPONSES, on_error="skip")
    assert result.ids == ["s0", "s1", "s3", "s5", "s7"]
    assert sorted(i for ids in result.excluded.values() for i in ids) == ["s2", "s4", "s6"]
    assert all("paraphrases" in reason or "wording" in reason for reason in result.excluded)


def test_a_single_utterance_is_refused(checkpoint, asked):
    one = [asked[0], asked[0].model_copy(update={"id": "again", "instruction": ANSWER[0], "task": "answer"})]
    assert "at least two different utterances" in refusal(checkpoint, one)
    assert "at least two different utterances" in refusal(checkpoint, one[:1])


def test_another_recording_of_the_same_words_is_no_other_source(checkpoint, asked):
    alike = [asked[0], asked[1].model_copy(update={"text": asked[0].text})]
    assert "at least two different utterances" in refusal(checkpoint, alike)


@pytest.mark.parametrize("sources", [0, 1, -1])
def test_a_pool_of_fewer_than_two_sources_is_refused_for_what_it_is(tiny_llm, asked, sources):
    """There are eight samples, so the number of samples is not the reason."""
    message = refusal(tiny_llm, asked, sources=sources)
    assert "sources" in message
    assert "give more samples" not in message


def test_broken_weights_are_refused(checkpoint, asked):
    with torch.no_grad():
        checkpoint.llm.get_output_embeddings().weight[5].fill_(torch.nan)
    assert refusal(checkpoint, asked[:3], responses=RESPONSES) == f"sample s0: {NOT_FINITE}"
    skipping = refusal(checkpoint, asked[:3], responses=RESPONSES, on_error="skip")
    assert skipping == f"no sample is left to measure; 3 of 3 because: {NOT_FINITE}"


def test_only_samples_that_use_a_broken_token_are_left_out(tiny_llm, asked):
    """Only one source contains a token with NaN: its sample and the one that draws it are left out, no other."""
    whole = probe(tiny_llm, asked, responses=RESPONSES, sources=2)
    llm, head = tiny_llm.llm, tiny_llm.llm.get_input_embeddings().weight.detach().clone()
    llm.lm_head.weight = torch.nn.Parameter(head)  # no longer tied to the embedding
    prompts = {sample.id: set(tiny_llm.encode(TRANSLATE[0], sample.text).input_ids) for sample in asked}
    said = {token for response in RESPONSES.values() for token in response}
    instructions = {
        token for words in (*TRANSLATE, *REPEAT, *ANSWER, COUNT) for token in tiny_llm.tokenizer(words).input_ids
    }
    broken, token = next(
        (sample.id, token)
        for sample in asked
        for token in sorted(prompts[sample.id] - said - instructions)
        if not any(token in ids for other, ids in prompts.items() if other != sample.id)
    )
    with torch.no_grad():
        llm.get_input_embeddings().weight[token] = torch.nan
    result = probe(tiny_llm, asked, responses=RESPONSES, sources=2, on_error="skip")
    held = [
        sample.id
        for sample, others in zip(asked, drawn_samples(tiny_llm, asked, [1] * 8, 0), strict=True)
        if others[0].id == broken
    ]
    assert len(held) == 1
    assert {reason: set(ids) for reason, ids in result.excluded.items()} == {NOT_FINITE: {broken, *held}}
    left = whole.subset(result.ids)
    np.testing.assert_allclose(result.by_sample(), left.by_sample(), rtol=1e-5, atol=1e-6)


def test_a_source_that_is_too_long_under_another_instruction_is_refused(tiny_llm, asked):
    """Each sample fits with its own instruction, but the first instruction with the second source does not."""
    long = asked[0].model_copy(update={"instruction": "Say. " * 100, "task": "say", "text": "rain"})
    source = asked[1].model_copy(update={"text": "word " * 220})
    fits = [len(tiny_llm.encode(s.instruction, s.text)) for s in (long, source)]
    over = len(tiny_llm.encode(long.instruction, source.text))
    assert max(fits) + 6 <= 1024 < over + 6
    message = refusal(tiny_llm, [long, source], responses={long.id: [20, 2], source.id: [20, 2]})
    assert message.startswith(f"sample {long.id}: with the source of sample {source.id}: a prompt of {over} ")
    assert "exceed the context of 1024 tokens" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"responses": {i: r for i, r in RESPONSES.items() if i != "s3"}}, r"hold none for 1 samples \(first: s3\)"),
        ({"responses": {**RESPONSES, "s3": [10**6]}}, "same tokenizer"),
        ({"responses": {i: [] for i in RESPONSES}}, "no sample is left to measure; 8 of 8 because: empty response"),
        ({"per": "word"}, "per 'word' is unknown; choose one of: token, response"),
        ({"pool": "words"}, "pool 'words' is unknown; choose one of: tasks, paraphrases"),
        ({"response": "gold"}, "response 'gold' is unknown; choose one of: generated, reference"),
    ],
)
def test_bad_input_is_reported_in_one_line(tiny_llm, asked, options, message):
    with pytest.raises(InputError, match=message):
        probe(tiny_llm, asked, **options)


@pytest.mark.parametrize("key", ["text", "target"])
def test_samples_that_lack_something_are_refused(tiny_llm, asked, key):
    chosen = [*asked[:7], asked[7].model_copy(update={key: None})]
    message = refusal(tiny_llm, chosen, response="reference")
    assert f"1 of 8 samples have no `{key}`" in message


def test_an_empty_response_is_left_out_and_counted(tiny_llm, asked):
    result = probe(tiny_llm, asked, responses={**RESPONSES, "s2": []})
    assert result.excluded == {"empty response": ["s2"]}
    whole = probe(tiny_llm, asked, responses=RESPONSES)
    # It has said nothing, but can still be the other source of another sample.
    np.testing.assert_allclose(result.by_sample(), whole.subset(result.ids).by_sample(), rtol=1e-5, atol=1e-5)
