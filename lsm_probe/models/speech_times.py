"""The time span of an utterance that each speech token of an LSM covers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lsm_probe.errors import InputError

if TYPE_CHECKING:
    from lsm_probe.models.configuration_lsm import LsmConfig

RATE = 16_000
PIECE_SECONDS = 30
FRAME_SECONDS = 0.02
"""Duration of one state of Whisper's encoder, which is two mel frames."""

Times = NDArray[np.float64]
"""Begin and end in seconds, `[..., 2]`."""


def frame_times(num_samples: int, encoder_context: str = "full") -> Times:
    """Begin and end of the encoder's frames (20 ms each, the last one of a piece perhaps less), `[frames, 2]`, seconds.

    Args:
        num_samples: of the utterance at 16 kHz; more than 30 s becomes pieces of 30 s, frames one after another.
        encoder_context: of the LSM; where it is `padded`, the frames of the silence after the speech are there too.
    """
    pieces = _pieces(num_samples, encoder_context)
    spans = [(piece, state, state + 1) for piece, states in pieces for state in range(states)]
    return _seconds(spans, num_samples)


def speech_token_times(config: LsmConfig, num_samples: int) -> Times:
    """Begin and end of what each speech token of an utterance stands for, `[speech tokens, 2]`, seconds.

    The tokens of a piece leave out nothing of it; those that several queries make of one window share its time. The
    encoder's attention spans the whole piece: this is where the states of a token lie, not all that it depends on.

    Args:
        config: the LSM's.
        num_samples: of the utterance at 16 kHz.

    Raises:
        InputError: the tokens are made of the states of Whisper's decoder, which have no time.
    """
    from lsm_probe.models.connectors import CONNECTORS  # imports torch, which saved timelines are read without

    if config.decoder_states is not None:
        raise InputError(
            f"the {config.decoder_states} speech tokens of a piece are made of states of Whisper's decoder, each of "
            "which attends to the whole piece: they have no times"
        )
    projector = config.projector_config
    token_states = CONNECTORS[projector.connector].token_states
    pieces = _pieces(num_samples, config.encoder_context)
    spans = [(piece, *span) for piece, states in pieces for span in token_states(projector, states)]
    return _seconds(spans, num_samples)


def even_times(tokens: int, num_samples: int) -> Times:
    """Begin and end of tokens spread evenly over an utterance at 16 kHz, `[tokens, 2]`, seconds."""
    borders = np.linspace(0, num_samples / RATE, tokens + 1)
    return np.stack([borders[:-1], borders[1:]], 1)


def _pieces(num_samples: int, encoder_context: str) -> list[tuple[int, int]]:
    """Number of each piece and of its valid states; in `padded` those of the silence too, which begin at its end."""
    step, frame = PIECE_SECONDS * RATE, round(FRAME_SECONDS * RATE)
    pieces = range(-(-num_samples // step))
    if encoder_context == "padded":
        return [(piece, step // frame) for piece in pieces]
    return [(piece, -(-min(step, num_samples - piece * step) // frame)) for piece in pieces]


def _seconds(spans: list[tuple[int, int, int]], num_samples: int) -> Times:
    """From piece, first state and the one after the last, to seconds within the utterance."""
    piece, first, past = np.array(spans).reshape(-1, 3).T
    seconds = PIECE_SECONDS * piece[:, None] + FRAME_SECONDS * np.stack([first, past], 1)
    return np.minimum(seconds, num_samples / RATE)
