"""The diagnosis: all measurements of several checkpoints, a verdict about each, and the report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lsm_probe.data.manifest import describe_data
from lsm_probe.data.pools import Pool
from lsm_probe.data.problems import OnError
from lsm_probe.data.sample import Sample
from lsm_probe.diagnosis.diagnosis import Diagnosis
from lsm_probe.diagnosis.estimate import measure_speed
from lsm_probe.diagnosis.plan import MAX_NEW_TOKENS, SOURCES, UTTERANCES, make_plan
from lsm_probe.diagnosis.run import DiagnosisRun, OnProgress
from lsm_probe.diagnosis.verdict import Verdict
from lsm_probe.distributed import all_gather_or_raise, is_main_rank, on_all_ranks
from lsm_probe.errors import InputError
from lsm_probe.folders import work_folder
from lsm_probe.models.adapters import is_adapter, read_adapter
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.published import PARTS, Parts
from lsm_probe.models.resolve import check_parts
from lsm_probe.progress import notebook_progress
from lsm_probe.reports.collection import Results, read_results
from lsm_probe.reports.report import save_report
from lsm_probe.reports.verdicts import find_verdicts
from lsm_probe.runner.named_checkpoints import named_checkpoint
from lsm_probe.runner.options import BATCH_SIZE
from lsm_probe.runner.run import ToMeasure, check_names
from lsm_probe.runner.sample_keys import SOURCE_KEYS, check_key
from lsm_probe.runner.tables import mixed_dtypes, precision_notes

REPORT = "report.html"
Named = str | Path | Checkpoint


@on_all_ranks()
def diagnose(
    checkpoints: Named | Sequence[Named],
    samples: Sequence[Sample],
    *,
    base: Named | None = None,
    out: str | Path | None = None,
    quick: bool = False,
    utterances: int = UTTERANCES,
    max_new_tokens: int = MAX_NEW_TOKENS,
    instructions: Pool | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    on_error: OnError = "fail",
    verify_precision: int = 0,
    data_name: str = "samples",
    loading: dict[str, Any] | None = None,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    on_estimate: Callable[[float], None] = lambda seconds: None,
) -> Diagnosis:
    """Measure checkpoints in several ways on the same samples, and give a verdict about each.

    Each model is loaded once and generates its responses once. All measurements take one sample of each utterance,
    because intervals depend on the number of utterances. Measurements that the samples do not allow are left out;
    [`Diagnosis.left_out`] gives the reasons. Under `torchrun` every process must call this function.

    Args:
        checkpoints: names as [`lsm_probe.load`] takes them, or loaded checkpoints.
        samples: with `audio`; with `text` (transcripts) for the base LLM, alignment and the word error rate.
        base: the text LLM inside the checkpoints. It is the reference for D_i and D_s, and, at the same number of
            source tokens, for eta. By default the first text LLM among the checkpoints, if there is one. Adapters among
            the checkpoints whose own base is not a folder are merged into it.
        out: folder for the results of all measurements, `diagnosis.json` and `report.html`. Without it nothing is
            saved.
        quick: only attention, sensitivity and transcription.
        utterances: maximum number of utterances, the first ones of the data. Sensitivity on the base LLM's responses
            uses a quarter of them, knockout a sixth (at least six each).
        max_new_tokens: maximum length of a response, in tokens.
        instructions: the pool of instructions for sensitivity. By default it holds one instruction for each of the
            first eight tasks of the samples; samples without `task` count each instruction as a task. The pool
            `probing` is used if there is only one task, if there are more than 32, or if an instruction has a
            placeholder.
        batch_size, seed, on_error, verify_precision: as in [`lsm_probe.runner.options.RunOptions`].
        data_name: name of the data in results.
        loading: keyword arguments of [`lsm_probe.load`].
        resume: continue the diagnosis in `out`. More checkpoints may be given after those it was started with; what
            is finished is not measured again.
        on_progress: called with (name, samples done, samples in all, current measurement); by default only notebooks
            show bars.
        on_estimate: called with the expected total seconds, after the first model is loaded.

    Raises:
        InputError: a checkpoint or sample cannot be used, the base is not a text LLM, or `out` holds other files.

    Example:
        >>> import lsm_probe
        >>> samples = lsm_probe.read_manifest("builtin:commands")[:12]
        >>> found = lsm_probe.diagnose("builtin:vanilla_asr", samples, quick=True, max_new_tokens=8)
        >>> found["builtin:vanilla_asr"].verdict
        'ignores the instruction (speech anchor bias)'
    """
    given = [checkpoints] if isinstance(checkpoints, str | Path | Checkpoint) else list(checkpoints)
    loading = loading or {}
    bases = {str(each): _base_of_adapter(each, base) for each in given if not isinstance(each, Checkpoint)}
    check_parts(bases, Parts(**{part: loading.get(part) for part in PARTS}))
    chosen = [_to_measure(each, loading, base) for each in given]
    reference = None if base is None else _to_measure(base, loading)
    _check(chosen, reference, samples)
    reference = reference or _text_llm_among(chosen)
    plan = make_plan(
        samples,
        quick=quick,
        with_base=reference is not None,
        instructions=instructions,
        max_new_tokens=max_new_tokens,
        utterances=utterances,
    )
    data = describe_data(samples, data_name)
    settings = {
        "utterances": {part.name: len(part.samples) for part in plan.parts},
        "max_new_tokens": max_new_tokens,
        "instructions": {task.task: task.fill(0, *task.languages[:1]) for task in plan.instructions.tasks},
        "sources": SOURCES,
        "seed": seed,
        **{name: loading.get(name) for name in ("template", "date", "dtype")},
        "batch_size": batch_size,
    }
    deciding = {
        **settings,
        "checkpoints": [each.name for each in chosen],
        "base": None if reference is None else reference.name,
        "data": data.sha256,
        "loading": loading,
        **({"verify_precision": verify_precision} if verify_precision else {}),
    }
    with _folder(out, deciding, resume) as folder, notebook_progress(on_progress) as show:
        run = DiagnosisRun(
            plan=plan,
            checkpoints=chosen,
            base=reference,
            samples=samples,
            out=folder,
            options={
                "batch_size": batch_size,
                "seed": seed,
                "on_error": on_error,
                "verify_precision": verify_precision,
            },
            data_name=data_name,
            on_progress=show,
        )
        run.on_load = _Estimating(run, on_estimate)
        run.measure()
        results = read_results([folder]) if any(folder.glob("*/*/result.json")) else None
        full_names = {} if results is None else results.full_names
        short = {full: name for name, names in full_names.items() for full in names}
        base_name = None if reference is None else short.get(reference.name, reference.name)
        diagnosis = Diagnosis(
            verdicts=_verdicts(results, run, short, base_name),
            base=base_name,
            data=data,
            settings=settings,
            names={name: names[0] for name, names in full_names.items()},
            left_out=plan.left_out,
            precision=[] if results is None else _precision(results),
            dtypes={} if results is None else {each.name: each.dtype for each in results.checkpoints()},
        )
        if out is not None and is_main_rank():
            diagnosis.save(folder)
            if results is not None:
                shown = [verdict for verdict in diagnosis.verdicts if verdict.checkpoint in full_names]
                save_report(results, folder / REPORT, shown)
    return diagnosis


def _precision(results: Results) -> list[str]:
    """The numerical precision of all measurements; one line if it is the same for all."""
    measured = [(name, result) for name, group in results.groups.items() for result in group]
    alike = precision_notes([result for _, result in measured])
    if len(alike) < 2:
        return alike
    noted = [(name, result.name, result.precision_note()) for name, result in measured]
    found = [f"{measurement} of {checkpoint}: {note}." for measurement, checkpoint, note in noted if note is not None]
    return found + mixed_dtypes([result for _, result in measured])


def _to_measure(given: Named, loading: dict[str, Any], base: Named | None = None) -> ToMeasure:
    """A checkpoint by name, or a loaded one; `base` is used for adapters whose own base is not a local folder."""
    if isinstance(given, Checkpoint):
        source = given.source
        return ToMeasure(given.name, lambda: given, lambda: source)
    if (own_base := _base_of_adapter(given, base)) is not None:
        loading = {**loading, "base": own_base}
    return named_checkpoint(str(given), loading)


def _base_of_adapter(given: str | Path, base: Named | None) -> str | None:
    """The diagnosis's base LLM, for an adapter whose own base is not a local folder; None for other checkpoints."""
    is_needed = isinstance(base, str | Path) and is_adapter(given) and not read_adapter(given).has_base_here()
    return str(base) if is_needed else None


def _text_llm_among(checkpoints: Sequence[ToMeasure]) -> ToMeasure | None:
    """The first text LLM, if there are also models that take speech: it is then the base LLM."""
    sources = [each.look_up() for each in checkpoints]
    return checkpoints[sources.index("text")] if {"text", "speech"} <= set(sources) else None


def _check(checkpoints: Sequence[ToMeasure], base: ToMeasure | None, samples: Sequence[Sample]) -> None:
    """Refuse problems that can be found before any model is loaded.

    Raises:
        InputError: there are no checkpoints or samples, a name is given twice, the base reads speech, or samples lack
            the source of a checkpoint.
    """
    if not checkpoints:
        raise InputError("there is no checkpoint to diagnose: give one with --ckpt")
    if not samples:
        raise InputError("there are no samples to diagnose on: the manifest, or what --limit leaves of it, is empty")
    check_names([each.name for each in checkpoints])
    if base is not None and base.look_up() == "speech":
        raise InputError(
            f"--base {base.name} reads speech: give the text LLM inside the checkpoints, or leave --base out"
        )
    for each in (*checkpoints, *([] if base is None else [base])):
        if (source := each.look_up()) is not None:
            check_key(SOURCE_KEYS[source], each.name, samples)


@contextmanager
def _folder(out: str | Path | None, deciding: dict[str, Any], resume: bool) -> Iterator[Path]:
    """The output folder of all processes; a temporary one without `out`."""
    with ExitStack() as stack:
        folder = None if out is None else Path(out)
        if is_main_rank():
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lsm-probe-")))
            else:
                stack.enter_context(work_folder(folder, deciding, resume=resume, growing=["checkpoints"]))
        found = all_gather_or_raise(folder)[0]  # the other processes start when the main process has the folder
        assert found is not None
        yield found
        all_gather_or_raise(None)  # no process reads from it any more


@dataclass
class _Estimating:
    """Estimates the duration of a diagnosis after its first model is loaded."""

    run: DiagnosisRun
    on_estimate: Callable[[float], None]
    done: bool = False

    def __call__(self, checkpoint: Checkpoint) -> None:
        if self.done:
            return
        self.done = True
        speed = measure_speed(checkpoint, self.run.plan.parts[0], self.run.options["batch_size"])
        if speed is not None:
            self.on_estimate(sum(speed.seconds(part) for part in self.run.unfinished()))


def _verdicts(results: Results | None, run: DiagnosisRun, short: Mapping[str, str], base: str | None) -> list[Verdict]:
    """The verdicts in the order of the checkpoints, the base LLM last, with the measurements that were not possible.

    Args:
        results: of all measurements; None if no measurement was possible.
        run: the measurements that were made.
        short: given name of a checkpoint -> its name in the results.
        base: the base LLM's name in the results.
    """
    found = {} if results is None else {each.checkpoint: each for each in find_verdicts(results, base)}
    order = dict.fromkeys([each.name for each in (*run.checkpoints, *([run.base] if run.base else []))])
    verdicts = []
    for name in order:
        failed = run.not_measured.get(name, {})
        verdict = found.get(short.get(name, name))
        if verdict is None:
            reason = "Nothing could be measured."
            verdict = Verdict(checkpoint=short.get(name, name), verdict="cannot tell", reason=reason)
        reasons = [f"{part} could not be measured: {reason}." for part, reason in failed.items()]
        verdicts.append(replace(verdict, warnings=[*verdict.warnings, *reasons]))
    return verdicts
