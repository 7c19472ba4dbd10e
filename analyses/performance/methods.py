"""Compute norm-based attention by segment and layer in five ways, with and without lsm-probe.

Every method computes `sums [layers, 4]`: for system, template, instruction and source, the sum over a segment's tokens
of A_j, the mean over generating rows of `|sum_h alpha^h_mj v^h(x_j) W_O^h|` (arXiv 2410.03798, equations 6 and 7).
`attention_overhead.py` times these methods.
"""

from __future__ import annotations

import atexit
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from shapes import draw_weights, has_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lsm_probe.instruments.capture import capture
from lsm_probe.models.prompts import Prompt
from lsm_probe.models.segments import Segment
from lsm_probe.probes.attention.measure import SegmentSums, generating_rows

SEGMENTS = (Segment.SYSTEM, Segment.TEMPLATE, Segment.INSTRUCTION, Segment.SOURCE)
SHARES = (0.08, 0.12, 0.16)  # of the prompt, for the first three; the source takes the rest
ROWS = 64


@dataclass(frozen=True)
class Inputs:
    """One prompt with its response.

    Attributes:
        ids: token ids of both, `[1, tokens]`.
        prompt: the prompt, each token with its segment.
        rows: the positions that predict the response's tokens, `[rows]`.
    """

    ids: Tensor
    prompt: Prompt
    rows: Tensor

    def members(self) -> Tensor:
        """Which segment each prompt token counts in, `[keys, 4]`, float32."""
        segments = torch.tensor(self.prompt.segments, device=self.ids.device)
        return torch.stack([segments == segment for segment in SEGMENTS], -1).float()


@dataclass(frozen=True)
class Outcome:
    """Logits of the generating rows `[1, rows, vocabulary]`, and the sums (None if not requested)."""

    logits: Tensor
    sums: Tensor | None


@dataclass(frozen=True)
class Method:
    """A method: `prepare(model, folder)` runs once and is not timed; `run(prepared, inputs)` is timed."""

    label: str
    prepare: Callable[[PreTrainedModel, Path], Any]
    run: Callable[[Any, Inputs], Outcome]
    needs: str | None = None
    materialises: str = ""
    """The largest tensors of its last step: "heads" for `[heads, rows, keys, d]`, "summed" for `[rows, keys, d]`."""

    @property
    def installed(self) -> bool:
        return self.needs is None or find_spec(self.needs) is not None

    def bytes_needed(self, config: Any, tokens: int, itemsize: int) -> int:
        """Lower bound of the memory above the model: attention weights of all layers and the norms of one."""
        if not self.materialises:
            return 0
        heads, d = config.num_attention_heads, config.hidden_size
        vectors = (heads + 1 if self.materialises == "heads" else 1) * ROWS * (tokens - ROWS) * d * 4
        return config.num_hidden_layers * heads * tokens**2 * itemsize + vectors


def load(folder: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The model of a folder, with random weights if the folder has none."""
    if not has_weights(folder):
        return draw_weights(folder, dtype, device)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    return model.to(device).eval()  # type: ignore[arg-type]


def make_inputs(folder: Path, tokens: int, device: str, rows: int = ROWS) -> Inputs:
    """Real tokens (the built-in probe's transcripts, repeated); the last `rows` are the response."""
    manifest = files("lsm_probe.data") / "builtin_probe" / "manifest.jsonl"
    lines = manifest.read_text(encoding="utf-8").splitlines()
    text = " ".join(json.loads(line)["text"] for line in lines)
    spoken = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    vocabulary = AutoConfig.from_pretrained(folder).vocab_size
    ids = [token % vocabulary for token in islice(cycle(spoken), tokens)]
    keys = tokens - rows
    segments = [s for s, share in zip(SEGMENTS, SHARES, strict=False) for _ in range(max(1, int(keys * share)))]
    segments += [Segment.SOURCE] * (keys - len(segments))
    positions = generating_rows([keys], [rows])[0][0]
    return Inputs(torch.tensor([ids], device=device), Prompt(ids[:keys], segments), positions.to(device))


def sdpa(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    model.set_attn_implementation("sdpa")
    return model


def plain(model: PreTrainedModel, inputs: Inputs) -> Outcome:
    """The forward pass without a probe."""
    return Outcome(model(inputs.ids, use_cache=False, logits_to_keep=inputs.rows).logits, None)


def prepare_probe(model: PreTrainedModel, folder: Path) -> Any:
    """Open one capture, as a run does for all its batches: products of the output projections are computed once."""
    stack = ExitStack()
    captured = stack.enter_context(capture(sdpa(model, folder)))
    atexit.register(stack.close)  # otherwise Python closes it during shutdown, with a traceback
    return model, captured


def probe(prepared: Any, inputs: Inputs) -> Outcome:
    """lsm-probe, as its attention probe runs it, self-check and norms of single heads included."""
    model, captured = prepared
    rows = inputs.rows[None]
    row_mask = torch.ones_like(rows, dtype=torch.bool)
    sums = SegmentSums([inputs.prompt], row_mask, keep_tokens=False)
    with captured.at_rows(rows, row_mask, sums):
        logits = model(inputs.ids, use_cache=False, logits_to_keep=inputs.rows).logits
    captured.errors_by_sample()
    return Outcome(logits, torch.from_numpy(sums.by_sample()[0]["norms"][:, : len(SEGMENTS)]))


def eager_attention(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    model.set_attn_implementation("eager")
    return model


def eager(model: PreTrainedModel, inputs: Inputs, *, vectors: str) -> Outcome:
    """transformers' `output_attentions=True` and a hook on every v_proj."""
    values: list[Tensor] = []
    projections = [module.v_proj for module in _attention_modules(model)]
    hooks = [p.register_forward_hook(lambda module, args, output: values.append(output)) for p in projections]
    try:
        out = model(inputs.ids, use_cache=False, output_attentions=True, logits_to_keep=inputs.rows)
    finally:
        for hook in hooks:
            hook.remove()
    keys, members = len(inputs.prompt), inputs.members()
    sums = []
    for module, alpha, value in zip(_attention_modules(model), out.attentions, values, strict=True):
        chosen = alpha[0][:, inputs.rows, :keys]
        by_head = value[0, :keys].unflatten(-1, (-1, module.head_dim)).transpose(0, 1)
        sums.append(direct_sums(chosen, by_head, _output_weight(module), members, vectors))
    return Outcome(out.logits, torch.stack(sums).cpu())


def bridge(model: PreTrainedModel, folder: Path) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    if model.config.get_text_config() is not model.config:
        # TransformerLens runs pip in this environment when it loads a multimodal model without torchvision.
        raise ValueError("the TransformerLens row is for text LLMs only")
    return TransformerBridge.boot_transformers(str(folder), hf_model=model, device=str(model.device))


def transformer_lens(bridged: Any, inputs: Inputs) -> Outcome:
    """TransformerLens: hook_pattern and hook_v from the cache, kv heads expanded explicitly, its own W_O."""
    blocks = range(bridged.cfg.n_layers)
    names = [f"blocks.{i}.attn.{hook}" for i in blocks for hook in ("hook_pattern", "hook_v")]
    logits, cache = bridged.run_with_cache(
        inputs.ids, names_filter=lambda name: name in names, use_cache=False, logits_to_keep=inputs.rows
    )
    keys, members = len(inputs.prompt), inputs.members()
    sums = []
    for i in blocks:
        alpha = cache[f"blocks.{i}.attn.hook_pattern"][0][:, inputs.rows, :keys]
        value = cache[f"blocks.{i}.attn.hook_v"][0, :keys].transpose(0, 1)
        sums.append(direct_sums(alpha, value, bridged.blocks[i].attn.W_O, members, "summed"))
    return Outcome(logits, torch.stack(sums).cpu())


def nnsight_wrapper(model: PreTrainedModel, folder: Path) -> Any:
    from nnsight import NNsight

    return NNsight(eager_attention(model, folder))


def nnsight(wrapped: Any, inputs: Inputs) -> Outcome:
    """nnsight: only the rows and keys wanted are saved, so the attention of a layer is freed after it."""
    from nnsight import save

    keys, members = len(inputs.prompt), inputs.members()
    ids, rows = inputs.ids, inputs.rows
    modules = list(_attention_modules(wrapped._module))
    with wrapped.trace(ids, use_cache=False, logits_to_keep=rows):
        alphas, values = save([]), save([])
        for layer in wrapped.model.layers:
            values.append(layer.self_attn.v_proj.output[0, :keys])
            alphas.append(layer.self_attn.output[1][0][:, rows, :keys])
        logits = wrapped.output.logits.save()
    sums = []
    for module, alpha, value in zip(modules, alphas, values, strict=True):
        by_head = value.unflatten(-1, (-1, module.head_dim)).transpose(0, 1)
        sums.append(direct_sums(alpha, by_head, _output_weight(module), members, "summed"))
    return Outcome(logits, torch.stack(sums).cpu())


def direct_sums(alpha: Tensor, value: Tensor, w_o: Tensor, members: Tensor, vectors: str) -> Tensor:
    """The definition for one layer: `[4]`.

    Args:
        alpha: `[heads, rows, keys]`.
        value: `[kv_heads, keys, head_dim]`.
        w_o: `[heads, head_dim, d]`.
        members: `[keys, 4]`.
        vectors: "heads" builds `[heads, rows, keys, d]` and then sums over heads, as every published implementation
            does; "summed" computes `[rows, keys, d]` with one einsum, which is a strong simple baseline.
    """
    dtype = torch.promote_types(alpha.dtype, torch.float32)
    alpha, value, w_o = alpha.to(dtype), value.to(dtype), w_o.to(dtype)
    transformed = value.repeat_interleave(len(alpha) // len(value), dim=0) @ w_o  # [heads, keys, d]
    if vectors == "heads":
        sent = torch.einsum("hrk,hkd->hrkd", alpha, transformed).sum(0)
    else:
        sent = torch.einsum("hrk,hkd->rkd", alpha, transformed)
    return sent.norm(dim=-1).mean(0) @ members.to(dtype)


def _attention_modules(model: nn.Module) -> list[Any]:
    return [layer.self_attn for layer in model.model.layers]  # type: ignore[union-attr]


def _output_weight(module: Any) -> Tensor:
    weight: Tensor = module.o_proj.weight
    return weight.t().unflatten(0, (-1, module.head_dim))


METHODS = {
    "plain": Method("plain sdpa forward", sdpa, plain),
    "probe": Method("sdpa + lsm-probe", prepare_probe, probe),
    "eager": Method("eager, [heads, rows, keys, d]", eager_attention, partial(eager, vectors="heads"), None, "heads"),
    "eager_summed": Method("eager, [rows, keys, d]", eager_attention, partial(eager, vectors="summed"), None, "summed"),
    "transformer_lens": Method("TransformerLens", bridge, transformer_lens, "transformer_lens", "summed"),
    "nnsight": Method("nnsight", nnsight_wrapper, nnsight, "nnsight", "summed"),
}
