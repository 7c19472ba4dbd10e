"""Which time each speech token covers: all of the utterance, at the place that the connector reads."""

from typing import Any

import numpy as np
import pytest
import torch

from lsm_probe.errors import InputError
from lsm_probe.models import LsmConfig, LsmProjectorConfig
from lsm_probe.models.connectors import CONNECTORS, num_speech_tokens
from lsm_probe.models.speech_times import even_times, frame_times, speech_token_times

RATE = 16_000
CONFIGS = {
    "frame_stack": LsmProjectorConfig(connector="frame_stack", hidden_size=24),
    "frame_stack of 3": LsmProjectorConfig(connector="frame_stack", window=3, hidden_size=24),
    "conv": LsmProjectorConfig(connector="conv", hidden_size=24),
    "linear": LsmProjectorConfig(connector="linear"),
    "swiglu_stack": LsmProjectorConfig(connector="swiglu_stack", hidden_size=24),
    "transformer": LsmProjectorConfig(connector="transformer", hidden_size=24),
    "window_qformer": LsmProjectorConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64),
    "two queries": LsmProjectorConfig(num_queries=2, hidden_size=32, num_attention_heads=4, intermediate_size=64),
}
# Less than a frame, a frame, an odd mel frame, parts of windows, 30 s exactly, a bit more, three pieces.
LENGTHS = [1, 320, 480, 5 * 320, 37_777, 30 * RATE, 30 * RATE + 1, 75 * RATE + 123]


def config(name: str, **changes: Any) -> LsmConfig:
    return LsmConfig(projector_config=CONFIGS[name], **changes)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("length", LENGTHS)
def test_tokens_cover_the_whole_utterance_in_order(name: str, length: int) -> None:
    times = speech_token_times(config(name), length)
    assert times[0, 0] == 0
    assert times[-1, 1] == length / RATE
    assert (times[:, 0] < times[:, 1]).all()
    queries = CONFIGS[name].num_queries
    np.testing.assert_array_equal(times[queries:, 0], times[:-queries, 1])
    for query in range(queries):
        np.testing.assert_array_equal(times[query::queries], times[::queries])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("states", [1, 7, 8, 9, 16, 17, 18, 1500])
def test_there_are_as_many_spans_as_tokens(name: str, states: int) -> None:
    spans = CONNECTORS[CONFIGS[name].connector].token_states(CONFIGS[name], states)
    assert len(spans) == num_speech_tokens(CONFIGS[name], states)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_token_span_is_the_middle_of_its_receptive_field(name: str) -> None:
    """The states that a token depends on, found by its gradient, contain its span and extend equally to both sides."""
    torch.manual_seed(0)
    projector, count = CONFIGS[name], 40
    connector = CONNECTORS[projector.connector](projector, encoder_dim=32, llm_dim=8).eval()
    for parameter in connector.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.2)
    states = torch.randn(1, count, 32, requires_grad=True)
    tokens = connector(states, torch.tensor([count]))
    reads = []
    for i, (first, past) in enumerate(connector.token_states(projector, count)):
        (gradient,) = torch.autograd.grad(tokens[i].square().sum(), states, retain_graph=True)
        seen = gradient[0].abs().sum(-1).nonzero()[:, 0].tolist()
        assert seen == list(range(seen[0], seen[-1] + 1))
        assert seen[0] <= first < past <= seen[-1] + 1
        if seen[0] > 0 and seen[-1] < count - 1:
            # An even number of states around an odd number that is read: half a state off the middle.
            assert abs((first + past) - (seen[0] + seen[-1] + 1)) <= 1
        reads.append(len(seen))
    assert max(reads) == {"conv": 29, "linear": 1, "transformer": count}.get(name, projector.window)


def test_a_token_begins_at_each_30_s_boundary() -> None:
    times = speech_token_times(config("window_qformer"), 61 * RATE)
    for border in (30.0, 60.0):
        assert border in times[:, 0]
        assert not ((times[:, 0] < border) & (border < times[:, 1])).any()
    np.testing.assert_allclose(times[1], [0.34, 0.68])
    assert len(times) == 2 * 89 + 3


def test_the_numbers_of_tokens_and_frames_equal_the_processors_counts(tiny_lsm: Any) -> None:
    for length in LENGTHS:
        assert len(speech_token_times(tiny_lsm.model.config, length)) == tiny_lsm.processor.count_speech_tokens(length)
    assert len(frame_times(30 * RATE + 321)) == 1502


def test_decoder_states_have_no_times() -> None:
    with pytest.raises(InputError, match="they have no times"):
        speech_token_times(config("linear", decoder_states=7), RATE)


def test_even_times_divide_the_utterance_equally() -> None:
    times = even_times(7, 3 * RATE)
    np.testing.assert_allclose(np.diff(times), 3 / 7)
    assert times[0, 0] == 0
    assert times[-1, 1] == 3
