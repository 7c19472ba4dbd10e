"""BEATs: features, states and converted weights, compared with the original's states and with equations written out."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from lsm_probe.errors import InputError
from lsm_probe.models.beats import (
    Beats,
    BeatsConfig,
    beats_features,
    convert_beats,
    convert_beats_config,
    num_beats_states,
)

Array = NDArray[np.float64]

RATE = 16_000
CFG: dict[str, Any] = {
    "input_patch_size": 16,
    "embed_dim": 6,
    "conv_bias": False,
    "encoder_layers": 3,
    "encoder_embed_dim": 8,
    "encoder_ffn_embed_dim": 12,
    "encoder_attention_heads": 2,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "layer_wise_gradient_decay_ratio": 0.6,
    "deep_norm": True,
    "encoder_layerdrop": 0.05,
    "conv_pos": 4,
    "conv_pos_groups": 2,
    "relative_position_embedding": True,
    "num_buckets": 8,
    "max_distance": 7,
    "gru_rel_pos": True,
    "finetuned_model": True,
    "predictor_class": 5,
}


def draw_state() -> dict[str, torch.Tensor]:
    """Random float64 weights under the original's names."""
    layer = {
        **{f"self_attn.{name}_proj.weight": (8, 8) for name in ("q", "k", "v", "out")},
        **{f"self_attn.{name}_proj.bias": (8,) for name in ("q", "k", "v", "out")},
        "self_attn.grep_linear.weight": (8, 4),
        "self_attn.grep_linear.bias": (8,),
        "self_attn.grep_a": (1, 2, 1, 1),
        "self_attn.relative_attention_bias.weight": (8, 2),
        "fc1.weight": (12, 8),
        "fc1.bias": (12,),
        "fc2.weight": (8, 12),
        "fc2.bias": (8,),
        **{
            f"{norm}.{name}": (8,)
            for norm in ("self_attn_layer_norm", "final_layer_norm")
            for name in ("weight", "bias")
        },
    }
    shapes = {
        "patch_embedding.weight": (6, 1, 16, 16),
        "layer_norm.weight": (6,),
        "layer_norm.bias": (6,),
        "post_extract_proj.weight": (8, 6),
        "post_extract_proj.bias": (8,),
        "encoder.pos_conv.0.weight_g": (1, 1, 4),
        "encoder.pos_conv.0.weight_v": (8, 4, 4),
        "encoder.pos_conv.0.bias": (8,),
        "encoder.layer_norm.weight": (8,),
        "encoder.layer_norm.bias": (8,),
        **{f"encoder.layers.{i}.{name}": shape for i in range(3) for name, shape in layer.items()},
        "predictor.weight": (5, 8),
        "predictor.bias": (5,),
    }
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    for i in (1, 2):  # the layers share one tensor, which is saved once for each
        state[f"encoder.layers.{i}.{BIAS}"] = state[f"encoder.layers.0.{BIAS}"].clone()
    return state


BIAS = "self_attn.relative_attention_bias.weight"


@pytest.fixture
def beats() -> Beats:
    """The encoder with the weights of [`draw_state`], in float64."""
    model = Beats(convert_beats_config(CFG)).double().eval()
    model.load_state_dict(convert_beats(draw_state()))
    return model


def draw_features(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, 128, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gelu(x: Array) -> Array:
    return np.vectorize(lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2)(x)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class ByHand:
    """BEATs as its papers define it (arXiv 2212.09058, 2203.00555, 2106.16138), position by position in numpy."""

    def __init__(self, state: dict[str, torch.Tensor]):
        self.state = {name: tensor.numpy() for name, tensor in state.items()}

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name: str, x: Array) -> Array:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def encode(self, features: Array) -> Array:
        kernel = self.state["patch_embedding.weight"][:, 0]
        corners = [(t, m) for t in range(0, len(features) - 15, 16) for m in range(0, 128, 16)]
        patches = np.array([(kernel * features[t : t + 16, m : m + 16]).sum((1, 2)) for t, m in corners])
        x = self.linear("post_extract_proj", self.norm("layer_norm", patches))
        x = self.norm("encoder.layer_norm", x + gelu(self.positions(x)))
        for layer in range(CFG["encoder_layers"]):
            x = self.layer(f"encoder.layers.{layer}", x)
        return x

    def positions(self, x: Array) -> Array:
        """The positional convolution: state i reads those from i - 2 to i + 1, its group of channels only."""
        direction = self.state["encoder.pos_conv.0.weight_v"]
        length = np.sqrt((direction**2).sum((0, 1)))
        weight = self.state["encoder.pos_conv.0.weight_g"] * direction / length
        made = np.tile(self.state["encoder.pos_conv.0.bias"], (len(x), 1))
        for i in range(len(x)):
            for channel in range(8):
                group = slice(0, 4) if channel < 4 else slice(4, 8)
                for tap, j in enumerate(range(i - 2, i + 2)):
                    if 0 <= j < len(x):
                        made[i, channel] += weight[channel, :, tap] @ x[j, group]
        return made

    def layer(self, name: str, x: Array) -> Array:
        alpha = (2 * CFG["encoder_layers"]) ** 0.25
        x = self.norm(f"{name}.self_attn_layer_norm", alpha * x + self.attend(f"{name}.self_attn", x))
        transformed = self.linear(f"{name}.fc2", gelu(self.linear(f"{name}.fc1", x)))
        return self.norm(f"{name}.final_layer_norm", alpha * x + transformed)

    def attend(self, name: str, x: Array) -> Array:
        q, k, v = (self.linear(f"{name}.{part}_proj", x) for part in "qkv")
        heads = []
        for head, part in enumerate((slice(0, 4), slice(4, 8))):
            rows = []
            for i in range(len(x)):
                scores = [q[i, part] @ k[j, part] / 2 + self.bias(name, head, q[i, part], j - i) for j in range(len(x))]
                weights = np.exp(np.array(scores) - max(scores))
                rows.append(weights / weights.sum() @ v[:, part])
            heads.append(np.array(rows))
        return self.linear(f"{name}.out_proj", np.concatenate(heads, axis=1))

    def bias(self, name: str, head: int, query: Array, offset: int) -> float:
        """r = d + (1 - a) d + a (w b d): two gates that read the query scale the bias d of a distance."""
        d = self.state[f"encoder.layers.0.{BIAS}"][bucket(offset), head]
        both = self.state[f"{name}.grep_linear.weight"] @ query + self.state[f"{name}.grep_linear.bias"]
        a, b = sigmoid(both[:4].sum()), sigmoid(both[4:].sum())
        w = self.state[f"{name}.grep_a"][0, head, 0, 0]
        return d + (1 - a) * d + a * (w * b * d)


def bucket(offset: int) -> int:
    """4 buckets for each direction: distances 0 and 1 have their own, those up to 7 share two on a log scale."""
    distance = abs(offset)
    near = distance if distance < 2 else min(2 + int(math.log(distance / 2) / math.log(7 / 2) * 2), 3)
    return near + (4 if offset > 0 else 0)


class TestStates:
    @torch.no_grad()
    def test_states_equal_the_equations_of_the_paper(self, beats: Beats) -> None:
        features = draw_features(53)  # three patches, and five frames that fill none
        states = beats(features[None], torch.tensor([53]))[0]
        expected = ByHand(draw_state()).encode(features.numpy())
        assert states.shape == (24, 8)
        np.testing.assert_allclose(states.numpy(), expected, rtol=0, atol=1e-9)

    @torch.no_grad()
    def test_a_clip_has_the_same_states_alone_and_in_a_batch(self, beats: Beats) -> None:
        lengths = [40, 16, 100]
        features = draw_features(3, 100)
        for clip, length in zip(features, lengths, strict=True):
            clip[length:] = math.nan
        together = beats(features, torch.tensor(lengths))
        assert together.shape == (3, 48, 8)
        for clip, length, states in zip(features, lengths, together, strict=True):
            count = length // 16 * 8
            assert torch.equal(states[:count], beats(clip[None, :length], torch.tensor([length]))[0])
            assert (states[count:] == 0).all()

    @torch.no_grad()
    def test_states_have_the_dtype_of_the_weights(self, beats: Beats) -> None:
        features, frames = draw_features(1, 32), torch.tensor([32])
        exact = beats(features, frames)
        rounded = beats.bfloat16()(features, frames)
        assert rounded.dtype == torch.bfloat16
        assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()

    @pytest.mark.parametrize(
        ("samples", "states"),
        [(1, 0), (2799, 0), (2800, 8), (5359, 8), (5360, 16), (RATE, 48), (25_563, 72), (30 * RATE, 1496)],
    )
    def test_there_are_8_states_per_160_ms(self, samples: int, states: int) -> None:
        assert num_beats_states(samples) == states

    @pytest.mark.parametrize("samples", [2800, 5359, 5360, 9000])
    @torch.no_grad()
    def test_the_number_of_states_equals_the_predicted_number(
        self, beats: Beats, samples: int, waveform: Callable[..., Any]
    ) -> None:
        features = beats_features(waveform(samples / RATE))
        assert beats(features[None], torch.tensor([len(features)])).shape == (1, num_beats_states(samples), 8)


def features_by_hand(waveform: Array) -> Array:
    """Kaldi's filter bank, from its definition: a sum of cosines and sines for each frequency, no FFT."""

    def mel(hertz: Any) -> Any:
        return 1127 * np.log(1 + hertz / 700)

    n, k = np.arange(400), np.arange(257)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * n / 399)) ** 0.85
    fourier = np.exp(-2j * np.pi * np.outer(n, k) / 512)
    edges = np.linspace(mel(20), mel(8000), 130)
    frames = []
    for start in range(0, len(waveform) - 399, 160):
        frame = waveform[start : start + 400] * 32768
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs((frame * window) @ fourier) ** 2
        energies = []
        for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
            at = mel(k * RATE / 512)
            triangle = np.minimum((at - low) / (centre - low), (high - at) / (high - centre)).clip(min=0)
            energies.append(math.log(max(triangle @ power, 2.0**-23)))
        frames.append(energies)
    return (np.array(frames) - 15.41663) / (2 * 6.55582)


class TestFeatures:
    @pytest.mark.filterwarnings("error")
    def test_features_equal_the_kaldi_filter_bank(self) -> None:
        draw = np.random.default_rng(0)
        quiet_then_loud = np.concatenate([np.zeros(1000), draw.normal(0, 0.1, 3000) + 0.05, draw.normal(0, 1e-5, 1001)])
        features = beats_features(quiet_then_loud)
        assert features.dtype == torch.float32
        assert features.shape == (29, 128)
        np.testing.assert_allclose(features.numpy(), features_by_hand(quiet_then_loud), rtol=0, atol=1e-6)

    def test_integers_and_floats_of_one_recording_give_the_same_features(self) -> None:
        samples = np.random.default_rng(0).integers(-8000, 8000, 4000).astype(np.int16)
        features = beats_features(samples)
        assert torch.equal(features, beats_features((samples / 32768).astype(np.float32)))
        assert torch.equal(features, beats_features(samples / 32768))

    @pytest.mark.parametrize(
        ("waveform", "message"),
        [
            (np.zeros(2799), r"2799 samples, and BEATs needs 2800 \(0.175 s at 16000 Hz\)"),
            (np.zeros((2, 4000)), "mono"),
            (np.full(4000, np.nan), "NaN"),
            (np.full(4000, 3000.0), "16-bit"),
        ],
    )
    def test_unusable_waveforms_are_refused(self, waveform: Array, message: str) -> None:
        with pytest.raises(InputError, match=message):
            beats_features(waveform)


class TestConversion:
    @pytest.mark.parametrize(
        "name",
        [
            "encoder.layers.0.self_attn.new.weight",
            "encoder.layers.0.layer_norm.weight",
            "self_attn.q_proj.weight",
            "beats.layer_norm.weight",
            "patch_embedding.bias",
        ],
    )
    def test_unknown_tensors_are_refused(self, name: str) -> None:
        with pytest.raises(InputError, match=rf"hold 1 unknown tensor \({name}\)"):
            convert_beats(draw_state() | {name: torch.zeros(8)})

    def test_only_the_first_unknown_tensors_are_named(self) -> None:
        with pytest.raises(InputError, match=r"7 unknown tensors \(a\.0, a\.1 and 5 more\)"):
            convert_beats({f"a.{i}": torch.zeros(1) for i in range(7)})

    def test_a_layer_with_another_position_bias_is_refused(self) -> None:
        state = draw_state()
        state[f"encoder.layers.2.{BIAS}"][0, 0] += 1e-6
        with pytest.raises(InputError, match=r"encoder\.layers\.2\.self_attn\.relative_attention_bias.* layer 0"):
            convert_beats(state)
        del state[f"encoder.layers.0.{BIAS}"]
        with pytest.raises(InputError, match=r"layers\.1\..*layers\.2\."):
            convert_beats(state)

    @pytest.mark.parametrize("layers", [[0], [0, 2]])
    def test_the_position_bias_may_be_saved_for_one_layer_only(self, layers: list[int]) -> None:
        state = {
            name: tensor
            for name, tensor in draw_state().items()
            if BIAS not in name or int(name.split(".")[2]) in layers
        }
        assert convert_beats(state).keys() == convert_beats(draw_state()).keys()

    def test_the_sizes_come_from_cfg(self) -> None:
        config = convert_beats_config(CFG)
        assert (config.patch_dim, config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (
            6,
            8,
            3,
            12,
        )
        assert (config.num_buckets, config.max_bucket_distance) == (8, 7)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"deep_norm": False}, "deep_norm False.*only True is implemented"),
            ({"activation_fn": "glu"}, "activation_fn 'glu'.*only 'gelu' is implemented"),
            ({"input_patch_size": 8}, "input_patch_size 8.*only 16 is implemented"),
            ({"rotary": True}, r"has 1 unknown setting \(rotary\)"),
            ({"encoder_layers": 0}, "num_hidden_layers is 0"),
            ({"num_buckets": 3}, "num_buckets is 3 .*at least 4 buckets"),
            ({"max_distance": 2}, "max_bucket_distance 2: .*above a quarter"),
            ({"encoder_attention_heads": 3}, "num_attention_heads is 3, which does not divide hidden_size 8"),
            ({"conv_pos_groups": 3}, "num_conv_pos_embedding_groups is 3, which does not divide hidden_size 8"),
        ],
    )
    def test_a_cfg_of_another_encoder_is_refused(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            convert_beats_config(CFG | change)

    @pytest.mark.parametrize("name", ["max_distance", "gru_rel_pos"])
    def test_a_cfg_without_a_required_setting_is_refused(self, name: str) -> None:
        with pytest.raises(InputError, match=rf"^BEATs: its cfg lacks 1 setting \({name}\)"):
            convert_beats_config({key: value for key, value in CFG.items() if key != name})

    def test_the_configuration_is_saved_and_loaded(self, tmp_path: Path) -> None:
        config = convert_beats_config(CFG)
        config.save_pretrained(tmp_path)
        assert BeatsConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


class TestOriginal:
    """The states that the original's class computed, with weights saved as the original saves them."""

    @pytest.fixture
    def folder(self) -> Path:
        published = os.environ.get("LSM_PROBE_PUBLISHED")
        if not published:
            pytest.skip("LSM_PROBE_PUBLISHED does not name the folder with the reference data of published models")
        return Path(published) / "salmonn-beats"

    @torch.no_grad()
    def test_states_equal_those_of_the_original_code(self, folder: Path) -> None:
        [file] = (folder / "beats").glob("*.pt")
        found = torch.load(file, weights_only=True)
        beats = Beats(convert_beats_config(found["cfg"])).eval()
        beats.load_state_dict({name: tensor.float() for name, tensor in convert_beats(found["model"]).items()})
        with np.load(folder / "expected.npz") as expected:
            for clip in (1, 2, 3):
                samples, _ = soundfile.read(folder / f"clip{clip}.wav")
                features, reference = beats_features(samples), expected[f"clip{clip}_beats"]
                states = beats(features[None], torch.tensor([len(features)]))[0].numpy()
                assert states.shape == reference.shape
                # The original makes its mel filters in float32, which are off by 1.4e-5.
                assert np.abs(states - reference).max() < 1e-5 * np.abs(reference).max()
