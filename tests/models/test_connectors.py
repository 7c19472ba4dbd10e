"""Connectors: how many speech tokens, from which frames, in which order."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lsm_probe.models import LsmForConditionalGeneration, LsmProjectorConfig
from lsm_probe.models.checkpoint_kinds import Lsm
from lsm_probe.models.connectors import (
    CONNECTORS,
    Connector,
    Conv,
    FrameStack,
    SwigluStack,
    WindowQFormer,
    num_speech_tokens,
)
from lsm_probe.models.segments import Segment
from lsm_probe.models.speech_encoder import num_states

RATE = 16_000
Projector = Callable[..., LsmProjectorConfig]


def make_connector(config: LsmProjectorConfig) -> Any:
    """A connector from width 32 to width 48 with all weights random, also biases and layer norms."""
    torch.manual_seed(0)
    connector = CONNECTORS[config.connector](config, encoder_dim=32, llm_dim=48).eval()
    for parameter in connector.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.2)
    return connector


def draw_frames(pieces: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(pieces, length, 32, generator=torch.Generator().manual_seed(seed))


def slow_reference(connector: WindowQFormer, frames: torch.Tensor, lengths: list[int], window: int) -> torch.Tensor:
    """One window at a time, only its valid frames, without any mask."""
    tokens = []
    for piece, length in zip(frames, lengths, strict=True):
        for start in range(0, length, window):
            seen = connector.layer_norm(piece[start : min(start + window, length)])[None]
            read = connector.qformer(query_embeds=connector.query, encoder_hidden_states=seen).last_hidden_state
            tokens.append(connector.linear(read)[0])
    return torch.cat(tokens)


@pytest.mark.parametrize(("window", "queries"), [(17, 1), (17, 3), (5, 2), (1, 1)])
@torch.no_grad()
def test_each_window_sees_only_its_own_valid_frames(tiny_projector: Projector, window: int, queries: int) -> None:
    connector = make_connector(tiny_projector(window=window, num_queries=queries))
    lengths = [1, 16, 17, 18, 34, 50, 60]
    frames = draw_frames(len(lengths), 60)
    tokens = connector(frames, torch.tensor(lengths))
    assert tokens.shape == (sum(math.ceil(n / window) * queries for n in lengths), 48)
    torch.testing.assert_close(tokens, slow_reference(connector, frames, lengths, window), rtol=1e-5, atol=1e-5)


def stacked_by_hand(connector: FrameStack, states: np.ndarray, stack: int) -> np.ndarray:
    """One stack at a time, in numpy, of the valid states of one piece."""
    first, second = connector.linear_1, connector.linear_2
    tokens = []
    for start in range(0, len(states), stack):
        side_by_side = np.zeros(stack * 32)
        seen = states[start : start + stack].reshape(-1)
        side_by_side[: len(seen)] = seen
        hidden = np.maximum(array(first.weight) @ side_by_side + array(first.bias), 0)
        tokens.append(array(second.weight) @ hidden + array(second.bias))
    return np.array(tokens)


def gated_by_hand(connector: SwigluStack, states: np.ndarray, stack: int) -> np.ndarray:
    """One stack at a time, in numpy, of the valid states of one piece."""
    tokens = []
    for start in range(0, len(states), stack):
        side_by_side = np.zeros(stack * 32)
        seen = states[start : start + stack].reshape(-1)
        side_by_side[: len(seen)] = seen
        value, gate = np.split(array(connector.linear_1.weight) @ rms(side_by_side, connector.ln_pre), 2)
        gated = value * gate / (1 + np.exp(-gate))
        if connector.config.middle_norm:
            tokens.append(array(connector.linear_2.weight) @ rms(gated, connector.ln_mid))
        else:
            tokens.append(rms(array(connector.linear_2.weight) @ gated, connector.ln_post))
    return np.array(tokens)


def rms(vector: np.ndarray, norm: Any) -> np.ndarray:
    return vector / np.sqrt((vector**2).mean() + 1e-6) * array(norm.weight)


def convolved_by_hand(connector: Conv, states: np.ndarray) -> np.ndarray:
    """The convolutions written out in numpy, on the valid states of one piece only."""
    for conv in connector.convs:
        weight, bias = array(conv.weight), array(conv.bias)  # [out, in, 5]
        made = []
        for centre in range(0, len(states), 2):
            seen = [i for i in range(centre - 2, centre + 3) if 0 <= i < len(states)]
            both = bias + sum(weight[:, :, i - centre + 2] @ states[i] for i in seen)
            value, gate = np.split(both, 2)
            made.append(value / (1 + np.exp(-gate)))
        states = np.array(made)
    hidden = states @ array(connector.down.weight).T
    gelu = np.array([[h * (1 + math.erf(h / math.sqrt(2))) / 2 for h in row] for row in hidden])
    total = states + gelu @ array(connector.up.weight).T
    normed = (total - total.mean(1, keepdims=True)) / np.sqrt(total.var(1, keepdims=True) + 1e-5)
    return normed * array(connector.layer_norm.weight) + array(connector.layer_norm.bias)


def array(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().double().numpy()


# 24 and 25 states: the last token of `conv` reads a full window, and a single state.
LENGTHS = [1, 2, 4, 5, 6, 8, 9, 24, 25, 59, 60]


@pytest.mark.parametrize("window", [5, 3, 1])
@torch.no_grad()
def test_a_frame_stack_concatenates_its_states(window: int) -> None:
    connector = make_connector(LsmProjectorConfig(connector="frame_stack", window=window, hidden_size=40))
    states = draw_frames(len(LENGTHS), 60)
    expected = [stacked_by_hand(connector, array(s[:n]), window) for s, n in zip(states, LENGTHS, strict=True)]
    tokens = connector(states, torch.tensor(LENGTHS))
    np.testing.assert_allclose(tokens.numpy(), np.concatenate(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("middle_norm", [True, False])
@pytest.mark.parametrize("window", [8, 3])
@torch.no_grad()
def test_a_gated_stack_is_normalised_before_or_after_its_last_layer(window: int, middle_norm: bool) -> None:
    sizes: dict[str, Any] = {"window": window, "hidden_size": 40, "middle_norm": middle_norm}
    connector = make_connector(LsmProjectorConfig(connector="swiglu_stack", **sizes))
    states = draw_frames(len(LENGTHS), 60)
    expected = [gated_by_hand(connector, array(s[:n]), window) for s, n in zip(states, LENGTHS, strict=True)]
    tokens = connector(states, torch.tensor(LENGTHS))
    np.testing.assert_allclose(tokens.numpy(), np.concatenate(expected), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_transformer_attends_within_each_piece_only() -> None:
    connector = make_connector(LsmProjectorConfig(connector="transformer", window=4, hidden_size=24))
    states = draw_frames(len(LENGTHS), 60)
    expected = []
    for piece, length in zip(states, LENGTHS, strict=True):
        windows = torch.nn.functional.pad(piece[:length], (0, 0, 0, -length % 4)).reshape(-1, 4 * 32)
        hidden = connector.stack(windows)
        hidden = (hidden + connector.position(hidden.T).T)[None]
        for layer in connector.layers:  # a layer by its parts, without a mask
            normed = layer.norm1(hidden)
            hidden = hidden + layer.self_attn(normed, normed, normed, need_weights=False)[0]
            inner = torch.nn.functional.gelu(layer.linear1(layer.norm2(hidden)))
            hidden = hidden + layer.linear2(inner)
        expected.append(connector.output(connector.norm(hidden[0])))
    beyond = torch.arange(60) >= torch.tensor(LENGTHS)[:, None]
    tokens = connector(states.masked_fill(beyond[..., None], torch.nan), torch.tensor(LENGTHS))
    torch.testing.assert_close(tokens, torch.cat(expected), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_convolutions_see_valid_states_only() -> None:
    connector = make_connector(LsmProjectorConfig(connector="conv", hidden_size=24))
    states = draw_frames(len(LENGTHS), 60)
    expected = [convolved_by_hand(connector, array(s[:n])) for s, n in zip(states, LENGTHS, strict=True)]
    tokens = connector(states, torch.tensor(LENGTHS))
    np.testing.assert_allclose(tokens.numpy(), np.concatenate(expected), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_linear_connector_makes_one_token_per_state() -> None:
    connector = make_connector(LsmProjectorConfig(connector="linear"))
    states, lengths = draw_frames(3, 60), [40, 1, 60]
    valid = torch.cat([s[:n] for s, n in zip(states, lengths, strict=True)])
    expected = valid @ connector.linear.weight.T + connector.linear.bias
    torch.testing.assert_close(connector(states, torch.tensor(lengths)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("connector", "decoder_states", "after_10_s", "after_30_s"),
    [
        ("window_qformer", None, 30, 89),  # ceil(500 / 17), ceil(1500 / 17)
        ("frame_stack", None, 100, 300),
        ("conv", None, 63, 188),  # 500 -> 250 -> 125 -> 63 and 1500 -> 750 -> 375 -> 188
        ("linear", None, 500, 1500),
        ("transformer", None, 63, 188),
        ("swiglu_stack", None, 63, 188),  # ceil(500 / 8), ceil(1500 / 8)
        ("linear", 64, 64, 64),  # LLaSM
        ("window_qformer", 64, 4, 4),
    ],
)
def test_speech_tokens_of_10_and_30_s(
    connector: str, decoder_states: int | None, after_10_s: int, after_30_s: int
) -> None:
    config = LsmProjectorConfig(connector=connector)
    states = num_states(torch.tensor([1000, 3000]), decoder_states).tolist()
    assert [num_speech_tokens(config, n) for n in states] == [after_10_s, after_30_s]


@pytest.mark.parametrize("name", CONNECTORS)
@torch.no_grad()
def test_every_connector_makes_the_predicted_number_of_tokens(tiny_projector: Projector, name: str) -> None:
    config = tiny_projector(connector=name)
    connector = make_connector(config)
    states = draw_frames(1, 120)
    for length in [*range(1, 40), 64, 119, 120]:
        made = connector(states, torch.tensor([length]))
        assert made.shape == (num_speech_tokens(config, length), 48)


@pytest.mark.parametrize("frames", [1, 16, 17, 18, 34, 35, 1499, 1500])
@pytest.mark.parametrize(("window", "queries"), [(17, 1), (17, 2), (50, 4)])
def test_the_predicted_number_of_tokens_holds_for_all_windows_and_queries(
    tiny_projector: Projector, frames: int, window: int, queries: int
) -> None:
    config = tiny_projector(window=window, num_queries=queries)
    made = make_connector(config)(draw_frames(1, 1500), torch.tensor([frames]))
    assert num_speech_tokens(config, frames) == len(made) == math.ceil(frames / window) * queries


class TestEveryConnector:
    @pytest.fixture(params=CONNECTORS)
    def connector(self, request: pytest.FixtureRequest, tiny_projector: Projector) -> Connector:
        return make_connector(tiny_projector(connector=request.param))

    @pytest.mark.parametrize("beyond", [1e4, 1e38, math.inf, math.nan])
    @torch.no_grad()
    def test_padding_states_do_not_change_the_output(self, connector: Connector, beyond: float) -> None:
        lengths = torch.tensor([20, 34, 5])
        states = draw_frames(3, 60)
        changed = states.clone()
        for piece, length in zip(changed, lengths.tolist(), strict=True):
            piece[length:] = beyond * (draw_frames(1, 60 - length, seed=2)[0] if beyond == 1e4 else 1)
        assert torch.equal(connector(states, lengths), connector(changed, lengths))
        # The last valid state, which shares its token with others, has an effect.
        states[0, 19] += torch.linspace(-1, 1, 32)
        assert not torch.equal(connector(states, lengths), connector(changed, lengths))

    @torch.no_grad()
    def test_pieces_keep_their_order_and_are_independent(self, connector: Connector) -> None:
        states, lengths = draw_frames(3, 60), torch.tensor([40, 10, 60])
        together = connector(states, lengths)
        # Alone, without the padding that the longest of the batch needs.
        apart = [connector(states[[i], :n], lengths[[i]]) for i, n in enumerate(lengths.tolist())]
        torch.testing.assert_close(together, torch.cat(apart), rtol=1e-5, atol=1e-5)
        swapped = connector(states[[2, 0, 1]], lengths[[2, 0, 1]])
        torch.testing.assert_close(swapped, torch.cat([apart[2], apart[0], apart[1]]), rtol=1e-5, atol=1e-5)

    def test_padding_states_get_no_gradient(self, connector: Connector) -> None:
        lengths = torch.tensor([20, 34, 5])
        states = draw_frames(3, 60)
        for piece, length in zip(states, lengths.tolist(), strict=True):
            piece[length:] = math.nan
        states.requires_grad_()
        connector(states, lengths).square().sum().backward()
        assert states.grad is not None
        assert all((piece[n:] == 0).all() for piece, n in zip(states.grad, lengths.tolist(), strict=True))
        assert states.grad.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in connector.parameters())


class TestSpeech:
    """From the waveform through the processor and the encoder."""

    @pytest.mark.parametrize(
        ("samples", "tokens"),
        [
            pytest.param(1, 1, id="one sample"),
            pytest.param(17 * 320, 1, id="one full window"),
            pytest.param(17 * 320 + 1, 2, id="one sample more"),
            pytest.param(2 * RATE, math.ceil(100 / 17), id="2 s"),
            pytest.param(30 * RATE, 89, id="30 s"),
            pytest.param(30 * RATE + 1, 90, id="30 s and a sample"),
            pytest.param(31 * RATE, 89 + 3, id="31 s"),
            pytest.param(65 * RATE, 89 + 89 + 15, id="65 s"),
        ],
    )
    def test_a_token_covers_17_frames_and_no_frame_is_dropped(
        self, tiny_lsm: Lsm, waveform: Callable[..., np.ndarray], samples: int, tokens: int
    ) -> None:
        prompt = tiny_lsm.encode("Repeat the speech.", waveform(samples / RATE))
        assert prompt.features["input_features"].shape == (math.ceil(samples / (30 * RATE)), 80, 3000)
        assert prompt.features["input_features_mask"].sum() >= samples / 160
        assert prompt.count(Segment.SOURCE) == tokens
        assert tiny_lsm.embed([prompt])[0].shape == (len(prompt), 48)  # refused if the model makes another number

    def test_speech_above_30_s_is_encoded_piece_by_piece(
        self, tiny_lsm: Lsm, waveform: Callable[..., np.ndarray]
    ) -> None:
        audio = waveform(31)
        whole, first, rest = (tiny_lsm.encode("Go.", a) for a in (audio, audio[: 30 * RATE], audio[30 * RATE :]))
        speech = [
            embedded[torch.tensor([s is Segment.SOURCE for s in prompt.segments])]
            for prompt, embedded in zip((whole, first, rest), tiny_lsm.embed([whole, first, rest]), strict=True)
        ]
        torch.testing.assert_close(speech[0], torch.cat(speech[1:]), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(speech[1][:3], speech[2], rtol=1e-2)

    @torch.no_grad()
    def test_mel_frames_marked_as_padding_are_not_speech(
        self, tiny_lsm: Lsm, waveform: Callable[..., np.ndarray]
    ) -> None:
        prompt = tiny_lsm.encode("Go.", waveform(2))
        model = tiny_lsm.model
        assert isinstance(model, LsmForConditionalGeneration)
        shorter = torch.zeros_like(prompt.features["input_features_mask"])
        shorter[:, : 2 * 17 + 1] = 1  # 18 encoder frames: the convolution keeps a last odd mel frame
        assert len(model.get_audio_features(prompt.features["input_features"], shorter)) == 2
        shorter[:, 2 * 17 :] = 0
        assert len(model.get_audio_features(prompt.features["input_features"], shorter)) == 1
