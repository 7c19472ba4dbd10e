"""Attention in the speech encoder and connector: between Whisper's frames, and from the connector's
queries to the frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsm_probe.errors import InputError
from lsm_probe.hardware import exact_float32
from lsm_probe.instruments.capture import Capture, LayerAttention, capture
from lsm_probe.instruments.norms import norm_attention, row_norms
from lsm_probe.instruments.self_check import error_summary
from lsm_probe.models import LsmForConditionalGeneration
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.checkpoint_kinds import require_lsm
from lsm_probe.models.connectors import WindowQFormer
from lsm_probe.models.connectors.windows import window_states
from lsm_probe.models.speech_encoder import num_states
from lsm_probe.models.speech_times import Times, frame_times, speech_token_times
from lsm_probe.waveform import as_waveform

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ConnectorAttention:
    """Cross-attention of a `window_qformer`'s queries to the frames of their windows.

    Attributes:
        norms: a(m, j) = `|sum_h alpha v W_O|`, `[blocks, speech tokens, window]`; 0 for frames that are missing from
            the last window of a piece.
        alpha: attention probabilities, `[blocks, heads, speech tokens, window]`.
        first_frame: the first frame of each token's window, `[speech tokens]`.
    """

    norms: Floats
    alpha: Floats
    first_frame: NDArray[np.int64]

    def shares(self) -> Floats:
        """What part of a token comes from each frame of its window, `[speech tokens, window]`, each row summing to 1:
        its norms divided by their sum, averaged over the blocks."""
        return (self.norms / self.norms.sum(-1, keepdims=True)).mean(0)


@dataclass(frozen=True)
class SpeechAttention:
    """Attention in the encoder and connector of an LSM for one utterance, all in float32.

    Frames are the encoder's, 20 ms each. Speech longer than 30 s is cut into pieces, whose frames are concatenated; a
    piece attends only to itself. Means are over the frames of a piece as queries. The silence that pads a piece is
    never a query, unless the encoder's context is `padded`: then it counts as speech, and frames begin and end with the
    utterance. If BEATs is part of the audio tower, the encoder here is Whisper alone: the attention inside BEATs is not
    measured, but its states are part of the frames that the connector attends to.

    Attributes:
        norms: A_j of the encoder, the mean over frames m of `|sum_h alpha v W_O|`, `[layers, frames]`.
        head_norms: the same for the norm of each head, `[layers, heads, frames]`.
        alpha: mean over frames m of the attention probability, `[layers, heads, frames]`.
        padding: attention probability that goes to the silence that pads a piece, mean over heads and frames,
            `[layers, pieces]`; 0 if the encoder's context is `trimmed` or `padded`.
        maps: for the requested layer, a(m, j) of all frames of each piece, `[frames, frames]` per piece; else empty.
        frame_times: begin and end of each frame, seconds, `[frames, 2]`.
        token_times: begin and end of each speech token, seconds, `[speech tokens, 2]`; None if tokens have no time.
        connector: the cross-attention of a Q-Former to frames; None for other connectors.
        self_check: for `encoder` and `connector`, how well alpha, v and W_O reproduced the modules' own output.
    """

    norms: Floats
    head_norms: Floats
    alpha: Floats
    padding: Floats
    maps: list[Floats] = field(repr=False)
    frame_times: Times
    token_times: Times | None
    connector: ConnectorAttention | None
    self_check: dict[str, Any]


@torch.no_grad()
@exact_float32()
def speech_attention(
    checkpoint: Checkpoint, waveform: NDArray[np.float32], *, layer: int | None = None
) -> SpeechAttention:
    """Measure norm-based attention (arXiv 2004.10102) inside the encoder and the connector of an LSM.

    Memory holds one layer of one piece at a time, as three float32 arrays of heads x frames x 1,500: for 30 s of speech
    54 MB each in Whisper tiny, 180 MB in large. The result keeps only the means over frames, and the full array of one
    layer (`maps`, 9 MB for 30 s) if requested.

    Args:
        checkpoint: an LSM.
        waveform: mono at 16 kHz, `[samples]`, as [`as_waveform`] takes it; any length.
        layer: encoder layer for which a(m, j) of every pair of frames is kept.

    Raises:
        InputError: the checkpoint is not an LSM of this package, has no such layer, or its attention cannot be measured
            exactly; the message names the module. Also for the reasons that [`as_waveform`] gives.
    """
    lsm = require_lsm(checkpoint, "the attention of its speech side cannot be measured")
    model: Any = lsm.model
    layers = model.config.audio_config.encoder_layers
    if layer is not None and not 0 <= layer < layers:
        raise InputError(f"layer {layer} is not one of the encoder's {layers}: give 0 to {layers - 1}")
    waveform = as_waveform(waveform)
    inputs = {name: tensor.to(model.device) for name, tensor in lsm.processor.extract(waveform).items()}
    frames = num_states(inputs["input_features_mask"].sum(-1), None).tolist()
    pieces = [_PieceAttention(count, layer) for count in frames]
    states: list[Tensor] = []
    errors: list[Tensor] = []
    with capture(model, "encoder") as captured:
        for i, piece in enumerate(pieces):
            with captured.at_rows(*_all_rows(1, piece.frames), piece):
                states.append(model.encode_speech(**{name: x[i : i + 1] for name, x in inputs.items()})[0])
            errors += captured.errors_by_sample()
    timed = model.config.decoder_states is None
    connector, check = None, dict[str, Any]()
    if timed and isinstance(model.multi_modal_projector, WindowQFormer):
        connector, check = _connector_attention(model, states, frames)
    return SpeechAttention(
        **{
            name: torch.cat([piece.by_layer(name) for piece in pieces], -1).cpu().numpy()
            for name in pieces[0].layers[0]
        },
        maps=[mapped.cpu().numpy() for piece in pieces for mapped in piece.maps],
        frame_times=frame_times(len(waveform), model.config.encoder_context),
        token_times=speech_token_times(model.config, len(waveform)) if timed else None,
        connector=connector,
        self_check={"encoder": error_summary(errors, model.audio_tower.dtype), **check},
    )


class _PieceAttention:
    """Visitor of [`capture`]: averages each layer of a piece over frames, and keeps the full map of one layer."""

    def __init__(self, frames: int, mapped: int | None):
        self.frames, self.mapped = frames, mapped
        self.layers: list[dict[str, Tensor]] = []
        self.maps: list[Tensor] = []

    def __call__(self, layer: LayerAttention) -> None:
        rows, n = layer.alpha.shape[2], self.frames
        alpha, value = layer.alpha[..., :n], layer.value[:, :, :n]
        norms, head_norms = norm_attention(alpha, value, layer.metric, alpha.new_full((1, rows), 1 / rows))
        means = {"norms": norms[0], "head_norms": head_norms[0], "alpha": alpha[0].mean(1)}
        means["padding"] = layer.alpha[..., n:].sum(-1).mean()[None]
        self.layers.append({name: mean.float() for name, mean in means.items()})
        if layer.layer == self.mapped:
            self.maps.append(row_norms(alpha, value, layer.metric)[0].float())

    def by_layer(self, name: str) -> Tensor:
        """One of the means; layers are the first axis."""
        return torch.stack([layer[name] for layer in self.layers])


def _connector_attention(
    model: LsmForConditionalGeneration, states: list[Tensor], frames: list[int]
) -> tuple[ConnectorAttention, dict[str, Any]]:
    """The cross-attention of all pieces; `frames [pieces]` is the number of valid states of each."""
    projector: Any = model.multi_modal_projector
    queries = projector.query.shape[1]
    dtype = projector.query.dtype
    norms: list[Tensor] = []
    alphas: list[Tensor] = []
    first: list[int] = []
    errors: list[Tensor] = []
    with capture(model, "connector") as captured:
        for i, (piece, count) in enumerate(zip(states, frames, strict=True)):
            windows = window_states(projector.config, count)
            seen = _CrossAttention(captured)
            with captured.at_rows(*_all_rows(len(windows), queries), seen):
                projector(piece.to(dtype), torch.tensor([count], device=model.device))
            norms.append(torch.stack(seen.norms).cpu())
            alphas.append(torch.stack(seen.alphas).cpu())
            first += [sum(frames[:i]) + start for start, _ in windows for _ in range(queries)]
            errors += captured.errors_by_sample()
    attention = ConnectorAttention(
        torch.cat(norms, 1).numpy(), torch.cat(alphas, 2).numpy(), np.array(first, dtype=np.int64)
    )
    return attention, {"connector": error_summary(errors, dtype)}


class _CrossAttention:
    """Visitor of [`capture`]: the cross-attention of each Q-Former block; windows form the batch."""

    def __init__(self, captured: Capture):
        self.names = {layer.index: layer.name for layer in captured.layers.values()}
        self.norms: list[Tensor] = []
        self.alphas: list[Tensor] = []

    def __call__(self, layer: LayerAttention) -> None:
        if "crossattention" in self.names[layer.layer]:
            norms = row_norms(layer.alpha, layer.value, layer.metric)  # [windows, queries, window]
            self.norms.append(norms.flatten(0, 1).float())
            self.alphas.append(layer.alpha.transpose(0, 1).flatten(1, 2).float())


def _all_rows(batch: int, rows: int) -> tuple[Tensor, Tensor]:
    """All query positions, all marked as real: both `[batch, rows]`."""
    positions = torch.arange(rows).expand(batch, -1)
    return positions, torch.ones_like(positions, dtype=torch.bool)
