"""Makes the measurements of a diagnosis: each model is loaded once, and generates its responses once."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lsm_probe.data.manifest import describe_data
from lsm_probe.data.sample import Sample
from lsm_probe.diagnosis.models import LazyModel
from lsm_probe.diagnosis.plan import Part, Plan
from lsm_probe.distributed import all_gather_or_raise, is_main_rank, on_all_ranks
from lsm_probe.errors import InputError, NotMeasurable
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.retokenise import has_same_tokenizer, in_tokens_of
from lsm_probe.probes.registry import PROBES
from lsm_probe.runner.comparison import compare
from lsm_probe.runner.identity import Control
from lsm_probe.runner.options import steps
from lsm_probe.runner.output_folder import PROGRESS, FolderNames, control_folder, folder_name
from lsm_probe.runner.result import MeasurementResult, write_json
from lsm_probe.runner.run import ToMeasure

OnProgress = Callable[..., None]


@dataclass(frozen=True)
class _Job:
    """One part for one checkpoint, or the attention of the base LLM at the source lengths of a checkpoint.

    Attributes:
        model: the model to measure.
        part: the measurement.
        folder: the output folder of the result.
        samples, options: of the measurement.
        needed_for: name of the checkpoint whose verdict needs the result.
        what: the job's name in messages.
    """

    model: LazyModel
    part: Part
    folder: Path
    samples: Sequence[Sample]
    options: Mapping[str, Any]
    needed_for: str
    what: str


@dataclass
class DiagnosisRun:
    """The measurements of a diagnosis, written into a folder for each part with a subfolder for each checkpoint.

    Finished results are read instead of measured again, so that an interrupted run continues.

    Attributes:
        plan: the measurements to make.
        checkpoints: the checkpoints to measure.
        base: the text LLM inside the checkpoints, or None.
        samples: all samples.
        out: the output folder.
        options: keyword arguments of all measurements, such as the batch size.
        data_name: name of the data in results.
        on_progress: called with (name, done, total, note); counts samples over all parts and checkpoints.
        on_load: called with each checkpoint after it is loaded.
        not_measured: name of a checkpoint -> name of a part -> why it could not be measured; filled by [`measure`].
    """

    plan: Plan
    checkpoints: Sequence[ToMeasure]
    base: ToMeasure | None
    samples: Sequence[Sample]
    out: Path
    options: Mapping[str, Any]
    data_name: str
    on_progress: OnProgress = lambda *_: None
    on_load: Callable[[Checkpoint], None] = lambda checkpoint: None
    not_measured: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._base = None if self.base is None else LazyModel(self.base, self._loaded)
        others = [each for each in self.checkpoints if self.base is None or each.name != self.base.name]
        self._models = [LazyModel(each, self._loaded) for each in others]
        folders, names = FolderNames(), [each.name for each in (self._base, *self._models) if each is not None]
        self._folders = {name: folders.take(folder_name(name)) for name in names}
        self._results: dict[str, list[MeasurementResult]] = {}
        self._name_of: dict[str, str] = {}  # hashes of weights -> checkpoint
        self._done = 0

    @on_all_ranks()
    def measure(self) -> None:
        """Make all measurements. Under `torchrun` every process must call it; the main one writes.

        Raises:
            InputError: a checkpoint or a sample cannot be used.
        """
        self._finished = self._find_finished()
        self._total = self._count_samples()
        try:
            if self._base is not None:
                self._measure_parts(self._base, self.plan.for_base())
            for model in self._models:
                self._measure_parts(model, self.plan.for_source(model.source))
                model.free()
            if self._base is not None:
                self._measure_controls(self._base)
        finally:
            for each in (self._base, *self._models):
                if each is not None:
                    each.free()
        if is_main_rank():
            self._write_comparisons()
            shutil.rmtree(self.out / PROGRESS, ignore_errors=True)

    def _find_finished(self) -> set[Path]:
        """Folders of results that an interrupted run has finished; the same list in all processes."""
        found = {path.parent for path in self.out.glob("*/*/result.json")} if is_main_rank() else set()
        return all_gather_or_raise(found)[0]

    def _count_samples(self) -> int:
        """Number of samples over all parts and checkpoints, for the progress bar."""
        return sum(self._steps(part) for part, _ in self._all_parts())

    def _steps(self, part: Part) -> int:
        return steps(len(part.samples), self.options.get("verify_precision", 0))

    def _all_parts(self) -> Iterator[tuple[Part, Path]]:
        """Each part of each checkpoint with its folder, and one control of the base LLM."""
        for model in self._models:
            for part in self.plan.for_source(model.to_measure.look_up() or "speech"):
                yield part, self.out / part.name / self._folders[model.name]
        if self._base is not None:
            for part in self.plan.for_base():
                yield part, self.out / part.name / self._folders[self._base.name]
            attention = self.plan.parts[0]
            controls = [path for path in self._finished if "-at-length-of-" in path.name]
            yield attention, controls[0] if controls else self.out / attention.name

    def unfinished(self) -> list[Part]:
        """The parts that remain to be measured, for all checkpoints; known once [`measure`] has started."""
        return [part for part, folder in self._all_parts() if folder not in self._finished]

    def _measure_parts(self, model: LazyModel, parts: Sequence[Part]) -> None:
        """Measures the parts of one checkpoint. The first part generates responses, which the others reuse."""
        generated: dict[str, list[int]] = {}
        for part in parts:
            folder = self.out / part.name / self._folders[model.name]
            samples, options = part.samples, dict(part.options)
            if part.whose == "own":
                options["generated"] = dict(generated)
            elif part.whose == "base" and folder not in self._finished:
                options["responses"] = self._base_responses(model)
                samples = [sample for sample in samples if sample.id in options["responses"]]
            result = self._measure(_Job(model, part, folder, samples, options, model.name, part.name))
            if result is not None and part.whose == "own":
                generated |= result.responses()

    def _measure_controls(self, base: LazyModel) -> None:
        """Measures the attention of the base LLM at the source lengths of the checkpoints."""
        part = next(part for part in self.plan.parts if part.name == "attention")
        results = list(self._results.get(part.name, []))
        # Copied to a list, because results are added below.
        for run in list(PROBES["attention"].make_controls(results, self.samples)):
            if run.checkpoint == base.name:
                control = Control(base.name, tuple(run.options["source_length_of"]))
                folder, what = self.out / part.name / control_folder(control), f"{part.name} of {control.name}"
                options = {**part.options, **run.options}
                self._measure(_Job(base, part, folder, run.samples, options, control.source_length_of[0], what))

    def _measure(self, job: _Job) -> MeasurementResult | None:
        """The result of a job, measured or read from its folder; None if it cannot be measured."""
        done, note = self._done, f"{job.part.name}: {job.folder.name}"
        self._show(done, note)
        result: MeasurementResult | None = None
        try:
            if job.folder in self._finished:
                result = job.part.measurement.get("result").load(job.folder)
            else:
                result = self._run(job, lambda n: self._show(done + n, note))
        except NotMeasurable as error:
            self.not_measured.setdefault(job.needed_for, {})[job.what] = str(error)
        self._done = done + self._steps(job.part)
        if result is not None:
            self._results.setdefault(job.part.name, []).append(result)
        return result

    def _run(self, job: _Job, on_progress: Callable[[int], None]) -> MeasurementResult:
        if not job.samples:
            raise NotMeasurable("the base LLM gave no responses to these samples")
        if self._base is not None and job.model is not self._base:
            self._base.park()
        checkpoint = job.model.get()
        self._refuse_same_weights(checkpoint)
        progress = self.out / PROGRESS / job.part.name / job.folder.name
        result: MeasurementResult = job.part.measurement.get("measure")(
            checkpoint,
            job.samples,
            data=describe_data(job.samples, self.data_name),
            progress_folder=progress,
            on_progress=on_progress,
            **{**self.options, **job.options},
        )
        if is_main_rank():
            result.save(job.folder)
            shutil.rmtree(progress, ignore_errors=True)
        return result

    def _refuse_same_weights(self, checkpoint: Checkpoint) -> None:
        """Refuse a second name for the same weights, which would look like two checkpoints in the report.

        Raises:
            InputError: another checkpoint of this diagnosis has the same weights.
        """
        hashes = checkpoint.identity.weights_sha256
        name = self._name_of.setdefault(json.dumps(hashes, sort_keys=True), checkpoint.name) if hashes else ""
        if hashes and name != checkpoint.name:
            raise InputError(f"{checkpoint.name} has the same weights as {name}: give only one of them")

    def _base_responses(self, model: LazyModel) -> dict[str, list[int]]:
        """The base LLM's responses, as token ids of another model."""
        base = self._base
        assert base is not None  # otherwise the plan has no part on its responses
        measured = [each for part in ("attention", "sensitivity") for each in self._results.get(part, [])]
        found = next((each for each in measured if each.name == base.name), None)
        if found is None:
            return {}
        reader, writer = model.get(), base.peek()
        if not has_same_tokenizer(reader, writer):
            warnings.warn(
                f"{model.name} has another tokenizer than {base.name}: the responses of {base.name} are tokenised "
                "again, and numbers in nats per token of the two cannot be compared exactly",
                stacklevel=2,
            )
        with_words = {sample: ids for sample, ids in found.responses().items() if writer.decode(ids)}
        return in_tokens_of(reader, writer, with_words)

    def _write_comparisons(self) -> None:
        for part, results in self._results.items():
            if len(results) > 1:
                try:
                    write_json(self.out / part / "comparison.json", compare(results))
                except InputError as error:  # for example, no sample was measured for both
                    warnings.warn(f"{part} of the checkpoints is not compared: {error}", stacklevel=2)

    def _loaded(self, checkpoint: Checkpoint) -> None:
        self.on_load(checkpoint)

    def _show(self, done: int, note: str) -> None:
        self.on_progress("diagnosis", done, max(done, self._total), note)
