"""Which dtypes a processor has instructions for, and what follows for `auto` and for a dtype that is asked for."""

import os
import subprocess
import sys
from contextlib import suppress

import pytest
import torch

import lsm_probe
from lsm_probe import hardware
from lsm_probe.models.devices import resolve_dtype
from lsm_probe.training.config import TrainConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CODE = """
import warnings, torch
from lsm_probe.hardware import computes_natively, warn_if_emulated
cpu = torch.device("cpu")
print([computes_natively(dtype, cpu) for dtype in (torch.float32, torch.bfloat16, torch.float16)])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    warn_if_emulated(torch.bfloat16, cpu, "--dtype bfloat16")
print(caught[0].message)
"""


@pytest.fixture
def natively(monkeypatch):
    """`natively(True)`: a processor that has bfloat16 instructions, or has not."""
    return lambda has: monkeypatch.setattr(
        hardware, "computes_natively", lambda dtype, device: has or dtype != torch.bfloat16
    )


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="oneDNN's limits are for x86")
def test_a_cpu_limited_to_avx2_has_no_half_precision_and_the_warning_says_how_slow_it_is():
    limited = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", CODE], env=limited, capture_output=True, text=True, timeout=100)
    native, warning = done.stdout.splitlines()
    assert native == "[True, False, False]"
    slower = float(warning.split(" takes ")[1].split(" times")[0])
    assert slower > 1.5
    assert warning.startswith("--dtype bfloat16: this CPU has no bfloat16 instructions")


def test_auto_is_what_the_device_computes_with_speed(natively, monkeypatch):
    for module in ("lsm_probe.models.devices", "lsm_probe.training.config"):
        monkeypatch.setattr(f"{module}.computes_natively", lambda *given: hardware.computes_natively(*given))
    natively(False)
    assert resolve_dtype("auto", CPU) == torch.float32
    assert resolve_dtype("auto", CUDA) == torch.float16
    assert TrainConfig().with_precision_for(CPU).precision == "float32"
    natively(True)
    assert resolve_dtype("auto", CPU) == torch.float32
    assert resolve_dtype("auto", CUDA) == torch.bfloat16
    assert TrainConfig().with_precision_for(CPU).precision == "bf16"
    assert TrainConfig(precision="float32").with_precision_for(CPU).precision == "float32"


def test_a_dtype_that_is_emulated_is_warned_of_and_taken(natively):
    natively(False)
    with pytest.warns(UserWarning, match=r"--dtype bfloat16: this CPU has no bfloat16 instructions.*measured now"):
        assert resolve_dtype("bfloat16", CPU) == torch.bfloat16


def test_a_gpu_that_is_not_here_is_taken_for_a_recent_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.computes_natively(torch.bfloat16, CUDA)


# float32 as it is


def precisions():
    """What decides how float32 is computed, by torch's newer names."""
    parts = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    return [part.fp32_precision for part in (*parts, torch.backends.mkldnn.matmul)]


@pytest.fixture
def precision_put_back():
    yield
    torch.backends.fp32_precision = "none"
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("chosen", ["by default", "for products", "by part", "for all"])
def test_float32_is_not_rounded_in_the_block_and_as_before_after_it(chosen, precision_put_back):
    if chosen == "for products":
        torch.set_float32_matmul_precision("medium")
    elif chosen == "by part":
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    elif chosen == "for all":
        torch.backends.fp32_precision = "tf32"
    before = precisions()
    assert "tf32" in before
    with suppress(KeyError), hardware.exact_float32():  # also where the block fails
        assert set(precisions()) <= {"ieee", "none"}
        raise KeyError
    assert precisions() == before


def test_probes_and_generation_compute_with_exact_float32(tiny_lsm, samples, monkeypatch):
    monkeypatch.setattr("lsm_probe.probes.timeline.measure.word_times", lambda waveform, text: [])
    allowed = []
    for module in (tiny_lsm.model.audio_tower, tiny_lsm.llm):
        module.register_forward_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
    tiny_lsm.llm.model.layers[0].register_full_backward_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
    lsm_probe.importance(tiny_lsm, samples[:1])
    tiny_lsm.logits(samples[0])
    lsm_probe.timeline(tiny_lsm, samples[0], max_new_tokens=2)
    tiny_lsm.generate(tiny_lsm.embed([tiny_lsm.encode("Listen.", samples[0].read_source("speech"))]), max_new_tokens=2)
    assert len(allowed) > 10
    assert not any(allowed)
    assert torch.backends.cudnn.allow_tf32
