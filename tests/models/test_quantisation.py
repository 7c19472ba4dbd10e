"""Quantised checkpoints: measured through their layers if that is exact, else refused with the reason."""

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import lsm_probe
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.extras import install_command
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.quantisation import find_nonlinearity, find_quantised, is_dense, is_packed
from lsm_probe.training.config import ModelSettings
from lsm_probe.training.start import start_model


def bitsandbytes(**bits: Any) -> Any:
    pytest.importorskip("bitsandbytes", reason=install_command("quantized"))
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**bits)


def torchao(name: str, **options: Any) -> Any:
    library = pytest.importorskip("torchao.quantization", reason=install_command("quantized"))
    from transformers import TorchAoConfig

    return TorchAoConfig(getattr(library, name)(**options))


@pytest.fixture(autouse=True)
def without_packed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes packs 4-bit weights, which needs widths divisible by 64. Packed layers
    round their inputs to bfloat16, so that attention in float32 is refused."""
    if find_spec("bitsandbytes"):
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


WEIGHTS_ALONE: dict[str, Callable[[], Any]] = {
    "bitsandbytes, 4 bits": lambda: bitsandbytes(load_in_4bit=True),
    "torchao, int8": lambda: torchao("Int8WeightOnlyConfig"),
    "torchao, int4": lambda: torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4),
}
WITH_INPUTS: dict[str, Callable[[], Any]] = {
    "bitsandbytes, 8 bits": lambda: bitsandbytes(load_in_8bit=True),
    "torchao, int8 dynamic": lambda: torchao("Int8DynamicActivationInt8WeightConfig"),
}
SAMPLES = [
    Sample(id=f"s{i}", instruction=instruction, text=text, target=text[:12], task=instruction)
    for i, (instruction, text) in enumerate(
        [("Translate the speech.", "the quick brown fox"), ("Repeat what is said.", "rain falls softly")]
    )
]


def quantised(folder: Path, config: Any, dtype: torch.dtype = torch.float32) -> Checkpoint:
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=dtype, device_map="cpu")
    return lsm_probe.from_model(model.eval(), PreTrainedTokenizerFast.from_pretrained(folder))


def run(probe: str, checkpoint: Checkpoint) -> Any:
    return getattr(lsm_probe, probe)(checkpoint, SAMPLES, response="reference")


@pytest.mark.parametrize("kind", WEIGHTS_ALONE)
def test_w_o_of_a_quantised_layer_is_dequantised(kind: str, tiny_llm_folder: Path) -> None:
    checkpoint = quantised(tiny_llm_folder, WEIGHTS_ALONE[kind]())
    found = run("attention", checkpoint)
    assert found.self_check["worst"] < 1e-5
    dense = lsm_probe.load(tiny_llm_folder, device="cpu", dtype="float32")
    with torch.no_grad():  # the same numbers as of a dense model whose weights were rounded in the same way
        for name, module in checkpoint.llm.named_modules():
            if isinstance(module, nn.Linear) and name != "lm_head":
                eye = torch.eye(module.in_features)
                dense.llm.get_submodule(name).weight.copy_(module(eye).T)
    torch.testing.assert_close(found.norms, run("attention", dense).norms, rtol=1e-4, atol=1e-6)
    assert run("knockout", checkpoint).self_check["worst"] < 1e-5
    assert run("sensitivity", checkpoint).self_check["mean"] < 1e-4


@pytest.mark.parametrize("kind", WITH_INPUTS)
def test_layers_that_round_their_inputs_are_refused(kind: str, tiny_llm_folder: Path) -> None:
    checkpoint = quantised(tiny_llm_folder, WITH_INPUTS[kind]())
    for probe in ("attention", "knockout", "sensitivity"):
        with pytest.raises(
            InputError, match=r"is quantised \((Linear8bitLt, int8|Linear, Int8Tensor)\) and rounds its"
        ):
            run(probe, checkpoint)


@pytest.mark.parametrize("kind", [*WEIGHTS_ALONE, *WITH_INPUTS])
def test_importance_and_training_refuse_quantised_weights(
    kind: str, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = quantised(tiny_llm_folder, (WEIGHTS_ALONE | WITH_INPUTS)[kind]())
    with pytest.raises(InputError, match=r"model\.layers\.0\.\S+ is quantised .* no gradient"):
        run("importance", checkpoint)
    monkeypatch.setattr("lsm_probe.training.start.build_lsm", lambda *_, **__: checkpoint)
    with pytest.raises(InputError, match=r"q_proj is quantised .* not trained, under LoRA neither"):
        start_model(ModelSettings(encoder="encoder", llm="llm"), None, seed=0)


def test_a_quantised_folder_is_loaded_in_the_requested_dtype(tiny_llm_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llm_folder, tmp_path / "4bit")
    quantised(tiny_llm_folder, bitsandbytes(load_in_4bit=True)).model.save_pretrained(tmp_path / "4bit")
    checkpoint = lsm_probe.load(tmp_path / "4bit", device="cpu", dtype="bfloat16")
    dtypes = {parameter.dtype for parameter in checkpoint.model.parameters()}
    assert dtypes == {torch.bfloat16, torch.uint8}
    assert run("attention", checkpoint).checkpoint.dtype == "bfloat16"


class _RoundsInputs(nn.Linear):
    """Rounds each row of its inputs to 8 bits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = (x.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-6)
        return super().forward((x / scale).round() * scale)


class _RoundsToBfloat16(nn.Linear):
    """Rounds inputs and outputs to bfloat16, as bitsandbytes does with packed 4-bit weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.bfloat16().to(x.dtype)).bfloat16().to(x.dtype)


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (_RoundsInputs, "load the checkpoint without quantisation, or with quantised weights alone"),
        (_RoundsToBfloat16, "use --dtype bfloat16, or load the checkpoint without quantisation"),
    ],
)
def test_the_refusal_of_rounded_inputs_gives_advice_that_works(
    kind: type[nn.Linear], advice: str, tiny_llm_folder: Path
) -> None:
    def checkpoint(dtype: str) -> Checkpoint:
        loaded = lsm_probe.load(tiny_llm_folder, device="cpu", dtype=dtype)
        for module in list(loaded.llm.modules()):
            if hasattr(module, "o_proj"):
                module.o_proj.__class__ = kind
                module.o_proj.register_buffer("packed", torch.zeros(4, 4, dtype=torch.int8))
        return loaded

    with pytest.raises(InputError, match=rf"is quantised .* rounds its inputs: {advice}"):
        run("attention", checkpoint("float32"))
    if kind is _RoundsToBfloat16:
        assert run("attention", checkpoint("bfloat16")).checkpoint.quantised is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_find_nonlinearity_detects_rounded_inputs_only(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for width in (32, 576):
        assert find_nonlinearity(nn.Linear(width, 64, dtype=dtype), dtype) is None
        error = find_nonlinearity(_RoundsInputs(width, 64, dtype=dtype), dtype)
        assert error is not None
        assert 7e-3 < error < 4e-2


def test_dense_and_packed_tensors_are_distinguished() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Embedding(3, 4), nn.BatchNorm1d(4))
    model.register_buffer("positions", torch.arange(8)[None])
    assert find_quantised(model) is None
    model[0].register_buffer("qweight", torch.zeros(4, 1, dtype=torch.int32))  # as GPTQ packs weights
    assert find_quantised(model) == ("0", "Linear, int32")
    assert not is_dense(torch.zeros(2, 2, dtype=torch.float8_e4m3fn))
    of_two = TwoTensor(torch.ones(4, 4), torch.ones(4, 4))  # made of other tensors, which are not packed
    assert (is_dense(of_two), is_packed(of_two)) == (False, False)
