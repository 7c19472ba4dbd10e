"""A callback for transformers' Trainer that measures speech anchor bias while a model is trained."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from lsm_probe.data.manifest import describe_data, read_manifest
from lsm_probe.data.pools import Pool
from lsm_probe.data.sample import Sample
from lsm_probe.data.spread import spread_over_utterances
from lsm_probe.distributed import all_gather_or_raise
from lsm_probe.errors import InputError, WorkFailed
from lsm_probe.memory import MEMORY_ERRORS, is_out_of_memory, release_memory
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.live import from_model, unchanged
from lsm_probe.training.bias_history import FILE, BiasHistory
from lsm_probe.training.bias_probing import BiasProbing
from lsm_probe.training.probe_schedule import StepTimer, steps_between

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

SHARE = 0.05
"""Maximum time for probings, as a share of the time for steps, if `every` is not given."""
STOPPABLE = ("eta", *(f"eta_{i}" for i in range(1, 7)), "D_i", "D_s")
"""The numbers that a bound can be set for."""


class BiasCallback(TrainerCallback):
    """Measures eta, D_i and D_s on a small fixed set of samples while a model is trained.

    It works with any `transformers.Trainer` and any model that [`from_model`] takes, in one process or under DDP. The
    numbers go to the Trainer's log as `bias_eta` (mean over layers), `bias_eta_1` to `bias_eta_6` (groups of layers,
    the first at the bottom), `bias_D_i` and `bias_D_s` (nats per token), so that TensorBoard, W&B and MLflow get them.
    The output folder gets them as `bias.jsonl`, and at the end as `bias.csv`, `bias.png` and `bias.svg`.

    All steps are measured on the same responses; otherwise they could not be compared. These are the responses of
    `base` if it is given, else the samples' targets. If samples have no targets, the model generates its own responses
    at each probing. They change as it learns, so compare such steps with care. `bias_responses` in the log's history
    says which responses were measured.

    Measuring does not change the training: the same seed gives bitwise the same weights.

    Args:
        samples: `Sample`s or a manifest, such as `builtin:commands`; with at least two utterances, and two instructions
            unless `instructions` are given.
        every: optimizer steps between two probings; one is also made before the first step and one after the last. None
            measures the first probing and the first steps, and then probes as often as 5 % of the time allows. In a
            run that is too short for a second probing, a warning says so.
        base: the text LLM that the model was built from: a name, as [`load`] takes it, or a checkpoint. Its own
            responses to the transcripts are measured. It generates them once, when training begins, and is then
            released.
        response: `reference` measures the samples' targets, `generated` the model's own responses at each probing. By
            default `reference` if all samples have targets.
        limit: number of measured samples, spread over the utterances.
        instructions: the pool of instructions that D_i compares with, as [`read_pool`] returns it; by default those of
            the measured samples.
        sources: size of the pool of sources that D_s compares with, including the own source.
        max_new_tokens: maximum length of a generated response.
        batch_size: samples measured together.
        stop_below: bounds by name (`eta`, `eta_1` to `eta_6`, `D_i`, `D_s`), such as `{"D_i": 0.1}`. Training stops if
            a number falls below its bound after it was at or above it.
        processing_class: processor or tokenizer; by default the Trainer's.
        template: prompt template, as of [`load`].
        seed: of the draw of sources.

    Raises:
        InputError: the samples or an option cannot be used. Also at the start of training, if the model or the base
            cannot be used, or a bound is set for a number that the model does not have, such as `eta_6` with fewer than
            6 layers.

    Warns:
        UserWarning: a later probing failed, and training continues; or training was stopped, with the reason.

    Example:
        >>> from lsm_probe.training import BiasCallback
        >>> callback = BiasCallback("builtin:commands", every=50, base="builtin:llm", stop_below={"D_i": 0.1})
        >>> len(callback.samples)
        8

        Then `Trainer(model, ..., callbacks=[callback])`, and after training `callback.to_frame()`, `callback.plot()`.
    """

    def __init__(
        self,
        samples: Sequence[Sample] | str | Path,
        *,
        every: int | None = None,
        base: str | Path | Checkpoint | None = None,
        response: Literal["reference", "generated"] | None = None,
        limit: int = 8,
        instructions: Pool | None = None,
        sources: int = 3,
        max_new_tokens: int = 16,
        batch_size: int = 4,
        stop_below: Mapping[str, float] | None = None,
        processing_class: Any = None,
        template: str | None = None,
        seed: int = 0,
    ):
        if every is not None and every < 1:
            raise InputError(f"every is {every}: give 1 or more, or None for as often as 5 % of the time allows")
        if unknown := sorted(set(stop_below or {}) - set(STOPPABLE)):
            raise InputError(f"stop_below has {unknown[0]!r}; choose from: {', '.join(STOPPABLE)}")
        if base is not None and response is not None:
            raise InputError(f"response={response!r} and base: give one of them")
        if isinstance(samples, str | Path):
            samples = read_manifest(samples)
        self.samples = spread_over_utterances(samples, limit)
        if not self.samples:
            raise InputError("there are no samples to probe: give some, and limit=1 or more")
        has_targets = all(sample.target for sample in self.samples)
        if response == "reference" and not has_targets:
            raise InputError("response='reference' needs a target in every sample")
        own: Literal["reference", "generated"] = response or ("reference" if has_targets else "generated")
        self.every, self.stop_below = every, dict(stop_below or {})
        self.processing_class, self.template = processing_class, template
        self.probing = BiasProbing(
            samples=self.samples,
            data=describe_data(self.samples),
            response=own if base is None else "base",
            base=base,
            instructions=instructions,
            sources=sources,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
        )
        self.history = BiasHistory()
        self.stopped: str | None = None  # the reason if training was stopped
        self._timer = StepTimer()
        self._setup_seconds = 0.0

    def to_frame(self) -> pd.DataFrame:
        """A row for each probing; [`BiasHistory`] lists the columns."""
        return self.history.to_frame()

    def plot(self) -> Figure:
        """Draws eta by six groups of layers, D_i and D_s over the steps."""
        return self.history.plot()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if self.processing_class is None:
            self.processing_class = kwargs.get("processing_class")
        _calling_handler()  # raises if this is not a Trainer's callback
        self._timer, self.stopped = StepTimer(), None
        begun = perf_counter()
        self._begin_history(args, state, model)
        self._setup_seconds = perf_counter() - begun
        # Also after resuming: the run may have been interrupted while this step was probed.
        if state.global_step not in self.history.rows and self._is_due(state):
            self._probe(args, state, control, model)
        self._check_bounds()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._timer.begin()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        self._timer.end()
        if self.history.every is None:
            self._choose_every(args, state)
        if self._is_due(state) and state.global_step not in self.history.rows:
            try:
                self._probe(args, state, control, model)
            except (InputError, WorkFailed, *MEMORY_ERRORS) as error:
                if isinstance(error, MEMORY_ERRORS) and not is_out_of_memory(error):
                    raise
                release_memory(error)
                warnings.warn(f"step {state.global_step} was not probed: {error}", stacklevel=2)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            try:
                self.history.save_pictures(args.output_dir or ".")
            except Exception as error:  # any error of matplotlib, so that the trained model is not lost
                warnings.warn(f"the curves could not be drawn ({type(error).__name__}: {error})", stacklevel=2)

    def interruptible(self) -> AbstractContextManager[None]:
        """Context of a measurement. A subclass can override it to end the measurement at a signal; changes are
        restored."""
        return nullcontext()

    def _is_due(self, state: TrainerState) -> bool:
        step, every = state.global_step, self.history.every
        if step == 0:
            return True
        return bool(every and (step % every == 0 or step == state.max_steps))

    def _begin_history(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        """Continues the history of the resumed run, or starts a new one."""
        folder, setup = Path(args.output_dir or "."), self.probing.describe()
        earlier = BiasHistory.load(folder) if state.global_step and (folder / FILE).exists() else None
        [earlier, *_] = all_gather_or_raise(earlier)  # from rank 0, because other ranks may not see its disk
        if earlier is not None and earlier.setup == setup:
            kept = {step: row for step, row in earlier.rows.items() if step <= state.global_step}
            self.history = replace(earlier, rows=kept, every=self.every or earlier.every)
            return
        if earlier is not None:
            warnings.warn(f"{folder / FILE} belongs to other samples or settings: probing starts again", stacklevel=2)
        with unchanged(model), self.interruptible():
            responses = self.probing.fixed_responses(self._checkpoint(model))
        self.history = BiasHistory(setup=setup, responses=responses, every=self.every)

    def _checkpoint(self, model: nn.Module) -> Checkpoint:
        return from_model(model, self.processing_class, name="the model in training", template=self.template)

    def _choose_every(self, args: TrainingArguments, state: TrainerState) -> None:
        """Decides how often to probe, once the time of a step and of a probing is known; rank 0 decides for all."""
        step_seconds = self._timer.step_seconds
        if step_seconds is None or not self.history.rows:
            return
        last = self.history.rows[max(self.history.rows)]
        every = steps_between(
            share=SHARE,
            total_steps=state.max_steps,
            step_seconds=step_seconds,
            probe_seconds=last["seconds"],
            setup_seconds=self._setup_seconds,
        )
        [self.history.every, *_] = all_gather_or_raise(every)
        if state.is_world_process_zero:
            self.history.save(args.output_dir or ".")
        times = f"a step takes {step_seconds:.2f} s and a probing {last['seconds']:.2f} s"
        if self.history.every:
            logger.info("%s: probing every %d steps, in under 5 %% of the time", times, self.history.every)
        else:
            warnings.warn(
                f"{times}: 5 % of the time of {state.max_steps} steps is too short for a second probing; set "
                "`every` to a "
                "number of steps to probe more often",
                stacklevel=2,
            )

    def _probe(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module) -> None:
        begun = perf_counter()
        with unchanged(model), self.interruptible():
            row, groups = self.probing.measure(self._checkpoint(model), self.history.responses)
        row |= {"epoch": state.epoch, "seconds": round(perf_counter() - begun, 3)}
        self.history.rows[state.global_step], self.history.groups = row, groups
        if state.is_world_process_zero:
            self.history.save(args.output_dir or ".")
        self._log(args, state, control, row)
        self._stop_if_fallen(state, control)

    def _log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, row: dict[str, Any]) -> None:
        """Does what `Trainer.log` does, which callbacks cannot call: writes to the history and notifies all
        callbacks."""
        logs: dict[str, Any] = {f"bias_{key}": row[key] for key in (*STOPPABLE, "seconds") if key in row}
        if state.epoch is not None:
            logs["epoch"] = state.epoch
        words = " of ".join(filter(None, [self.probing.response, self.probing.base_name]))
        entry: Any = {**logs, "bias_responses": words, "step": state.global_step}
        state.log_history.append(entry)
        pending = control.should_log  # the loss of this step, which on_log would cancel
        _calling_handler().on_log(args, state, control, logs)
        control.should_log = pending

    def _check_bounds(self) -> None:
        """Refuses bounds for numbers that were not measured, because training would never stop at them.

        Raises:
            InputError: names the number, and the numbers that were measured.
        """
        for row in list(self.history.rows.values())[:1]:
            measured = [name for name in STOPPABLE if name in row]
            if unknown := sorted(set(self.stop_below) - set(measured)):
                raise InputError(
                    f"stop_below has {unknown[0]!r}, which this model does not have; choose from: {', '.join(measured)}"
                )

    def _stop_if_fallen(self, state: TrainerState, control: TrainerControl) -> None:
        rows, step = self.history.rows, state.global_step
        for name, bound in self.stop_below.items():
            was_above = any(row[name] >= bound for before, row in rows.items() if before < step and name in row)
            if was_above and rows[step].get(name, bound) < bound:
                self.stopped = (
                    f"training was stopped at step {step}: {name} fell to {rows[step][name]:.3f}, below {bound}"
                )
                control.should_training_stop = control.should_save = True
                warnings.warn(self.stopped, stacklevel=2)
                return


def _calling_handler() -> CallbackHandler:
    """The Trainer's handler that calls this callback; callbacks get no reference to the Trainer or its handler.

    Raises:
        InputError: no handler calls it.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(handler := frame.f_locals.get("self"), CallbackHandler):
            return handler
        frame = frame.f_back
    raise InputError("BiasCallback is for a Trainer: give it in Trainer(callbacks=[...])")
