"""lsm-probe: shows, locates and measures speech anchor bias in large speech-text models.

import lsm_probe

model = lsm_probe.load("builtin:untrained")
result = lsm_probe.attention(model, lsm_probe.read_manifest("builtin:probe"))
result.save("runs/untrained")
result.plot()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsm_probe.data.augmentation.recipe import Recipe
    from lsm_probe.data.augmentation.run import augment
    from lsm_probe.data.manifest import read_manifest
    from lsm_probe.data.pools import read_pool
    from lsm_probe.data.sample import Sample
    from lsm_probe.errors import InputError
    from lsm_probe.evaluation.evaluate import evaluate
    from lsm_probe.evaluation.evaluation_result import EvaluationResult
    from lsm_probe.evaluation.mmlu import read_mmlu
    from lsm_probe.evaluation.task import read_tasks
    from lsm_probe.evaluation.text_ability import text_ability
    from lsm_probe.evaluation.text_ability_result import TextAbilityResult
    from lsm_probe.models.building import build_lsm
    from lsm_probe.models.loading import load
    from lsm_probe.probes.alignment.measure import alignment
    from lsm_probe.probes.alignment.result import AlignmentResult
    from lsm_probe.probes.attention.measure import attention
    from lsm_probe.probes.attention.result import AttentionResult
    from lsm_probe.probes.attention.speech import SpeechAttention, speech_attention
    from lsm_probe.probes.importance.measure import importance
    from lsm_probe.probes.importance.result import ImportanceResult
    from lsm_probe.probes.knockout.measure import knockout
    from lsm_probe.probes.knockout.result import KnockoutResult
    from lsm_probe.probes.sensitivity.measure import sensitivity
    from lsm_probe.probes.sensitivity.result import SensitivityResult
    from lsm_probe.probes.timeline.measure import timeline
    from lsm_probe.probes.timeline.result import Timeline
    from lsm_probe.reports.collection import read_results
    from lsm_probe.runner.comparison import compare
    from lsm_probe.runner.measurement import CommandOptions, Measurement
    from lsm_probe.runner.measurement_run import MeasurementRun, stack
    from lsm_probe.runner.options import ResponseOptions, RunOptions
    from lsm_probe.runner.result import MeasurementResult
    from lsm_probe.runner.run import named_checkpoint, run_measurement
    from lsm_probe.training.config import read_config
    from lsm_probe.training.run import train

_MODULES = {
    "CommandOptions": "runner.measurement",
    "EvaluationResult": "evaluation.evaluation_result",
    "InputError": "errors",
    "Measurement": "runner.measurement",
    "MeasurementResult": "runner.result",
    "MeasurementRun": "runner.measurement_run",
    "Recipe": "data.augmentation.recipe",
    "ResponseOptions": "runner.options",
    "RunOptions": "runner.options",
    "Sample": "data.sample",
    "SpeechAttention": "probes.attention.speech",
    "TextAbilityResult": "evaluation.text_ability_result",
    "Timeline": "probes.timeline.result",
    "augment": "data.augmentation.run",
    "build_lsm": "models.building",
    "compare": "runner.comparison",
    "evaluate": "evaluation.evaluate",
    "load": "models.loading",
    "named_checkpoint": "runner.run",
    "read_config": "training.config",
    "read_manifest": "data.manifest",
    "read_mmlu": "evaluation.mmlu",
    "read_pool": "data.pools",
    "read_results": "reports.collection",
    "read_tasks": "evaluation.task",
    "run_measurement": "runner.run",
    "speech_attention": "probes.attention.speech",
    "stack": "runner.measurement_run",
    "text_ability": "evaluation.text_ability",
    "timeline": "probes.timeline.measure",
    "train": "training.run",
}
"""Public name -> the module it is imported from when first used, so that `lsm-probe --help` need not wait for torch."""

__all__ = [
    "AlignmentResult",
    "AttentionResult",
    "CommandOptions",
    "EvaluationResult",
    "ImportanceResult",
    "InputError",
    "KnockoutResult",
    "Measurement",
    "MeasurementResult",
    "MeasurementRun",
    "Recipe",
    "ResponseOptions",
    "RunOptions",
    "Sample",
    "SensitivityResult",
    "SpeechAttention",
    "TextAbilityResult",
    "Timeline",
    "alignment",
    "attention",
    "augment",
    "build_lsm",
    "compare",
    "evaluate",
    "importance",
    "knockout",
    "load",
    "named_checkpoint",
    "read_config",
    "read_manifest",
    "read_mmlu",
    "read_pool",
    "read_results",
    "read_tasks",
    "run_measurement",
    "sensitivity",
    "speech_attention",
    "stack",
    "text_ability",
    "timeline",
    "train",
]


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
