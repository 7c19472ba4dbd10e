"""Connectors: how many speech tokens, from which frames, in which order."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lsm_probe.models import LsmForConditionalGeneration, LsmProjectorConfig
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.connectors import WindowQFormer, num_speech_tokens
from lsm_probe.models.segments import Segment

RATE = 16_000
Projector = Callable[..., LsmProjectorConfig]


def make_connector(config: LsmProjectorConfig) -> WindowQFormer:
    """A connector of 32-wide frames to 48-wide tokens with every weight drawn, biases and layer norms too."""
    torch.manual_seed(0)
    connector = WindowQFormer(config, encoder_dim=32, llm_dim=48).eval()
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
def test_each_window_gives_its_queries_and_sees_only_its_own_valid_frames(
    tiny_projector: Projector, window: int, queries: int
) -> None:
    connector = make_connector(tiny_projector(window=window, num_queries=queries))
    lengths = [1, 16, 17, 18, 34, 50, 60]
    frames = draw_frames(len(lengths), 60)
    tokens = connector(frames, torch.tensor(lengths))
    assert tokens.shape == (sum(math.ceil(n / window) * queries for n in lengths), 48)
    torch.testing.assert_close(tokens, slow_reference(connector, frames, lengths, window), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 16, 17, 18, 34, 35, 1499, 1500])
@pytest.mark.parametrize(("window", "queries"), [(17, 1), (17, 2), (50, 4)])
def test_the_predicted_number_of_tokens_is_the_made_one(
    tiny_projector: Projector, frames: int, window: int, queries: int
) -> None:
    config = tiny_projector(window=window, num_queries=queries)
    made = make_connector(config)(draw_frames(1, 1500), torch.tensor([frames]))
    assert num_speech_tokens(config, frames) == len(made) == math.ceil(frames / window) * queries


@torch.no_grad()
def test_frames_beyond_the_valid_length_change_no_bit(tiny_projector: Projector) -> None:
    connector = make_connector(tiny_projector())
    lengths = torch.tensor([20, 34, 5])
    frames = draw_frames(3, 60)
    disturbed = frames.clone()
    for piece, length in zip(disturbed, lengths.tolist(), strict=True):
        piece[length:] = 1e4 * draw_frames(1, 60 - length, seed=2)[0]
    assert torch.equal(connector(frames, lengths), connector(disturbed, lengths))
    # The last valid frame, in a window of three, does count.
    frames[0, 19] += 1
    assert not torch.equal(connector(frames, lengths)[1], connector(disturbed, lengths)[1])


@torch.no_grad()
def test_pieces_keep_their_order_and_do_not_see_each_other(tiny_projector: Projector) -> None:
    connector = make_connector(tiny_projector())
    frames, lengths = draw_frames(3, 60), torch.tensor([40, 10, 60])
    together = connector(frames, lengths)
    apart = [connector(frames[[i]], lengths[[i]]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-5, atol=1e-6)
    swapped = connector(frames[[2, 0, 1]], lengths[[2, 0, 1]])
    torch.testing.assert_close(swapped, torch.cat([apart[2], apart[0], apart[1]]), rtol=1e-5, atol=1e-6)


class TestSpeech:
    """From the waveform on, through the processor and the encoder."""

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
    def test_a_token_is_17_frames_of_20_ms_and_nothing_is_cut(
        self, tiny_lsm: Checkpoint, waveform: Callable[..., np.ndarray], samples: int, tokens: int
    ) -> None:
        prompt = tiny_lsm.encode("Repeat the speech.", waveform(samples / RATE))
        assert prompt.input_features is not None
        assert prompt.input_features_mask is not None
        assert prompt.input_features.shape == (math.ceil(samples / (30 * RATE)), 80, 3000)
        assert prompt.input_features_mask.sum() >= samples / 160
        assert prompt.count(Segment.SOURCE) == tokens
        assert tiny_lsm.embed([prompt])[0].shape == (len(prompt), 48)  # refused if the model made another number

    def test_more_than_30_s_is_its_pieces_one_after_another(
        self, tiny_lsm: Checkpoint, waveform: Callable[..., np.ndarray]
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
        self, tiny_lsm: Checkpoint, waveform: Callable[..., np.ndarray]
    ) -> None:
        prompt = tiny_lsm.encode("Go.", waveform(2))
        model = tiny_lsm.model
        assert isinstance(model, LsmForConditionalGeneration)
        shorter = torch.zeros_like(prompt.input_features_mask)
        shorter[:, : 2 * 17 + 1] = 1  # 18 encoder frames: the convolution keeps a last odd mel frame
        assert len(model.get_audio_features(prompt.input_features, shorter)) == 2
        shorter[:, 2 * 17 :] = 0
        assert len(model.get_audio_features(prompt.input_features, shorter)) == 1
