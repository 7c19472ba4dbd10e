"""Attention inside the encoder and the connector: exact, invisible to the model, and refused where it is not."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.instruments import capture as capture_module
from lsm_probe.instruments.capture import capture
from lsm_probe.models import LsmProjectorConfig


@pytest.fixture
def build(tiny_encoder_folder, tiny_llm_folder, tiny_projector):
    def make(connector="window_qformer", **changes):
        projector = (
            tiny_projector(num_queries=2) if connector == "window_qformer" else LsmProjectorConfig(connector=connector)
        )
        checkpoint = lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=projector, **changes)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in checkpoint.model.parameters():  # biases start at zero, which would hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return checkpoint

    return make


def brute_force(attention, v_name, projection, run, rows=None):
    """Attention probabilities, a(m, j) and those of single heads, the equation written out over all its vectors.

    `[batch, heads, rows, keys]`, `[batch, rows, keys]` and `[batch, heads, rows, keys]`.
    """
    caught = {}
    hooks = [
        attention.register_forward_hook(lambda m, i, o: caught.__setitem__("alpha", o[1])),
        getattr(attention, v_name).register_forward_hook(lambda m, i, o: caught.__setitem__("value", o)),
    ]
    run()
    for hook in hooks:
        hook.remove()
    alpha = caught["alpha"][:, :, :rows]
    heads = alpha.shape[1]
    value = caught["value"].unflatten(-1, (heads, -1)).expand(len(alpha), -1, -1, -1)
    w_o = projection.weight.T.unflatten(0, (heads, -1))
    received = [torch.einsum("bhmj,bjhe,hed->bmjd", part, value, w_o).norm(dim=-1) for part in alpha.split(50, 2)]
    single = torch.einsum("bjhe,hed->bhjd", value, w_o).norm(dim=-1)[:, :, None] * alpha
    return alpha, torch.cat(received, 1), single


@torch.no_grad()
def reference(checkpoint, waveform):
    """Every number in float64 with eager attention, piece by piece."""
    model = checkpoint.model.double()
    model.set_attn_implementation("eager")
    features, mask = checkpoint.processor.extract(waveform).values()
    pieces, states = [], []
    for i in range(len(features)):
        n = -(-int(mask[i].sum()) // 2)
        layers = []
        for layer in model.audio_tower.layers:
            attend = layer.self_attn
            found = brute_force(
                attend,
                "v_proj",
                attend.out_proj,
                lambda i=i: states.append(model.encode_speech(features[i : i + 1].double(), mask[i : i + 1])[0]),
                n,
            )
            alpha, a, single = (x[0] for x in found)
            layers.append((alpha, a, single, n))
        pieces.append(layers)
    windows = []
    for i, layers in enumerate(pieces):
        blocks = []
        for block in model.multi_modal_projector.qformer.encoder.layer:
            cross = block.crossattention
            found = brute_force(
                cross.attention,
                "value",
                cross.output.dense,
                lambda i=i, layers=layers: model.multi_modal_projector(states[2 * i], torch.tensor([layers[0][3]])),
            )
            blocks.append(found[:2])
        windows.append(blocks)
    return pieces, windows


@pytest.mark.parametrize(("context", "seconds"), [("full", 1.3), ("trimmed", 31.3)])
def test_equals_brute_force_in_float64(build, waveform, context, seconds):
    checkpoint, speech = build(encoder_context=context), waveform(seconds)
    found = lsm_probe.speech_attention(checkpoint, speech, layer=1)
    pieces, windows = reference(checkpoint, speech)
    frames = [layers[0][3] for layers in pieces]
    assert frames == {"full": [65], "trimmed": [1500, 65]}[context]
    close = {"rtol": 2e-4, "atol": 1e-7}
    for layer in range(2):
        kept = [piece[layer] for piece in pieces]
        mean = {
            "norms": torch.cat([a[:, :n].mean(0) for _, a, _, n in kept]),
            "head_norms": torch.cat([s[..., :n].mean(1) for _, _, s, n in kept], -1),
            "alpha": torch.cat([alpha[..., :n].mean(1) for alpha, _, _, n in kept], -1),
            "padding": torch.stack([alpha[..., n:].sum(-1).mean() for alpha, _, _, n in kept]),
        }
        for name, expected in mean.items():
            np.testing.assert_allclose(getattr(found, name)[layer], expected, **close, err_msg=name)
    for own, (_, a, _, n) in zip(found.maps, [piece[1] for piece in pieces], strict=True):
        np.testing.assert_allclose(own, a[:, :n], **close)
    assert (found.padding > 0.5).all() == (context == "full")
    for block in range(2):
        alpha = torch.cat([piece[block][0].transpose(0, 1).flatten(1, 2) for piece in windows], 1)
        norms = torch.cat([piece[block][1].flatten(0, 1) for piece in windows])
        np.testing.assert_allclose(found.connector.alpha[block], alpha, **close)
        np.testing.assert_allclose(found.connector.norms[block], norms, **close)


def test_times_and_shares_belong_to_the_tokens(build, waveform):
    checkpoint = build(encoder_context="trimmed")
    found = lsm_probe.speech_attention(checkpoint, waveform(31.3))  # 1500 frames, and 65: 3 windows of 17, one of 14
    tokens = 2 * (89 + 4)
    assert len(found.token_times) == tokens == len(found.connector.first_frame)
    np.testing.assert_allclose(found.frame_times[found.connector.first_frame, 0], found.token_times[:, 0])
    shares = found.connector.shares()
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    covered = np.round((found.token_times[:, 1] - found.token_times[:, 0]) / 0.02 + 0.4).astype(int)
    np.testing.assert_array_equal((shares > 0).sum(1), covered)
    assert covered[-1] == 14


def test_the_model_stays_bit_identical(build, waveform):
    checkpoint, speech = build(), waveform(2.0)
    before = checkpoint.encode_speech(speech)
    seen = []
    features = checkpoint.processor.extract(speech)
    rows = torch.arange(100)[None]
    real = torch.ones_like(rows, dtype=torch.bool)
    with (
        torch.no_grad(),
        capture(checkpoint.model, "encoder") as captured,
        captured.at_rows(rows, real, lambda layer: seen.append(layer.layer)),
    ):
        during = checkpoint.model.get_audio_features(**features)
    assert seen == [0, 1]
    assert torch.equal(before, during)
    lsm_probe.speech_attention(checkpoint, speech)
    assert torch.equal(before, checkpoint.encode_speech(speech))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in checkpoint.model.modules())


def test_self_attention_of_the_queries_is_captured_too(build, waveform):
    checkpoint = build()
    with capture(checkpoint.model, "connector") as captured:
        names = [layer.name.rpartition("layer.")[2] for layer in captured.layers.values()]
    assert names == [f"{block}.{kind}.attention" for block in range(2) for kind in ("attention", "crossattention")]
    check = lsm_probe.speech_attention(checkpoint, waveform(1.0)).self_check
    assert set(check) == {"encoder", "connector"}
    assert all(0 < part["worst"] < 1e-5 for part in check.values())


class Gated(nn.Linear):
    """A gate before the output projection."""

    def forward(self, x):
        return super().forward(x * torch.sigmoid(x.mean(-1, keepdim=True)))


def gate(parent, name):
    linear = getattr(parent, name)
    gated = Gated(linear.in_features, linear.out_features)
    gated.load_state_dict(linear.state_dict())
    setattr(parent, name, gated.eval())


def blocks(checkpoint):
    return checkpoint.model.multi_modal_projector.qformer.encoder.layer


FAULTS = {
    "gate in the encoder": (
        lambda c: gate(c.model.audio_tower.layers[1].self_attn, "out_proj"),
        r"layer 1 \(audio_tower.layers.1.self_attn\).*its output projection is not linear",
    ),
    "gate in the connector": (
        lambda c: gate(blocks(c)[0].crossattention.output, "dense"),
        r"layer 1 \(multi_modal_projector.*0.crossattention.attention\).*its output projection is not linear",
    ),
    "norm before the residual stream": (
        lambda c: setattr(blocks(c)[1].crossattention.output, "dropout", nn.LayerNorm(32)),
        r"layer 3 .*passes through .*1.crossattention.output.dropout before the residual stream",
    ),
    "attention past the interface": (
        lambda c: setattr(
            c.model.audio_tower.layers[0].self_attn, "forward", lambda hidden_states, **_: (hidden_states, None)
        ),
        r"layer 0 .*does not go through transformers' attention interface",
    ),
    "another implementation": (
        lambda c: c.model.audio_tower.set_attn_implementation("eager"),
        r"runs attn_implementation='eager'",
    ),
    "training mode": (lambda c: c.model.audio_tower.train(), "training mode"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_modules_that_cannot_be_measured_are_refused_by_name(build, waveform, fault):
    checkpoint = build()
    plant, match = FAULTS[fault]
    plant(checkpoint)
    with pytest.raises(InputError, match=match):
        lsm_probe.speech_attention(checkpoint, waveform(1.0))


def test_a_wrong_head_map_is_refused(build, waveform, monkeypatch):
    original = capture_module.recompose
    monkeypatch.setattr(capture_module, "recompose", lambda alpha, value, *rest: original(alpha, value.flip(1), *rest))
    with pytest.raises(InputError, match=r"audio_tower.layers.0.self_attn.*do not reproduce"):
        lsm_probe.speech_attention(build(), waveform(1.0))


@pytest.mark.parametrize("connector", ["frame_stack", "conv", "swiglu_stack", "transformer"])
def test_only_the_attention_of_a_qformer_is_captured(build, waveform, connector):
    checkpoint = build(connector)
    found = lsm_probe.speech_attention(checkpoint, waveform(1.0))
    assert found.connector is None
    assert len(found.token_times) == checkpoint.processor.count_speech_tokens(16_000)
    with (
        pytest.raises(InputError, match="only that of a Q-Former can"),
        capture(checkpoint.model, "connector"),
    ):
        pass


def test_tokens_of_whispers_decoder_have_an_encoder_but_no_times(build, waveform):
    found = lsm_probe.speech_attention(build("linear", decoder_states=7), waveform(1.0))
    assert found.token_times is None
    assert found.connector is None
    assert found.norms.shape == (2, 50)
    assert math.isclose(float(found.alpha[0].mean(0).sum() + found.padding[0, 0]), 1, rel_tol=1e-4)


def test_a_model_without_that_encoder_or_layer_is_refused(tiny_llm, build, waveform):
    with pytest.raises(InputError, match="is not an LSM of this package"):
        lsm_probe.speech_attention(tiny_llm, waveform(1.0))
    with pytest.raises(InputError, match="layer 2 is not one of the encoder's 2"):
        lsm_probe.speech_attention(build(), waveform(1.0), layer=2)
