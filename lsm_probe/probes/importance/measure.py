"""Parameter importance: how much the likelihood of the response depends on each weight.

For each weight it computes `|theta * dL/dtheta|`, the first-order change of the loss when the weight is set to 0
(Molchanov et al. 2017, arXiv 1611.06440, equation 7; for speech LLMs arXiv 2509.23755). L is the mean negative
log-likelihood of a sample's response tokens, in nats. `abs` is the mean over samples of the absolute value. `signed`
sums the gradients first, so that samples can cancel each other out (as in the code of arXiv 2402.14700).

Sums need the weights and the gradients of about one layer at a time; single weights (`signed`, masks) one float32
number for each weight besides; see [`SingleWeights`] for where these are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.instruments.gradients import Parameter, absolute_sum, gradients_taken
from lsm_probe.instruments.scoring import NOT_FINITE
from lsm_probe.memory import MEMORY_ERRORS, is_out_of_memory
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.devices import is_offloaded, read_numbers
from lsm_probe.models.layers import find_decoder, find_speech_part, layer_of, layers_prefix
from lsm_probe.models.quantisation import check_dense
from lsm_probe.models.rotary import sequence_length
from lsm_probe.probes.importance.ablation import perplexities
from lsm_probe.probes.importance.masks import top_masks
from lsm_probe.probes.importance.result import ImportanceConventions, ImportanceResult
from lsm_probe.probes.importance.single_weights import SingleWeights
from lsm_probe.runner.measurement_run import Measured, MeasurementRun, Unusable, stack
from lsm_probe.runner.options import MeasureKeywords, split_options
from lsm_probe.runner.prepared_samples import PreparedSample

CONNECTOR = "multi_modal_projector"
_REMEDY = "the weights hold NaN, or the dtype overflows (try --dtype float32 or bfloat16)"


def importance(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    mode: Literal["abs", "signed"] = "abs",
    modality: Literal["own", "text"] = "own",
    masks: float | None = None,
    ablate: float | None = None,
    scratch: Path | None = None,
    **options: Unpack[MeasureKeywords],
) -> ImportanceResult:
    """Measure the first-order importance of every weight that can be trained.

    Args:
        checkpoint: what [`lsm_probe.load`] returns.
        samples: with `audio` for an LSM, `text` for a text LLM or `modality="text"`; with `target` for
            `response="reference"`.
        mode: how the result computes importance: `abs`, or `signed`, which needs one float32 number for each weight.
        modality: `own` is the checkpoint's own input (speech for an LSM); `text` gives an LSM's LLM the transcript
            instead, which measures *textual importance*.
        masks: share of weights (0.05: the top 5 %) to mark in masks; needs one float32 number for each weight.
        ablate: share of weights (0.03) to set to 0 in each matrix: in turn the most important, the least important and
            random ones. Then measures the perplexity of the same responses; needs as much memory as `masks`.
        scratch: a folder for the numbers of single weights, memory-mapped, instead of memory.
        options: options that all measurements share; see [`ResponseOptions`] and [`RunOptions`].

    Raises:
        InputError: if a sample cannot be used (under `on_error="fail"`), none is left, the loss is not finite, the
            share is not between 0 and 1, the response part is unknown, or weights cannot have gradients (quantised
            ones).
    """
    responses, run = split_options(options, response="reference")
    conventions = ImportanceConventions(mode, modality, responses.response)
    for option, share in (("--masks", masks), ("--ablate", ablate)):
        if share is not None and not 0 < share < 1:
            raise InputError(f"{option} {share} is not a share of weights: give a number between 0 and 1, such as 0.05")
    if modality == "text":
        checkpoint = replace(checkpoint, source="text")
    single_weights = mode == "signed" or masks is not None or ablate is not None
    if single_weights and run.verify_precision:
        raise InputError(
            "--verify-precision cannot be used with --mode signed, --masks or --ablate, which add up single weights "
            "over samples: verify it in a run without them"
        )
    scorer = _Scorer(checkpoint, mode if single_weights else None, scratch)
    if single_weights:
        # The sums of single weights cannot be undone, so a batch must not run again in halves. They are not stored, so
        # an interrupted run starts again from the beginning.
        run = replace(run, batch_size=1, progress_folder=None)
    measurement = MeasurementRun(
        checkpoint=checkpoint, samples=samples, responses=responses, options=run, settings={"modality": modality}
    )
    with gradients_taken(checkpoint.model, scorer.parameters, scorer.take):
        records, common = measurement.run(scorer.measure)
        scorer.add_up(len(records))
    ablation = None
    if ablate is not None:
        ids = {sample["id"]: sample["response_ids"] for sample in common["samples"]}
        again = replace(
            measurement,
            samples=[sample for sample in samples if sample.id in ids],
            responses=replace(responses, responses=ids),
            options=replace(run, on_progress=lambda done: None),
        )
        ablation = {"share": ablate, "perplexity": scorer.ablate(ablate, again, run.seed)}
    return ImportanceResult(
        **common,
        **stack(records, "sums"),
        parameters=[
            {"name": p.name, "layer": p.layer, "module": p.module, "shape": list(p.tensor.shape)}
            for p in scorer.parameters
        ],
        not_trained=_count_not_trained(checkpoint, scorer.parameters),
        signed=scorer.signed_sums() if mode == "signed" else None,
        conventions=conventions,
        masks=None if masks is None else top_masks(scorer.layer_scores(), masks),
        ablation=ablation,
    )


def list_parameters(checkpoint: Checkpoint) -> list[Parameter]:
    """The parameters whose importance is measured: those of the LLM, under their names in the LLM, and those of the
    connector if an LSM of this package is given speech.

    Parameters that do not require a gradient (the base weights under adapters, the encoder) and adapters are left out.

    Raises:
        InputError: no layer is left, one of them has no matrix that is trained, or weights are offloaded or quantised.
    """
    llm = checkpoint.llm
    remedy = "quantised weights have no gradient: load the checkpoint without quantisation"
    check_dense(llm, checkpoint.name, remedy)
    if is_offloaded(checkpoint.model):
        raise InputError(
            f"{checkpoint.name} does not fit on the GPUs, and weights that are moved there layer by layer get no "
            "gradients: use more GPUs, --dtype bfloat16 or --device cpu"
        )
    prefix = layers_prefix(llm)
    decoder = find_decoder(llm)
    inside = {id(t) for part in (decoder, llm.get_output_embeddings()) for t in part.parameters()}
    if (encoder := find_speech_part(decoder)) is not None:
        inside -= {id(t) for t in encoder.parameters()}
    found = []
    for name, tensor in llm.named_parameters():
        if id(tensor) in inside and tensor.requires_grad and "lora_" not in name:
            layer, within = layer_of(name, prefix)
            found.append(Parameter(name, layer, within.removesuffix(".weight").removesuffix(".bias"), tensor))
    trained = {parameter.layer for parameter in found if parameter.is_matrix} - {None}
    frozen = sorted(set(range(llm.config.get_text_config().num_hidden_layers)) - trained)
    if not trained:
        raise InputError(f"{checkpoint.name} has no layer that is trained (only adapters, or all frozen): merge them")
    if frozen:
        raise InputError(
            f"{checkpoint.name}: layer {frozen[0]} is frozen, so it has no gradient: set requires_grad on it"
        )
    if checkpoint.source == "speech" and checkpoint.connector is not None:
        for name, tensor in checkpoint.connector.named_parameters(CONNECTOR):
            if tensor.requires_grad:
                found.append(Parameter(name, None, CONNECTOR, tensor))
    return found


def _count_not_trained(checkpoint: Checkpoint, measured: Sequence[Parameter]) -> dict[str, int]:
    """Number of weights whose importance is not measured because they are not trained, by part of the model."""
    known = {id(parameter.tensor) for parameter in measured}
    if checkpoint.connector is not None:
        known |= {id(tensor) for tensor in checkpoint.connector.parameters() if tensor.requires_grad}
    counts: Counter[str] = Counter()
    for name, tensor in checkpoint.model.named_parameters():
        if id(tensor) not in known:
            counts[name.split(".")[0]] += tensor.numel()
    return dict(counts)


class _Scorer:
    """Scores the samples of a batch one after another; with `keep`, also sums the numbers of single weights.

    Attributes:
        parameters: the measured parameters.
        kept: sums over samples of `theta * gradient`, or of its absolute value, for each weight.
    """

    def __init__(self, checkpoint: Checkpoint, keep: Literal["abs", "signed"] | None, scratch: Path | None):
        self.checkpoint, self.keep = checkpoint, keep
        self.parameters = list_parameters(checkpoint)
        self.kept = None if keep is None else SingleWeights(self.parameters, scratch)
        self.arrived: dict[str, Tensor] = {}  # the sum of each parameter for one sample, on the parameter's device
        self.samples = 0  # number of samples in the sums of single weights

    def take(self, parameter: Parameter, gradient: Tensor) -> None:
        product = gradient.float().mul_(parameter.tensor.detach())  # in the gradient's own memory, which is freed next
        self.arrived[parameter.name] = absolute_sum(product)
        if self.kept is not None:
            self.kept.add(parameter, product if self.keep == "signed" else product.abs_())

    def measure(self, items: Sequence[PreparedSample]) -> list[Measured]:
        """The sums of each sample, `[parameters]` float64; one copy to the CPU, because a copy waits for the device."""
        scored = [self._score(item) for item in items]
        numbers = read_numbers([number for loss, sums in scored for number in (loss, *sums.values())])
        parts = numbers.split([1 + len(sums) for _, sums in scored])
        rows = [dict(zip(sums, part[1:].tolist(), strict=True)) for (_, sums), part in zip(scored, parts, strict=True)]
        return [self._checked(*found) for found in zip(items, [float(part[0]) for part in parts], rows, strict=True)]

    def _score(self, item: PreparedSample) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, and the sum of each parameter that affects the loss, by name; on their devices."""
        self.arrived = {}
        with torch.enable_grad():
            loss = response_loss(self.checkpoint, item)
            if self.kept is None or loss.isfinite():  # a non-finite loss would spoil the sums of single weights
                self._backward(loss, item)
        return loss.detach(), self.arrived

    def _checked(self, item: PreparedSample, loss: float, sums: dict[str, float]) -> Measured:
        if not np.isfinite(loss):
            return Unusable(NOT_FINITE, fault=True)
        if not np.isfinite(list(sums.values())).all():
            reason = f"its importance is not finite: {_REMEDY}"
            if self.kept is not None:  # the sums of single weights already contain it
                raise InputError(f"sample {item.sample.id}: {reason}")
            return Unusable(reason, fault=True)
        # NaN remains for parameters that do not affect the loss.
        return {"sums": np.array([sums.get(parameter.name, np.nan) for parameter in self.parameters])}

    def _backward(self, loss: Tensor, item: PreparedSample) -> None:
        try:
            loss.backward()
        except MEMORY_ERRORS as error:
            if self.kept is None or not is_out_of_memory(error):
                raise
            raise InputError(
                f"sample {item.sample.id} alone does not fit into memory, and part of it is already in the sums of "
                "single weights: leave it out, or shorten it"
            ) from error

    def add_up(self, samples: int) -> None:
        """Sums over processes what each has kept of its samples; afterwards all processes hold the same sums."""
        if self.kept is not None:
            self.kept.gather()
        self.samples = samples

    def scores(self) -> Iterator[Tensor]:
        """The importance of single weights of each parameter, mean over samples, float32 on the CPU."""
        assert self.kept is not None
        for parameter in self.parameters:
            yield (self.kept.sums[parameter.name] / self.samples).abs_()

    def signed_sums(self) -> np.ndarray:
        """The importance of each parameter: sum over its weights of `|theta * mean gradient|`."""
        return np.array([float(score.sum(dtype=torch.float64)) for score in self.scores()])

    def layer_scores(self) -> dict[str, Tensor]:
        """The importance of single weights of the layers' matrices, by name."""
        pairs = zip(self.parameters, self.scores(), strict=True)
        return {p.name: score for p, score in pairs if p.is_matrix and p.layer is not None}

    def ablate(self, share: float, measurement: MeasurementRun, seed: int) -> dict[str, float]:
        """Perplexities with a share of each matrix set to 0."""

        def perplexity() -> float:
            records, _ = measurement.run(self._losses)
            nats, tokens = np.sum([record.arrays["loss"] for record in records], axis=0)
            return float(np.exp(nats / tokens))

        weights = {parameter.name: parameter.tensor for parameter in self.parameters}
        return perplexities(perplexity, weights, self.layer_scores(), share, seed)

    @torch.no_grad()
    def _losses(self, items: Sequence[PreparedSample]) -> list[Measured]:
        """Summed loss and number of tokens of each response."""
        counts = [len(item.response[item.measured]) for item in items]
        losses = read_numbers([response_loss(self.checkpoint, item) for item in items]).tolist()
        return [{"loss": np.array([loss * n, n])} for loss, n in zip(losses, counts, strict=True)]


def response_loss(checkpoint: Checkpoint, item: PreparedSample) -> Tensor:
    """Mean negative log-likelihood of the measured tokens, nats, float32, with the graph to every parameter."""
    llm: Any = checkpoint.llm
    embedded = checkpoint.embed_prompt(item.prompt)
    response = torch.tensor(item.response, device=embedded.device)
    inputs = torch.cat([embedded, llm.get_input_embeddings()(response[:-1])])[None]
    with sequence_length(inputs.shape[1] + 1):  # including the last token of the response, which predicts nothing
        logits = llm(inputs_embeds=inputs, use_cache=False, logits_to_keep=len(response)).logits[0]
    logits = logits[-len(response) :]  # Qwen2-Audio keeps the logits of all positions
    part = item.measured
    return nn.functional.cross_entropy(logits[part].float(), response[part].to(logits.device))
