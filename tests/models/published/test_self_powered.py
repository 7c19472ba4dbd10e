"""The Self-Powered LSM: a random release compared with its computation written out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear
from transformers import LlamaForCausalLM, WhisperModel

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models.published import find_system

WIDTH, INNER, HEADS, QUERIES = 24, 40, 12, 2
STATES = 118
WINDOW = 3  # round(118 * 0.7 / 30)
QFORMER = "speech_Qformer.bert."

Release = Callable[..., Path]


def draw_qformer(encoder_dim: int, llm_dim: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    def dense(name: str, made: int, read: int) -> dict[str, Tensor]:
        return {f"{name}.weight": draw(made, read), f"{name}.bias": draw(made)}

    def norm(name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)}

    layer, tensors = f"{QFORMER}encoder.layer.0.", {"speech_query_tokens": draw(1, QUERIES, WIDTH)}
    for kind, read in (("attention", WIDTH), ("crossattention", encoder_dim)):
        tensors |= dense(f"{layer}{kind}.self.query", WIDTH, WIDTH)
        tensors |= dense(f"{layer}{kind}.self.key", WIDTH, read) | dense(f"{layer}{kind}.self.value", WIDTH, read)
        tensors |= dense(f"{layer}{kind}.output.dense", WIDTH, WIDTH)
        tensors |= norm(f"{layer}{kind}.output.LayerNorm", WIDTH)
    for end in ("", "_query"):  # without an end: for text, without effect
        tensors |= dense(f"{layer}intermediate{end}.dense", INNER, WIDTH)
        tensors |= dense(f"{layer}output{end}.dense", WIDTH, INNER) | norm(f"{layer}output{end}.LayerNorm", WIDTH)
    return {
        **tensors,
        **norm(f"{QFORMER}embeddings.LayerNorm", WIDTH),
        f"{QFORMER}embeddings.word_embeddings.weight": draw(7, WIDTH),
        f"{QFORMER}embeddings.position_ids": torch.arange(5)[None],
        "speech_Qformer.cls.predictions.bias": draw(7),
        **norm("ln_speech", encoder_dim),
        **dense("speech_llama_proj", llm_dim, WIDTH),
    }


@pytest.fixture
def release(write_blsp_model: Callable[..., Path]) -> Release:
    """`release(change)`: the folder of a release whose tensors a function has changed in place."""

    def make(change: Callable[[dict[str, Tensor]], Any] = lambda tensors: None, **settings: Any) -> Path:
        own: dict[str, Any] = {
            "speech_qformer_token_num": QUERIES,
            "speech_qformer_layer": 1,
            "second_per_frame": 0.7,
            "second_stride": 0.7,
            "lora": True,
        }
        return write_blsp_model(draw_qformer(32, 48), own | settings, change)

    return make


@torch.no_grad()
def speech_by_hand(encoder: Path, mel: Tensor) -> Tensor:
    """Whisper on 30 s, then each window of valid states by itself through BERT's layer with 12 heads."""
    weights = draw_qformer(32, 48)
    states = WhisperModel.from_pretrained(encoder).encoder(mel).last_hidden_state[0, :STATES]
    states = layer_norm(states, (32,), weights["ln_speech.weight"], weights["ln_speech.bias"])

    def dense(name: str, x: Tensor) -> Tensor:
        return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-12)

    def attend(name: str, x: Tensor, read: Tensor) -> Tensor:
        query, key, value = (
            dense(f"{name}.self.{part}", y).unflatten(-1, (HEADS, -1)).transpose(0, 1)
            for part, y in (("query", x), ("key", read), ("value", read))
        )
        shares = (query @ key.transpose(1, 2) / (WIDTH / HEADS) ** 0.5).softmax(-1)
        made = dense(f"{name}.output.dense", (shares @ value).transpose(0, 1).flatten(1))
        return norm(f"{name}.output.LayerNorm", made + x)

    tokens = []
    for first in range(0, STATES - WINDOW + 1, WINDOW):
        x = norm(f"{QFORMER}embeddings.LayerNorm", weights["speech_query_tokens"][0])
        layer = f"{QFORMER}encoder.layer.0."
        x = attend(f"{layer}attention", x, x)
        x = attend(f"{layer}crossattention", x, states[first : first + WINDOW])
        made = dense(f"{layer}output_query.dense", gelu(dense(f"{layer}intermediate_query.dense", x)))
        tokens.append(dense("speech_llama_proj", norm(f"{layer}output_query.LayerNorm", made + x)))
    return torch.cat(tokens)


def test_a_release_matches_the_reference_computation(
    release: Release, tiny_encoder_folder: Path, tiny_llm_folder: Path, sample: lsm_probe.Sample, mel: Tensor
) -> None:
    folder = release()
    assert find_system(folder) == "self_powered"
    model = lsm_probe.load(folder, device="cpu", dtype="float32")
    speech = speech_by_hand(tiny_encoder_folder, mel)
    assert len(speech) == QUERIES * (STATES // WINDOW)  # the last state is dropped
    source = sample.read_source("speech")
    torch.testing.assert_close(model.encode_speech(source), speech, rtol=0, atol=2e-5)  # type: ignore[arg-type]
    llm = LlamaForCausalLM.from_pretrained(tiny_llm_folder)
    ids = torch.tensor(model.prompt_ids(sample))
    is_speech = ids == 448
    embedded = llm.get_input_embeddings()(ids.masked_fill(is_speech, 0)).detach()
    embedded[is_speech] = speech
    expected = llm(inputs_embeds=embedded[None]).logits[0].detach()
    torch.testing.assert_close(model.logits(sample), expected, rtol=0, atol=5e-5)
    assert model.template.name == "self_powered"
    text = model.tokenizer.decode(ids[~is_speech])
    assert text.endswith("USER: Write down what the speaker says.\nSPEECH:\nASSISTANT:")


def test_an_imported_release_computes_the_same(release: Release, tmp_path: Path, sample: lsm_probe.Sample) -> None:
    model = lsm_probe.load(release(), device="cpu", dtype="float32")
    model.save(tmp_path / "imported")
    imported = lsm_probe.load(tmp_path / "imported", device="cpu", dtype="float32")
    assert imported.prompt_ids(sample) == model.prompt_ids(sample)
    assert torch.equal(imported.logits(sample), model.logits(sample))


INNER_BIAS = f"{QFORMER}encoder.layer.0.intermediate_query.dense.bias"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.pop(INNER_BIAS), "intermediate_query.dense.bias"),
        (lambda tensors: tensors.update({INNER_BIAS: torch.ones(INNER + 1)}), "intermediate_query.dense.bias"),
        (lambda tensors: tensors.update({"speech_query_tokens": torch.ones(1, 3, WIDTH)}), "query"),
        (lambda tensors: tensors.update({"second_ln.weight": torch.ones(3)}), "second_ln.weight"),
    ],
    ids=["missing", "misshapen", "more queries", "unknown"],
)
def test_damaged_weights_are_named(release: Release, change: Callable[[dict[str, Tensor]], Any], named: str) -> None:
    with pytest.raises(InputError, match=rf"1 tensor \(\S*{named}") as error:
        lsm_probe.load(release(change), device="cpu")
    assert "\n" not in str(error.value)


def test_windows_that_overlap_are_refused(release: Release) -> None:
    with pytest.raises(InputError, match=r"windows of 0\.7 s every 0\.35 s"):
        lsm_probe.load(release(second_stride=0.35), device="cpu")


def test_heads_that_do_not_divide_the_width_are_refused(release: Release) -> None:
    def widen(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if ".attention." in name or "crossattention" in name:
                tensors[name] = torch.cat([tensor, tensor[:1]])

    with pytest.raises(InputError, match="hidden_size 25 is not a multiple of num_attention_heads 12"):
        lsm_probe.load(release(widen), device="cpu")


def test_settings_of_the_wrong_type_are_refused(release: Release) -> None:
    with pytest.raises(InputError, match="makes no LlamaConfig"):
        lsm_probe.load(release(llama_config={"hidden_size": "wide"}), device="cpu")
