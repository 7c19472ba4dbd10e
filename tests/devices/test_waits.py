"""How often the CPU waits for a simulated GPU: once a batch, however many layers, tokens and parameters there are.

Exact numbers: a read of a tensor in one more loop changes them. Only waits of this package count. The libraries have
their own, which their next version may change: transformers checks masks in each pass and looks for the end of the
answers after each token.
"""

import sys
import warnings

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import lsm_probe
from lsm_probe.probes.importance.single_weights import SingleWeights
from lsm_probe.training.config import TrainConfig
from lsm_probe.training.run import train

BATCH = 2
ENCODING = 3  # of a prompt with speech: how long the speech is, how many windows and how many placeholders there are
QUICK = {"batch_size": BATCH, "max_new_tokens": 6}
REFERENCE = {"batch_size": BATCH, "response": "reference"}


@pytest.fixture
def own_waits(simulated_device, monkeypatch):
    """`own_waits(run)`: what `run(device)` made the CPU wait for, by line of this package.

    As `run` begins, nothing has been counted; what it does before `device.reset()` is not counted either.
    """
    module = sys.modules[simulated_device.__module__]

    def place():
        frame = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(module.PACKAGE):
                return f"{file.removeprefix(module.PACKAGE)}:{frame.f_lineno}"
            if "site-packages" in file and "/torch/" not in file:
                return "a library"
            frame = frame.f_back
        return "elsewhere"

    monkeypatch.setattr(module, "_place", place)

    def count(run, **options):
        with simulated_device(**options) as device:
            run(device)
        return {line: number for line, number in device.waits.items() if line != "a library"}

    return count


@pytest.fixture(scope="module")
def deep_llm_folder(tiny_llm_folder, tmp_path_factory):
    """The tiny LLM with twice its layers."""
    folder = tmp_path_factory.mktemp("deep") / "llm"
    config = AutoConfig.from_pretrained(tiny_llm_folder, num_hidden_layers=6)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llm_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def deep_lsm_folder(deep_llm_folder, tiny_encoder_folder, tiny_projector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep") / "lsm"
    lsm_probe.build_lsm(tiny_encoder_folder, deep_llm_folder, projector=tiny_projector()).save(folder)
    return folder


@pytest.fixture(params=["tiny", "deep"])
def text_llm(request):
    """The folder of a text LLM, with 3 layers and with 6."""
    return request.getfixturevalue(f"{request.param}_llm_folder")


@pytest.fixture(params=["tiny", "deep"])
def lsm(request):
    """The folder of an LSM, whose LLM has 3 layers, and 6."""
    return request.getfixturevalue(f"{request.param}_lsm_folder")


def measuring(folder, probe, samples, options):
    def run(device):
        checkpoint = lsm_probe.load(folder, device="cuda", dtype="float32")
        device.reset()
        probe(checkpoint, samples, **options)

    return run


# Sums by parameter are read once a batch. Those of single weights are not to be undone: the loss of each of the four
# samples is looked at before they get its part. They come to the CPU at the end. Perplexity is measured four times.
IMPORTANCE = {
    "abs": (REFERENCE, 2),
    "signed": ({**REFERENCE, "mode": "signed"}, 2 * 4 + 1),
    "masks": ({**REFERENCE, "masks": 0.05}, 2 * 4 + 1),
    "ablate": ({**REFERENCE, "ablate": 0.1}, 2 * 4 + 1 + 4 * 4),
}


@pytest.mark.parametrize("name", IMPORTANCE)
def test_importance_waits_for_no_parameter(name, text_llm, samples, own_waits):
    options, expected = IMPORTANCE[name]
    found = own_waits(measuring(text_llm, lsm_probe.importance, samples[:4], options))
    assert sum(found.values()) == expected, found


def test_importance_of_speech_waits_only_to_encode_it_besides(lsm, samples, own_waits):
    found = own_waits(measuring(lsm, lsm_probe.importance, samples[:4], REFERENCE))
    assert sum(found.values()) == 2 + 4 * ENCODING, found


def test_alignment_waits_twice_a_batch(lsm, samples, own_waits):
    """For the states of the speech and for those of the transcripts."""
    found = own_waits(measuring(lsm, lsm_probe.alignment, samples[:6], {"batch_size": BATCH, "perplexity": 2.0}))
    assert sum(found.values()) == 3 * 2 + 6 * ENCODING, found


def test_sensitivity_waits_for_no_prompt_of_a_pool(text_llm, samples, own_waits):
    """A sample waits once for how far the prompts of each of its pools are alike, and once for what they score."""
    pool = lsm_probe.read_pool("probing")
    for sources in (2, 4):
        options = {**REFERENCE, "instructions": pool, "sources": sources}
        found = own_waits(measuring(text_llm, lsm_probe.sensitivity, samples[:4], options))
        pools = 1 if sources == 2 else 2  # one other source alone is compared with none
        assert sum(found.values()) == 4 * (pools + 1), found


def test_text_ability_waits_once_a_batch(text_llm, samples, own_waits):
    found = own_waits(measuring(text_llm, lsm_probe.text_ability, samples[:4], {"batch_size": BATCH}))
    assert sum(found.values()) == 2, found


def test_generation_waits_once_for_eight_tokens(text_llm, samples, own_waits):
    answers = []

    def run(device):
        checkpoint = lsm_probe.load(text_llm, device="cuda", dtype="float32")
        embedded = checkpoint.embed([checkpoint.encode(s.instruction, s.text) for s in samples[:3]])
        device.reset()
        answers.extend(checkpoint.generate(embedded, max_new_tokens=40))

    found = own_waits(run)
    stages = -(-max(map(len, answers)) // 8)
    assert stages > 1
    assert sum(found.values()) == stages, found


def test_generation_uploads_the_rows_that_go_on_once(text_llm, samples, own_waits, simulated_device):
    """Not for each layer of the key-value cache."""
    uploads = []

    def run(device):
        checkpoint = lsm_probe.load(text_llm, device="cuda", dtype="float32")
        embedded = checkpoint.embed([checkpoint.encode(s.instruction, s.text) for s in samples[:3]])
        device.reset()
        checkpoint.generate(embedded, max_new_tokens=40)
        uploads.append({line: n for line, n in device.uploads.items() if line != "a library"})

    own_waits(run)
    assert sum(uploads[0].values()) <= 5, uploads  # the mask, and the rows after each of four stages


def training_waits(folder, manifest, out, own_waits, **settings):
    machine = {"per_device_batch_size": 2, "report_to": [], "save_steps": 1000, "log_steps": 1}
    config = TrainConfig(
        model={"start": str(folder)},
        train=[manifest],
        batch_size=4,
        precision="float32",
        warmup=1,
        machine=machine,
        **settings,
    )
    return own_waits(lambda device: train(config, out))


@pytest.mark.parametrize(("size", "cached"), [("deep", False), ("tiny", True)])
def test_a_training_step_waits_once_and_its_passes_to_encode_speech(
    size, cached, request, samples, tmp_path, own_waits, monkeypatch
):
    folder = request.getfixturevalue(f"{size}_lsm_folder")
    manifest = tmp_path / "train.jsonl"
    lsm_probe.write_manifest(samples, manifest)
    totals = []
    for steps in (1, 3):
        monkeypatch.setenv("LSM_PROBE_CACHE", str(tmp_path / f"cache-{steps}"))
        settings = {"max_steps": steps, "cache_features": cached}
        found = training_waits(folder, manifest, tmp_path / f"{steps}", own_waits, **settings)
        totals.append(sum(found.values()))
    passes = ENCODING - 1 if cached else ENCODING
    assert totals[1] - totals[0] == 2 * (1 + 2 * passes)


def test_a_held_out_batch_waits_only_to_encode_speech(tiny_lsm_folder, samples, tmp_path, own_waits):
    manifests = []
    for number in (4, 6):
        manifests.append(tmp_path / f"{number}.jsonl")
        lsm_probe.write_manifest(samples[:number], manifests[-1])
    totals = []
    for manifest in manifests:
        settings = {"max_steps": 1, "eval": [manifest]}
        found = training_waits(tiny_lsm_folder, manifests[0], tmp_path / manifest.stem, own_waits, **settings)
        totals.append(sum(found.values()))
    # One batch more, with the true inputs and with each of the two controls, before the first step and after the last.
    assert totals[1] - totals[0] == 2 * 3 * ENCODING


# What these numbers are, on two devices, in half precision and where memory is short


def arrays(result):
    return {name: values for name, values in result._arrays().items() if name != "seconds"}


def assert_close(found, expected, tolerance=1e-6):
    """To within a share of the largest number."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if np.issubdtype(np.asarray(values).dtype, np.floating):
            scale = np.nanmax(np.abs(values), initial=0)
            np.testing.assert_allclose(found[name], values, rtol=0, atol=tolerance * scale, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], values)


PROBES = {
    "importance": (lsm_probe.importance, REFERENCE),
    "signed": (lsm_probe.importance, {**REFERENCE, "mode": "signed", "masks": 0.05, "ablate": 0.1}),
    "alignment": (lsm_probe.alignment, {"batch_size": BATCH, "perplexity": 2.0}),
    "sensitivity": (lsm_probe.sensitivity, {**REFERENCE, "instructions": lsm_probe.read_pool("probing")}),
    "text ability": (lsm_probe.text_ability, {"batch_size": BATCH}),
}


@pytest.mark.parametrize("name", PROBES)
def test_half_precision_is_as_near_to_float32_as_on_the_cpu(name, tiny_lsm_folder, samples, simulated_device):
    """Where there are gradients, attention of the simulated device rounds at other places."""
    probe, options = PROBES[name]

    def measured(device, dtype):
        return arrays(probe(lsm_probe.load(tiny_lsm_folder, device=device, dtype=dtype), samples[:6], **options))

    exact = measured("cpu", "float32")
    with warnings.catch_warnings(action="ignore"):  # this CPU may have no instructions for it
        on_cpu = measured("cpu", "bfloat16")
    with simulated_device():
        found = measured("cuda", "bfloat16")
    assert found.keys() == exact.keys()
    for name in {
        "sums",
        "signed",
        "speech",
        "text",
        "instruction_log_probs",
        "source_log_probs",
        "counts",
    } & exact.keys():
        mine, theirs = (np.nanmean(np.abs(each[name] - exact[name])) for each in (found, on_cpu))
        assert 0 < mine <= 1.5 * theirs, name


@pytest.mark.parametrize("name", ["signed", "text ability"])
def test_two_devices_give_the_numbers_of_one(name, tiny_llm_folder, samples, simulated_device):
    probe, options = PROBES[name]
    expected = arrays(probe(lsm_probe.load(tiny_llm_folder, device="cpu", dtype="float32"), samples[:6], **options))
    with simulated_device():
        checkpoint = lsm_probe.load(tiny_llm_folder, device="spread", dtype="float32")
        assert {parameter.device.index for parameter in checkpoint.model.parameters()} >= {0, 1}
        found = arrays(probe(checkpoint, samples[:6], **options))
    assert_close(found, expected)


# The sums take 326,976 bytes, and may take half of the memory.
@pytest.mark.parametrize(("memory", "scratch"), [(0, False), (300_000, False), (300_000, True), (2**36, False)])
def test_sums_of_single_weights_are_the_same_wherever_they_fit(
    memory, scratch, tiny_llm_folder, samples, simulated_device, tmp_path, monkeypatch
):
    options = {**REFERENCE, "mode": "signed", "masks": 0.05}
    expected = lsm_probe.importance(lsm_probe.load(tiny_llm_folder, device="cpu"), samples[:3], **options)
    places, gather = [], SingleWeights.gather

    def noting(self):
        places.append({kept.device.type for kept in self.sums.values()})
        gather(self)
        assert {kept.device.type for kept in self.sums.values()} == {"cpu"}

    monkeypatch.setattr(SingleWeights, "gather", noting)
    with simulated_device(memory=memory):
        checkpoint = lsm_probe.load(tiny_llm_folder, device="cuda", dtype="float32")
        folder = {"scratch": tmp_path} if scratch else {}
        found = lsm_probe.importance(checkpoint, samples[:3], **options, **folder)
    assert places == [{0: {"cpu"}, 300_000: {"cpu", "cuda"}, 2**36: {"cuda"}}[memory]]
    assert_close(arrays(found), arrays(expected))
    for name, packed in expected.masks.packed.items():
        assert np.unpackbits(found.masks.packed[name] ^ packed).sum() <= 2, name  # ties may fall otherwise
    if scratch:
        assert {path.name for path in tmp_path.iterdir()} == {f"{p['name']}.f32" for p in found.parameters}


def test_numbers_of_several_devices_are_read_in_their_order(simulated_device):
    from lsm_probe.models.devices import read_numbers

    with simulated_device() as device:
        numbers = [torch.tensor(float(i), device=f"cuda:{i % 2}", dtype=torch.float16) for i in range(5)]
        numbers.append(torch.tensor(1e-30, dtype=torch.float64))
        device.reset()
        assert read_numbers(numbers).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 1e-30]
        assert sum(device.waits.values()) == 2
