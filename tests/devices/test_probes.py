"""Every probe, generation and an evaluation on a simulated GPU: the numbers of the CPU, and no mixture of devices."""

import pytest
import torch

import lsm_probe
from lsm_probe.evaluation.task import Task
from lsm_probe.probes.timeline import measure as timeline_module

QUICK = {"max_new_tokens": 6, "batch_size": 2}
TASK = Task(name="said", title="Said", metrics=("word_error_rate",))


def evaluate(checkpoint, samples, **options):
    asked = [sample.model_copy(update={"task": TASK.name}) for sample in samples]
    return lsm_probe.evaluate(checkpoint, asked, tasks=[TASK], **options)


PROBES = {
    "attention": (lsm_probe.attention, {**QUICK, "tokens": True}),
    "sensitivity": (lsm_probe.sensitivity, {**QUICK, "instructions": lsm_probe.read_pool("probing")}),
    "knockout": (lsm_probe.knockout, {**QUICK, "window": 1, "single_heads": True}),
    "alignment": (lsm_probe.alignment, {**QUICK, "perplexity": 2.0}),
    "importance": (lsm_probe.importance, {**QUICK, "masks": 0.05, "ablate": 0.1}),
    "signed": (lsm_probe.importance, {**QUICK, "mode": "signed"}),
    "evaluation": (evaluate, QUICK),
}


@pytest.fixture(params=["speech", "text"])
def folder(request, tiny_lsm_folder, tiny_llm_folder):
    return tiny_lsm_folder if request.param == "speech" else tiny_llm_folder


def arrays(result):
    """The numbers of a result; times differ from run to run."""
    return {name: values for name, values in result._arrays().items() if name != "seconds"}


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_finds_the_numbers_of_the_cpu(name, folder, samples, simulated_device, assert_close):
    probe, options = PROBES[name]
    samples = samples[: 5 if name == "alignment" else 3]
    on_cpu = lsm_probe.load(folder, device="cpu")
    if name == "alignment" and on_cpu.source == "text":
        pytest.skip("alignment is of speech and text")
    expected = arrays(probe(on_cpu, samples, **options))
    with simulated_device() as device:
        checkpoint = lsm_probe.load(folder, dtype="float32")
        assert checkpoint.model.device == torch.device(device.name, 0)
        found = arrays(probe(checkpoint, samples, **options))
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert_close(found[key], values)
    assert sum(device.operations.values()) > 0


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_needs_no_float64(name, tiny_lsm_folder, tiny_llm_folder, samples, simulated_device, assert_close):
    probe, options = PROBES[name]
    folder, samples = (tiny_lsm_folder, samples[:5]) if name == "alignment" else (tiny_llm_folder, samples[:2])
    expected = arrays(probe(lsm_probe.load(folder, device="cpu"), samples, **options))
    with simulated_device("mps") as device:
        with pytest.raises(TypeError, match="does not support"):
            torch.zeros(1, device="mps").double()
        found = arrays(probe(lsm_probe.load(folder, device="mps", dtype="float32"), samples, **options))
    assert device.operations
    for key, values in expected.items():
        assert_close(found[key], values)


def test_text_ability_needs_no_float64(tiny_llm_folder, samples, simulated_device, assert_close):
    expected = lsm_probe.text_ability(lsm_probe.load(tiny_llm_folder, device="cpu"), samples[:3])
    with simulated_device("mps"):
        found = lsm_probe.text_ability(lsm_probe.load(tiny_llm_folder, device="mps", dtype="float32"), samples[:3])
    assert_close(found.counts, expected.counts)


def test_a_timeline_finds_the_numbers_of_the_cpu(tiny_lsm_folder, samples, simulated_device, assert_close, monkeypatch):
    monkeypatch.setattr(timeline_module, "word_times", lambda waveform, text: [])
    expected = lsm_probe.timeline(lsm_probe.load(tiny_lsm_folder, device="cpu"), samples[3], max_new_tokens=6)
    with simulated_device():
        found = lsm_probe.timeline(lsm_probe.load(tiny_lsm_folder, dtype="float32"), samples[3], max_new_tokens=6)
    assert_close(found.norms, expected.norms)


def test_generation_finds_the_tokens_of_the_cpu(folder, samples, simulated_device):
    def responses(checkpoint):
        prompts = [
            checkpoint.encode(sample.instruction, sample.read_source(checkpoint.source)) for sample in samples[:3]
        ]
        return checkpoint.generate(checkpoint.embed(prompts), max_new_tokens=8)

    expected = responses(lsm_probe.load(folder, device="cpu"))
    with simulated_device():
        assert responses(lsm_probe.load(folder, dtype="float32")) == expected


def test_a_model_whose_weights_are_on_two_devices_is_refused_as_cuda_refuses_it(
    tiny_llm_folder, samples, simulated_device
):
    with simulated_device():
        checkpoint = lsm_probe.load(tiny_llm_folder, dtype="float32")
        for other in ("cuda:1", "cpu"):
            checkpoint.model.model.layers[1].to(other)
            with pytest.raises(RuntimeError, match=f"same device, but found at least two devices, .*{other}"):
                lsm_probe.attention(checkpoint, samples[:1], **QUICK)
