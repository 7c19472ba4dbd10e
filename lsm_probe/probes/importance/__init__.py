"""Importance: how much the loss of the responses depends on each weight."""

from lsm_probe.runner.measurement import Measurement

HELP = """
Which weights matter most for the responses.

Measures for each weight how much the loss of the responses would change, to first order, if it were 0:
|weight x gradient|, by layer, module and matrix. Of several checkpoints it says how the distribution over layers has
shifted: the first might be the text LLM, the others its speech-tuned children (--modality text gives all of them the
transcript).

Examples:

    lsm-probe importance --ckpt builtin:llm --data answers.jsonl --ablate 0.03

    lsm-probe importance --ckpt base-llm --ckpt my-lsm --modality text --data answers.jsonl --masks 0.05

    lsm-probe importance --ckpt base-llm --data answers.jsonl --write-lr-schedule rates.yaml

Writes result.json, arrays.npz, samples.jsonl, importance.png, .svg and .csv, with --masks masks.npz; with several
checkpoints comparison.json too.
"""

PROBE = Measurement(
    name="importance",
    help=HELP,
    measure=f"{__name__}.measure:importance",
    result=f"{__name__}.result:ImportanceResult",
    options=f"{__name__}.options:importance_options",
    response="reference",
    table=f"{__name__}.table:importance_table",
    note=f"{__name__}.table:importance_note",
    figures=f"{__name__}.plot:importance_figures",
    save_figures=f"{__name__}.plot:save_importance",
    pictures=("importance.png", "importance.svg", "importance.csv"),
    section=f"{__name__}.section:importance_section",
)
