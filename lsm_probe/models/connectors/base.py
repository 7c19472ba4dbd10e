"""The connector interface, its configuration, and the registry of connectors by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from transformers import PreTrainedConfig

from lsm_probe.errors import InputError
from lsm_probe.registry import Registry


class UnusableConfig(InputError, ValueError):
    """A configuration that no model can be built from. A ValueError too, so that readers of a folder can name the
    folder."""


class Connector(nn.Module, ABC):
    """A module called as `connector(states, lengths)`.

    `states` is `[pieces, max_states, encoder_dim]`; `lengths`, `[pieces]`, is the number of valid states of each piece
    (at most 30 s of one utterance). States beyond it must not matter, even if they are NaN. The output is the speech
    tokens of all pieces one after another, `[tokens, llm_dim]`, without padding: those of a piece must not depend on
    the other pieces of the batch.
    """

    sizes: ClassVar[Mapping[str, int]] = {}
    """The settings of [`LsmProjectorConfig`] that are sizes of this connector, with the values of its paper."""

    @abstractmethod
    def __init__(self, config: LsmProjectorConfig, *, encoder_dim: int, llm_dim: int):
        super().__init__()

    @staticmethod
    @abstractmethod
    def token_states(config: LsmProjectorConfig, num_states: int) -> list[tuple[int, int]]:
        """The states of a piece that each of its speech tokens stands for: the first, and the one after the last.

        Tokens come in order. Only tokens of the same window share states. All states are covered, except those of a
        last partial window that is dropped. Empty if there are no states.
        """

    def init_own_parameters(self, config: LsmProjectorConfig) -> None:
        """Initialises the module's own weights; weights of its submodules are initialised as in transformers."""

    @abstractmethod
    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Turns states into speech tokens, `[tokens, llm_dim]`."""


CONNECTORS: Registry[type[Connector]] = Registry(
    "lsm_probe.connectors", "connector", lambda name, found: isinstance(found, type) and issubclass(found, Connector)
)
"""Connectors by name; those of other packages come from the entry-point group `lsm_probe.connectors`."""


class LsmProjectorConfig(PreTrainedConfig):
    """The connector between encoder and LLM.

    A connector of another package may have further sizes; see [`Connector.sizes`].

    Args:
        connector: its name. `window_qformer` is the one of arXiv 2410.03798, `frame_stack` LLaMA-Omni's, `conv`
            BLSP's, `linear` LLaSM's, `swiglu_stack` Ultravox's, `transformer` ours; or a name of the entry-point group
            `lsm_probe.connectors`.
        window: states read by one window, 20 ms each where they are the encoder's. `window_qformer`: 17 (0.34 s);
            `frame_stack`: 5 (0.1 s); `swiglu_stack` and `transformer`: 8 (0.16 s). The others have no windows.
            `length`: the number of states of a piece times `window_seconds` / 30, rounded (the released code of arXiv
            2410.03798, which takes the longest piece of a batch; here each piece has its own).
        window_seconds: the window of 30 s of speech, where `window` is `length`.
        drop_partial_window: drop the states of a last window that is not full.
        hidden_size: width of the Q-Former (768), of the layer between the two linears of `frame_stack` or
            `swiglu_stack` (2048), of `conv`'s bottleneck (512), or of the `transformer` (384).
        middle_norm: whether `swiglu_stack` normalises between its two linears, or after them.
        num_queries: speech tokens `window_qformer` makes from one window.
        num_hidden_layers: Q-Former blocks, each with cross-attention; or layers of the `transformer`.
        num_attention_heads: heads of each block.
        intermediate_size: width of each block's feed-forward layer.
        layer_norm_dim: how many channels of a state, from the first on, `window_qformer`'s layer norm reads; those of
            BEATs, the last ones, are normalised already. None: all.
        dropout: dropout in training, on the Q-Former's and the transformer's hidden states and attention probabilities.
        initializer_range: standard deviation of the Q-Former's weights.

    Raises:
        UnusableConfig: an unknown connector, or a size below 1.
    """

    model_type = "lsm_projector"

    connector: str = "window_qformer"
    # None takes the connector's own value; it remains None if the connector has no such size.
    window: int | Literal["length"] = None  # type: ignore[assignment]
    window_seconds: float = 0.33333
    drop_partial_window: bool = False
    num_queries: int = 1
    hidden_size: int = None  # type: ignore[assignment]
    middle_norm: bool = True
    num_hidden_layers: int = 2
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_dim: int | None = None
    dropout: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.connector not in CONNECTORS:
            raise UnusableConfig(f"connector {self.connector!r} is unknown; choose one of: {', '.join(CONNECTORS)}")
        super().__post_init__(**kwargs)
        sizes = CONNECTORS[self.connector].sizes
        for name, size in sizes.items():
            if getattr(self, name, None) is None:
                setattr(self, name, size)
        for name in dict.fromkeys(("window", "hidden_size", "num_queries", "layer_norm_dim", *sizes)):
            if name == "window" and self.window == "length" and self.connector == "window_qformer":
                continue  # only for a Q-Former: other connectors' weights depend on the window
            check_count(f"connector {self.connector!r}: {name}", getattr(self, name))


def num_speech_tokens(config: LsmProjectorConfig, num_states: int) -> int:
    """Speech tokens the connector makes of a piece of `num_states` valid states."""
    return len(CONNECTORS[config.connector].token_states(config, num_states))


def check_count(name: str, value: Any) -> None:
    """Raises UnusableConfig unless the value is None or a whole number of at least 1."""
    if value is not None and (not isinstance(value, int) or value < 1):
        raise UnusableConfig(f"{name} is {value!r}: give a whole number of at least 1")
