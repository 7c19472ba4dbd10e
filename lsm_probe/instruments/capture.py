"""Capture: the only module that looks inside attention modules.

A wrapper replaces the stock attention function. It calls that function for the output, so the model's numbers stay
bitwise the same, and shows query, key and value to the active capture. Every captured layer checks itself
(`self_check.py`). Nothing in a pass makes the CPU wait for the device: rows are prepared before the pass, and errors
are checked after it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lsm_probe.errors import InputError, NotMeasurable
from lsm_probe.instruments.norms import OutputMetric, attention_weights, output_metric, recompose
from lsm_probe.instruments.self_check import SelfCheck, error_bounds
from lsm_probe.models.devices import has_room, is_offloaded
from lsm_probe.models.layers import find_decoder
from lsm_probe.models.quantisation import advice_on_rounded_inputs, find_nonlinearity, is_dense, quantised_tensor

OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "Wo")
NOT_ATTENTION = ("linear_attention", "conv", "hybrid", "hybrid_sliding")
"""Types of layers (values of `layer_types`) in which tokens interact not only through attention."""

Part = Literal["llm", "encoder", "connector"]
"""Parts whose attention can be captured: the decoder of a causal LM, and the speech encoder and Q-Former of an LSM."""

_active: ContextVar[Capture | None] = ContextVar("lsm_probe_capture", default=None)


@dataclass(frozen=True)
class AttentionLayer:
    """One attention module and its output projection.

    Attributes:
        index: number of the layer.
        name: name of the module in the model.
        module: the module that calls the attention interface.
        projection: the output projection, W_O.
        output: name of the module whose output is `sum_h alpha v W_O` plus the bias: `module` itself if it includes the
            projection, else the projection.
    """

    index: int
    name: str
    module: nn.Module
    projection: nn.Module
    output: str

    @property
    def is_plain(self) -> bool:
        """Whether W_O is the projection's own `.weight`, unquantised and on the device."""
        projection = self.projection
        return type(projection) is nn.Linear and is_dense(projection.weight) and not is_offloaded(projection)

    def output_weight(self, heads: int, value: Tensor) -> tuple[Tensor, Tensor | None]:
        """The effective W_O `[heads, head_dim, d]` and output bias `[d]`, for values `[..., head_dim]`.

        Computed as `projection(I) - projection(0)` unless the projection is a plain linear layer. So adapters,
        quantised and offloaded layers are measured as they compute, which may differ from their `.weight`.
        """
        projection: Any = self.projection
        if self.is_plain:
            return projection.weight.t().unflatten(0, (heads, -1)), projection.bias
        identity = torch.eye(heads * value.shape[-1], dtype=value.dtype, device=value.device)
        bias = projection(torch.zeros_like(identity[:1]))
        return (projection(identity) - bias).unflatten(0, (heads, -1)), bias[0]


@dataclass(frozen=True)
class LayerAttention:
    """One layer's attention at the measured rows.

    Attributes:
        layer: index of the layer.
        alpha: attention probabilities, `[batch, heads, rows, keys]`, float32.
        value: `[batch, kv_heads, keys, head_dim]`, in the model's dtype.
        metric: [`output_metric`] of the effective output projection.
    """

    layer: int
    alpha: Tensor
    value: Tensor
    metric: OutputMetric


Visit = Callable[[LayerAttention], None]
"""Called once for each layer of a captured forward pass."""
Block = Callable[[int], Tensor | None]
"""Returns which keys no query may attend to in a layer: True in `[batch, 1 or query heads, keys]`; None: no keys."""


class Capture:
    """Shows each layer's attention at given rows to a visitor, and checks it. Created by [`capture`]."""

    def __init__(self, layers: list[AttentionLayer]):
        self.layers = {id(layer.module): layer for layer in layers}
        self._visit: Visit | None = None
        self._block: Block = lambda layer: None
        self._metrics: dict[tuple[int, torch.dtype], OutputMetric] = {}
        self._rows_on: Callable[[torch.device], Tensor] = torch.empty(0).to
        self._first_row = 0
        self._expected: dict[int, Tensor] = {}
        self._compared: list[int] = []
        self._check = SelfCheck(torch.empty(0))
        self._errors: dict[int, Tensor] = {}
        self._last_output: tuple[AttentionLayer, Tensor] | None = None

    @contextmanager
    def at_rows(
        self, rows: Tensor, row_mask: Tensor, visit: Visit | None = None, block: Block = lambda layer: None
    ) -> Iterator[None]:
        """Captures the one forward pass inside the block.

        Args:
            rows: query positions to measure, `[batch, rows]`; on the CPU they cost no wait.
            row_mask: `[batch, rows]`, False for padding; a padded row must still be a valid position.
            visit: called with every layer. The self-check at the end of the pass decides whether its numbers are valid.
            block: keys to mask in a layer's attention, for every query of the pass; attention is normalised over the
                others. If nothing is masked, the model's numbers stay bitwise the same.

        Raises:
            InputError: a layer's attention cannot be measured exactly; the message names the module.
        """
        rows, row_mask = rows.cpu(), row_mask.cpu()
        self._rows_on, self._first_row = cache(rows.to), int(rows.min())
        self._visit, self._block = visit, block
        self._check = SelfCheck(row_mask)
        self._compared.clear()
        self._errors.clear()
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)
            self._expected.clear()
            self._last_output = None
        self._errors.update(zip(self._compared, self._check.judge(), strict=True))
        for layer in self.layers.values():
            if layer.index not in self._errors:
                raise _refusal(layer, "it does not go through transformers' attention interface")

    def errors_by_sample(self) -> list[Tensor]:
        """The self-check's relative errors in the last captured pass: `[layers, rows]` for each sample."""
        errors = torch.stack([self._errors[i] for i in sorted(self._errors)], 1)
        return [e[:, m] for e, m in zip(errors, self._check.row_mask, strict=True)]

    @torch.no_grad()
    def see(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
    ) -> Tensor | None:
        """Called for every attention module of the model; returns the attention mask without the blocked keys."""
        layer = self.layers.get(id(module))
        if layer is None:
            return mask
        for variant, name in (("softcap", "a softcap on its scores"), ("position_bias", "a position bias")):
            if kwargs.get(variant) is not None:
                raise _refusal(layer, f"it uses {name}, which is not supported")
        if layer.index in self._expected or layer.index in self._compared:
            raise _refusal(layer, "it attends more than once in a pass")
        is_causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        scaling = kwargs.get("scaling")
        blocked = self._block(layer.index)
        if blocked is not None:
            mask = _without(mask, blocked.to(query.device), query.shape[2], key.shape[2], causal)
        alpha = attention_weights(
            query,
            key,
            self._rows_on(query.device),
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            mask=mask,
            causal=causal and query.shape[2] > 1,
            first_row=self._first_row,
            sinks=kwargs.get("s_aux"),
        )
        w_o, bias = layer.output_weight(query.shape[1], value)
        self._expected[layer.index] = recompose(alpha, value, w_o, bias)
        if self._visit is not None:
            kept = layer.index, value.dtype  # the dtype too, because precision checks also run the model in float32
            metric = self._metrics.get(kept)
            if metric is None:
                metric = output_metric(w_o, value.shape[1])
                if not is_offloaded(layer.projection) and has_room(w_o.device):
                    self._metrics[kept] = metric
            self._visit(LayerAttention(layer.index, alpha, value, metric))
        return mask

    @torch.no_grad()
    def compare(self, layer: AttentionLayer, output: Tensor) -> None:
        """Adds the difference between the module's own output `[batch, tokens, d]` and the recomputed one to the
        self-check."""
        expected = self._expected.pop(layer.index, None)
        if expected is None:
            return
        self._last_output = (layer, output)
        rows = self._rows_on(output.device)
        actual = output[torch.arange(len(rows), device=rows.device)[:, None], rows]
        self._compared.append(layer.index)
        self._check.add(_place(layer), expected, actual, error_bounds(output.dtype))

    def watch_sibling(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Refuses a layer whose attention output passes through another module before it joins the residual stream."""
        if self._last_output is not None and args and args[0] is self._last_output[1]:
            raise _refusal(self._last_output[0], f"its output passes through {name} before the residual stream")


@contextmanager
def capture(model: PreTrainedModel, part: Part = "llm") -> Iterator[Capture]:
    """Prepares a model for capturing one part of it, and restores everything afterwards, also after an error.

    Inside the block, `with captured.at_rows(rows, row_mask, visit): model(...)` shows every layer to `visit`; other
    passes run as usual. The weights must not change inside the block, because products of them are stored.

    Args:
        model: in evaluation mode, with `sdpa` attention, or `eager` if its class has no other (attention sinks): a
            causal LM for `llm`, an LSM for the other parts.
        part: the part to capture. Its layers are numbered from 0. A Q-Former block counts as two layers: self-attention
            of the queries, then cross-attention to the states.

    Raises:
        InputError: the model has no such part, runs another attention implementation, is in training mode, or has
            attention that this capture does not support exactly; the message names the module.
    """
    inner = _find_part(model, part)
    stock = "sdpa" if inner._supports_sdpa else "eager"
    if inner.config._attn_implementation != stock:
        raise InputError(
            f"{type(model).__name__} runs attn_implementation={inner.config._attn_implementation!r}, which cannot be "
            f'captured exactly: call model.set_attn_implementation("{stock}") first'
        )
    if inner.training:
        raise InputError(f"{type(model).__name__} is in training mode (dropout would be measured): call model.eval()")
    layers = find_attention_layers(model, part)
    for layer in layers:
        _check_linear(layer, inner.dtype)
    captured = Capture(layers)
    with ExitStack() as stack:
        for layer in layers:
            for hook in _hooks(model, layer, captured):
                stack.callback(hook.remove)
        _show_attention(stock, layers, stack)
        yield captured


def _check_linear(layer: AttentionLayer, dtype: torch.dtype) -> None:
    """Refuses a projection without a W_O: one that rounds its inputs, as int8 layers with dynamic activations do.

    Raises:
        NotMeasurable: it is not linear.
    """
    if layer.is_plain or is_offloaded(layer.projection):
        return
    if (error := find_nonlinearity(layer.projection, dtype)) is None:
        return
    reason = f"its output projection is not linear (f(a + b) and f(a) + f(b) differ by {error:.0e}), so it has no W_O"
    if packed := next(filter(None, map(quantised_tensor, layer.projection.modules())), None):
        reason += f"; it is quantised ({packed}) and rounds its inputs: {advice_on_rounded_inputs(error)}"
    raise _refusal(layer, reason)


def find_attention_layers(model: PreTrainedModel, part: Part = "llm") -> list[AttentionLayer]:
    """The attention modules of a part in layer order, by their names in the model.

    Raises:
        InputError: their number is not the part's number of layers (two for each block of a Q-Former).
    """
    inner = _find_part(model, part)
    inside = set(inner.modules())
    layers: list[AttentionLayer] = []
    for name, module in model.named_modules():
        if module not in inside or "Attention" not in type(module).__name__:
            continue
        if part == "connector":
            layers += _qformer_layer(len(layers), name, module)
        elif part == "encoder" or hasattr(module, "layer_idx"):
            layers += _self_projecting_layer(module.layer_idx if part == "llm" else len(layers), name, module)
    config = inner.config if part != "llm" else model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or []
    if others := sorted(set(kinds) & set(NOT_ATTENTION)):
        raise NotMeasurable(
            f"{type(model).__name__} has layers of kind {', '.join(others)} ({sum(k in others for k in kinds)} of "
            f"{len(kinds)}), through which tokens exchange information without attention: attention norms would "
            "be incomplete"
        )
    expected = config.num_hidden_layers * (2 if part == "connector" else 1)
    if sorted(layer.index for layer in layers) != list(range(expected)):
        raise NotMeasurable(
            f"{type(model).__name__} has {len(layers)} attention modules with a known output projection for "
            f"{expected} layers: its attention cannot be captured"
        )
    return sorted(layers, key=lambda layer: layer.index)


def _find_part(model: Any, part: Part) -> PreTrainedModel:
    if part == "llm":
        return find_decoder(model)
    if part == "encoder":
        tower = model.audio_tower
        return tower.encoder if hasattr(tower, "encoder") else tower
    if not hasattr(model.multi_modal_projector, "qformer"):
        name = type(model.multi_modal_projector).__name__
        raise InputError(f"the attention of connector {name} cannot be captured: only that of a Q-Former can")
    return model.multi_modal_projector.qformer


def _self_projecting_layer(index: Any, name: str, module: nn.Module) -> Iterator[AttentionLayer]:
    for attribute in OUTPUT_PROJECTIONS:
        if isinstance(projection := getattr(module, attribute, None), nn.Module):
            yield AttentionLayer(index, name, module, projection, name)
            return


def _qformer_layer(index: int, name: str, module: nn.Module) -> Iterator[AttentionLayer]:
    """BERT's layout: one module attends, and its sibling `output` projects, adds and normalises."""
    attention, output = getattr(module, "attention", None), getattr(module, "output", None)
    if isinstance(attention, nn.Module) and isinstance(output, nn.Module):
        projection = output.get_submodule("dense")
        yield AttentionLayer(index, f"{name}.attention", attention, projection, f"{name}.output.dense")


def _hooks(model: PreTrainedModel, layer: AttentionLayer, captured: Capture) -> Iterator[Any]:
    def compare(module: nn.Module, args: Any, output: Any) -> None:
        captured.compare(layer, output[0] if isinstance(output, tuple) else output)

    putting_out = model.get_submodule(layer.output)
    yield putting_out.register_forward_hook(compare)
    parent = layer.output.rpartition(".")[0]
    for name, sibling in model.get_submodule(parent).named_children():
        # Dropout has no effect in evaluation mode.
        if sibling is not putting_out and not isinstance(sibling, nn.Dropout | nn.Identity):
            yield sibling.register_forward_pre_hook(partial(captured.watch_sibling, f"{parent}.{name}"))


def _without(mask: Tensor | None, blocked: Tensor, queries: int, keys: int, causal: bool) -> Tensor:
    """The mask `[batch, 1 or heads, queries, keys]` without the blocked keys, `[batch, 1 or heads, all keys]`."""
    hidden = blocked[:, :, None, -keys:]  # sliding layers keep only the last keys of a cache
    if mask is None:
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=blocked.device)
        mask = mask.tril(keys - queries) if causal else mask
    return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, -torch.inf)


def _refusal(layer: AttentionLayer, reason: str) -> NotMeasurable:
    return NotMeasurable(f"{_place(layer)}: {reason}")


def _place(layer: AttentionLayer) -> str:
    return f"attention of layer {layer.index} ({layer.name}) cannot be measured"


def _show_attention(stock: str, layers: Sequence[AttentionLayer], stack: ExitStack) -> None:
    """Replaces the stock attention by [`_attend`] until the stack closes."""
    # Under the name of the stock attention: models with sparse attention make no sparse mask for unknown names.
    if stock == "sdpa":
        stack.callback(AttentionInterface.register, stock, AttentionInterface()[stock])
        AttentionInterface.register(stock, partial(_attend, sdpa_attention_forward))
        return
    files: set[Any] = {sys.modules[type(layer.module).__module__] for layer in layers}
    for file in files:
        eager = getattr(file, "eager_attention_forward", None)  # each family has its own, beside its attention module
        if eager is not None:
            stack.callback(setattr, file, "eager_attention_forward", eager)
            file.eager_attention_forward = partial(_attend, eager)


def _attend(
    stock: Callable[..., tuple[Tensor, Tensor | None]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    captured = _active.get()
    if captured is not None:
        attention_mask = captured.see(module, query, key, value, attention_mask, kwargs)
    return stock(module, query, key, value, attention_mask, **kwargs)
