"""Where memory runs out: which errors say so, and that the failed pass holds nothing while its halves run."""

import weakref

import numpy as np
import pytest
import torch

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.memory import fitting, is_out_of_memory, run_in_halves

SAID = [
    "CUDA out of memory. Tried to allocate 2.00 GiB.",
    "HIP out of memory. Tried to allocate 2.00 GiB.",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA driver error: out of memory",
    "MPS backend out of memory (MPS allocated: 9.00 GB, other allocations: 1.00 GB, max allowed: 9.07 GB).",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9",
]
OTHERS = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    ValueError("out of memory"),
    InputError("sample s0 alone does not fit into memory"),
]


@pytest.mark.parametrize("message", SAID)
def test_memory_errors_of_all_libraries_are_recognised(message):
    assert is_out_of_memory(RuntimeError(message))


def test_memory_errors_of_python_and_numpy_are_recognised():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("whatever it says"))
    with pytest.raises(MemoryError) as error:
        np.empty(2**60, np.uint8)
    assert is_out_of_memory(error.value)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_none(error):
    assert not is_out_of_memory(error)

    def fail(batch):
        raise error

    with pytest.raises(type(error)):
        run_in_halves(fail, [1, 2], lambda item, error: "alone")


@pytest.mark.parametrize("message", SAID[:3])
def test_nothing_of_the_failed_pass_is_left_when_its_halves_run(message):
    held, sizes = [], []

    def layer(states):
        held.append(weakref.ref(states))
        raise RuntimeError(message)

    def run(batch):
        assert not any(tensor() is not None for tensor in held)
        sizes.append(len(batch))
        states = torch.ones(len(batch), 4)
        if len(batch) > 1:
            try:
                layer(states + 1)
            except RuntimeError as error:
                kept = error  # a circle: the error's traceback has this frame, which has the error
                raise RuntimeError(message) from kept
        return list(states.sum(1).int().tolist())

    assert run_in_halves(run, range(4)) == [4, 4, 4, 4]
    assert sizes == [4, 2, 1, 1, 2, 1, 1]


def test_an_item_that_does_not_fit_alone_leaves_nothing_behind_either():
    held = []

    def run(batch):
        states = torch.ones(len(batch))
        held.append(weakref.ref(states))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def alone(item, error):
        assert is_out_of_memory(error)
        assert not any(tensor() is not None for tensor in held)
        return f"{item} does not fit"

    assert run_in_halves(run, ["a", "b"], alone) == ["a does not fit", "b does not fit"]


@pytest.mark.parametrize("message", SAID[2:6])
def test_a_probe_halves_its_batch_for_each_of_them(tiny_llm, samples, monkeypatch, message):
    options = {"response": "reference", "batch_size": 4}
    whole = lsm_probe.attention(tiny_llm, samples[:4], **options)
    forward, held = type(tiny_llm.llm).forward, []

    def scarce(self, inputs_embeds, **kwargs):
        assert not any(tensor() is not None for tensor in held)
        if len(inputs_embeds) > 2:
            held.append(weakref.ref(inputs_embeds))
            raise RuntimeError(message)
        return forward(self, inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setattr(type(tiny_llm.llm), "forward", scarce)
    halved = lsm_probe.attention(tiny_llm, samples[:4], **options)
    assert len(held) == 1
    np.testing.assert_allclose(halved.norms, whole.norms, rtol=1e-5)


def test_a_model_that_does_not_fit_is_refused_in_one_line(tiny_llm_folder, monkeypatch):
    def full(self, *_, **__):
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported elsewhere")

    monkeypatch.setattr("transformers.PreTrainedModel.to", full)
    with pytest.raises(InputError, match="does not fit into the memory of cpu: try --dtype bfloat16"):
        lsm_probe.load(tiny_llm_folder, device="cpu")
    with pytest.raises(RuntimeError, match="no memory error"), fitting("model", "cpu"):
        raise RuntimeError("no memory error")
    refused = pytest.raises(InputError, match="BERT does not fit into the memory of cuda:0: try a smaller model")
    with refused, fitting("BERT", "cuda:0", "a smaller model"):
        raise RuntimeError("CUDA driver error: out of memory")
