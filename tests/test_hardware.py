"""Which dtypes a processor has instructions for, and what follows for `auto` and for a dtype that is asked for."""

import os
import subprocess
import sys

import pytest
import torch

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
