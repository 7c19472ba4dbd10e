"""Evaluation: tasks, responses and metrics, and the text ability that remains after training."""

from lsm_probe.runner.measurement import Measurement

EVALUATION = Measurement(
    name="evaluate",
    title="Evaluation",
    help="Responses to tasks, scored with intervals.",
    measure=f"{__name__}.evaluate:evaluate",
    result=f"{__name__}.evaluation_result:EvaluationResult",
    table=f"{__name__}.result_table:evaluation_table",
    note=f"{__name__}.result_table:evaluation_note",
    figures=f"{__name__}.plot:evaluation_figures",
    save_figures=f"{__name__}.plot:save_evaluation",
    pictures=("metrics.json", "metrics.csv", "table.md", "evaluation.png", "evaluation.svg"),
    section=f"{__name__}.section:evaluation_section",
)

TEXT_ABILITY = Measurement(
    name="text-ability",
    title="Text ability",
    help="What is left of an LLM's text ability inside an LSM.",
    measure=f"{__name__}.text_ability:text_ability",
    result=f"{__name__}.text_ability_result:TextAbilityResult",
    response=None,
    figures=None,
    table=f"{__name__}.text_ability_table:text_ability_table",
    note=f"{__name__}.text_ability_table:text_ability_note",
    pictures=("text_ability.csv",),
    section=f"{__name__}.text_ability_table:text_ability_section",
)
