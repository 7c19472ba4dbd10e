"""lsm-probe: shows, locates and measures speech anchor bias in large speech-text models.

import lsm_probe

model = lsm_probe.load("builtin:untrained")
result = lsm_probe.attention(model, lsm_probe.read_manifest("builtin:probe"))
result.save("runs/untrained")
result.plot()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lsm_probe.version import __version__ as __version__

if TYPE_CHECKING:
    from lsm_probe.data.augmentation.recipe import Recipe as Recipe
    from lsm_probe.data.augmentation.run import augment as augment
    from lsm_probe.data.conversion import samples as samples
    from lsm_probe.data.manifest import read_manifest as read_manifest
    from lsm_probe.data.manifest import write_manifest as write_manifest
    from lsm_probe.data.pools import read_pool as read_pool
    from lsm_probe.data.sample import Sample as Sample
    from lsm_probe.diagnosis.diagnosis import Diagnosis as Diagnosis
    from lsm_probe.diagnosis.verdict import Verdict as Verdict
    from lsm_probe.errors import InputError as InputError
    from lsm_probe.evaluation.evaluate import evaluate as evaluate
    from lsm_probe.evaluation.evaluation_result import EvaluationResult as EvaluationResult
    from lsm_probe.evaluation.mmlu import read_mmlu as read_mmlu
    from lsm_probe.evaluation.task import read_tasks as read_tasks
    from lsm_probe.evaluation.text_ability import text_ability as text_ability
    from lsm_probe.evaluation.text_ability_result import TextAbilityResult as TextAbilityResult
    from lsm_probe.models.building import build_lsm as build_lsm
    from lsm_probe.models.live import from_model as from_model
    from lsm_probe.models.live import unchanged as unchanged
    from lsm_probe.models.loading import load as load
    from lsm_probe.models.segments import Segment as Segment
    from lsm_probe.probes.alignment.measure import alignment as alignment
    from lsm_probe.probes.alignment.result import AlignmentResult as AlignmentResult
    from lsm_probe.probes.attention.measure import attention as attention
    from lsm_probe.probes.attention.result import AttentionResult as AttentionResult
    from lsm_probe.probes.attention.speech import SpeechAttention as SpeechAttention
    from lsm_probe.probes.attention.speech import speech_attention as speech_attention
    from lsm_probe.probes.importance.measure import importance as importance
    from lsm_probe.probes.importance.result import ImportanceResult as ImportanceResult
    from lsm_probe.probes.knockout.measure import knockout as knockout
    from lsm_probe.probes.knockout.result import KnockoutResult as KnockoutResult
    from lsm_probe.probes.sensitivity.measure import sensitivity as sensitivity
    from lsm_probe.probes.sensitivity.result import SensitivityResult as SensitivityResult
    from lsm_probe.probes.timeline.measure import timeline as timeline
    from lsm_probe.probes.timeline.result import Timeline as Timeline
    from lsm_probe.reports.collection import read_results as read_results
    from lsm_probe.reports.diagnose import diagnose as diagnose
    from lsm_probe.runner.comparison import compare as compare
    from lsm_probe.runner.measurement import CommandOptions as CommandOptions
    from lsm_probe.runner.measurement import Measurement as Measurement
    from lsm_probe.runner.measurement_run import MeasurementRun as MeasurementRun
    from lsm_probe.runner.measurement_run import Unusable as Unusable
    from lsm_probe.runner.measurement_run import stack as stack
    from lsm_probe.runner.named_checkpoints import named_checkpoint as named_checkpoint
    from lsm_probe.runner.options import ResponseOptions as ResponseOptions
    from lsm_probe.runner.options import RunOptions as RunOptions
    from lsm_probe.runner.options import split_options as split_options
    from lsm_probe.runner.page import Section as Section
    from lsm_probe.runner.prepared_samples import PreparedSample as PreparedSample
    from lsm_probe.runner.result import MeasurementResult as MeasurementResult
    from lsm_probe.runner.run import run_measurement as run_measurement
    from lsm_probe.runner.tables import Table as Table
    from lsm_probe.training.config import read_config as read_config
    from lsm_probe.training.run import train as train

_MODULES = {
    "CommandOptions": "runner.measurement",
    "Diagnosis": "diagnosis.diagnosis",
    "EvaluationResult": "evaluation.evaluation_result",
    "InputError": "errors",
    "Measurement": "runner.measurement",
    "MeasurementResult": "runner.result",
    "MeasurementRun": "runner.measurement_run",
    "PreparedSample": "runner.prepared_samples",
    "Recipe": "data.augmentation.recipe",
    "ResponseOptions": "runner.options",
    "RunOptions": "runner.options",
    "Sample": "data.sample",
    "Section": "runner.page",
    "Segment": "models.segments",
    "SpeechAttention": "probes.attention.speech",
    "Table": "runner.tables",
    "TextAbilityResult": "evaluation.text_ability_result",
    "Timeline": "probes.timeline.result",
    "Unusable": "runner.measurement_run",
    "Verdict": "diagnosis.verdict",
    "augment": "data.augmentation.run",
    "build_lsm": "models.building",
    "compare": "runner.comparison",
    "diagnose": "reports.diagnose",
    "evaluate": "evaluation.evaluate",
    "from_model": "models.live",
    "load": "models.loading",
    "named_checkpoint": "runner.named_checkpoints",
    "read_config": "training.config",
    "read_manifest": "data.manifest",
    "read_mmlu": "evaluation.mmlu",
    "read_pool": "data.pools",
    "read_results": "reports.collection",
    "read_tasks": "evaluation.task",
    "run_measurement": "runner.run",
    "samples": "data.conversion",
    "speech_attention": "probes.attention.speech",
    "split_options": "runner.options",
    "stack": "runner.measurement_run",
    "text_ability": "evaluation.text_ability",
    "timeline": "probes.timeline.measure",
    "train": "training.run",
    "unchanged": "models.live",
    "write_manifest": "data.manifest",
}
"""Public name -> its module. A module is imported at first use, so that `lsm-probe --help` does not load torch."""

_PROBES = (
    *("alignment", "attention", "importance", "knockout", "sensitivity"),
    *("AlignmentResult", "AttentionResult", "ImportanceResult", "KnockoutResult", "SensitivityResult"),
)
"""Public names that come from the registry of probes."""

__all__ = sorted(["__version__", *_MODULES, *_PROBES])


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"lsm_probe.{_MODULES[name]}"), name)
    if not name.startswith("_"):
        from lsm_probe.probes.registry import PROBES

        for probe in PROBES.values():
            if name == probe.name.replace("-", "_"):
                return probe.get("measure")
            if name.endswith("Result") and name == str(probe.result).rpartition(":")[2]:
                return probe.get("result")
    raise AttributeError(f"module 'lsm_probe' has no attribute {name!r}")
