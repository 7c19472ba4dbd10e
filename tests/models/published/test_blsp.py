"""BLSP: a random release compared with its computation written out; a release on the model hub; `lsm-probe import`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import conv1d, gelu, glu, layer_norm, linear
from transformers import LlamaForCausalLM, WhisperModel

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models.lookup import load_text_check, look_up

ENCODER_DIM, LLM_DIM, INNER, STATES = 32, 48, 20, 118

Release = Callable[..., Path]


def draw_connector() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    tensors = {
        "adapter.fc1.weight": draw(INNER, LLM_DIM),
        "adapter.fc2.weight": draw(LLM_DIM, INNER),
        "speech_ln.weight": 1 + draw(LLM_DIM),
        "speech_ln.bias": draw(LLM_DIM),
    }
    for i, made in enumerate((2 * ENCODER_DIM, 2 * ENCODER_DIM, 2 * LLM_DIM)):
        tensors[f"subsampler.conv_layers.{i}.weight"] = draw(made, ENCODER_DIM, 5)
        tensors[f"subsampler.conv_layers.{i}.bias"] = draw(made)
    return tensors


@pytest.fixture
def release(write_blsp_model: Callable[..., Path]) -> Release:
    """`release(change)`: the folder of a release whose tensors a function has changed in place."""

    def make(change: Callable[[dict[str, Tensor]], Any] = lambda tensors: None, **settings: Any) -> Path:
        own: dict[str, Any] = {"conv_kernel_sizes": "5,5,5", "adapter_inner_dim": INNER}
        return write_blsp_model(draw_connector(), own | settings, change)

    return make


@torch.no_grad()
def speech_by_hand(encoder: Path, mel: Tensor) -> Tensor:
    """Whisper on 30 s, then three gated convolutions on its valid states only, the bottleneck and the norm."""
    weights = draw_connector()
    states = WhisperModel.from_pretrained(encoder).encoder(mel).last_hidden_state[0, :STATES].T
    for i in range(3):
        name = f"subsampler.conv_layers.{i}"
        states = glu(conv1d(states, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2, padding=2), dim=0)
    tokens = states.T
    tokens = tokens + linear(gelu(linear(tokens, weights["adapter.fc1.weight"])), weights["adapter.fc2.weight"])
    return layer_norm(tokens, (LLM_DIM,), weights["speech_ln.weight"], weights["speech_ln.bias"])


def test_a_release_matches_the_reference_computation(
    release: Release, tiny_encoder_folder: Path, tiny_llm_folder: Path, sample: lsm_probe.Sample, mel: Tensor
) -> None:
    model = lsm_probe.load(release(), device="cpu", dtype="float32")
    speech = speech_by_hand(tiny_encoder_folder, mel)
    assert len(speech) == 15
    torch.testing.assert_close(
        model.encode_speech(sample.read_source("speech")),  # type: ignore[arg-type]
        speech,
        rtol=0,
        atol=2e-5,
    )
    llm = LlamaForCausalLM.from_pretrained(tiny_llm_folder)
    ids = torch.tensor(model.prompt_ids(sample))
    is_speech = ids == 448
    embedded = llm.get_input_embeddings()(ids.masked_fill(is_speech, 0)).detach()
    embedded[is_speech] = speech
    expected = llm(inputs_embeds=embedded[None]).logits[0].detach()
    torch.testing.assert_close(model.logits(sample), expected, rtol=0, atol=5e-5)
    assert model.tokenizer.decode(ids[~is_speech]).endswith(
        "###[Human]:Write down what the speaker says.\n\n\n###[Assistant]:"
    )
    assert model.identity.published == "blsp"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: tensors.pop("adapter.fc2.weight"), r"lack 1 tensor \(multi_modal_projector.up.weight\)"),
        (
            lambda tensors: tensors.update({"speech_ln.bias": torch.ones(3)}),
            r"have another shape in 1 tensor \(multi_modal_projector.layer_norm.bias \[3\] instead of \[48\]\)",
        ),
        (lambda tensors: tensors.update({"lora_A": torch.ones(3)}), r"holds 1 tensor \(lora_A\)"),
    ],
    ids=["missing", "misshapen", "unknown"],
)
def test_damaged_weights_are_named(
    release: Release, lsm_probe_command: Callable[..., Any], change: Callable[[dict[str, Tensor]], Any], reason: str
) -> None:
    folder = release(change)
    code, _, err = lsm_probe_command("import", folder, "--out", folder.parent / "out")
    assert (code, err.count("error: "), "LOAD REPORT" in err) == (2, 1, False)  # earlier output of the training code
    assert not (folder.parent / "out").exists()
    with pytest.raises(InputError, match=reason):
        lsm_probe.load(folder, device="cpu")


def test_second_copies_of_weights_are_refused(release: Release) -> None:
    folder = release()
    files = sorted(folder.glob("pytorch_model-*.bin"))
    weight_map = {name: path.name for path in files for name in torch.load(path, weights_only=True)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    torch.save({"speech_ln.weight": torch.ones(LLM_DIM)}, folder / "copy.pt")
    with pytest.warns(UserWarning, match="is read, and not copy.pt beside it"):
        lsm_probe.load(folder, device="cpu")
    torch.save({"speech_projector": torch.ones(2)}, folder / "speech_projector.pt")
    with pytest.raises(InputError, match=r"holds speech_projector\.pt beside pytorch_model-00000\.bin, and"):
        lsm_probe.load(folder, device="cpu")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds pytorch_model-00000\.bin and an adapter \(adapter_config\.json\)"):
        lsm_probe.load(folder, device="cpu")


def test_unsupported_convolution_sizes_are_refused(release: Release) -> None:
    with pytest.raises(InputError, match="has convolutions of sizes 3,3,3: only 5,5,5 can be read"):
        lsm_probe.load(release(conv_kernel_sizes="3,3,3"), device="cpu")


def test_an_option_for_a_part_that_the_release_contains_is_refused(
    release: Release, lsm_probe_command: Callable[..., Any]
) -> None:
    folder = release()
    with pytest.raises(InputError, match=r"^--llm x: .*release has its own; leave the option out$"):
        lsm_probe.load(folder, llm="x")
    code, _, err = lsm_probe_command("attention", "--ckpt", folder, "--encoder", "x")
    assert (code, err.splitlines()) == (2, [f"error: --encoder x: {folder} has its own; leave the option out"])


def test_source_and_texts_are_checked_without_reading_weights(release: Release) -> None:
    folder = release(lambda tensors: tensors.clear())
    assert look_up(str(folder)) == "speech"
    check = load_text_check(str(folder))
    check("Repeat.", "rain", None)
    with pytest.raises(InputError, match="control token"):
        check("Repeat </s>", "rain", None)


def test_a_release_on_the_model_hub_is_loaded(
    release: Release, sample: lsm_probe.Sample, keep_from_hub: Callable[[str, Path], Path]
) -> None:
    folder = release()
    expected = lsm_probe.load(folder, device="cpu", dtype="float32").logits(sample)
    commit = keep_from_hub("somebody/blsp", folder).name
    loaded = lsm_probe.load("somebody/blsp", device="cpu", dtype="float32")
    assert torch.equal(loaded.logits(sample), expected)
    assert (loaded.name, loaded.identity.revision, loaded.identity.checksums) == ("somebody/blsp", commit, None)
    with pytest.raises(InputError, match=r"--llm x: .* has its own"):
        lsm_probe.load("somebody/blsp", llm="x")


def test_an_imported_release_is_a_transformers_model(
    release: Release, sample: lsm_probe.Sample, tmp_path: Path, lsm_probe_command: Callable[..., Any]
) -> None:
    folder = release()
    code, out, _ = lsm_probe_command("import", folder, "--out", tmp_path / "lsm")
    assert (code, out.strip()) == (0, f"written to {tmp_path / 'lsm'}: blsp, template blsp")
    imported = lsm_probe.load(tmp_path / "lsm", device="cpu", dtype="float32")
    assert torch.equal(imported.logits(sample), lsm_probe.load(folder, device="cpu", dtype="float32").logits(sample))
    code, _, err = lsm_probe_command("import", folder, "--out", tmp_path / "lsm")
    assert (code, err.strip().endswith("lsm holds files already: choose another folder")) == (2, True)


def test_an_import_keeps_the_dtype_of_the_weights(
    release: Release, tmp_path: Path, lsm_probe_command: Callable[..., Any]
) -> None:
    def halve(tensors: dict[str, Tensor]) -> None:
        halved = {name: tensor.half() for name, tensor in tensors.items() if "inv_freq" not in name}
        tensors.update(halved)

    folder = release(halve)
    for option, dtype in (((), "float16"), (("--dtype", "float32"), "float32")):
        code, _, err = lsm_probe_command("import", folder, "--out", tmp_path / dtype, *option)
        assert code == 0, err
        assert {tensor.dtype for tensor in load_file(tmp_path / dtype / "model.safetensors").values()} == {
            getattr(torch, dtype)
        }
