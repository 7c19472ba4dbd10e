"""Sensitivity: how much likelier the response is under its own instruction and source than under others."""

from lsm_probe.runner.measurement import Measurement

HELP = """
How much the response depends on the instruction and on the speech.

Measures, without looking at attention, how much the response depends on the instruction and on the source: how much
likelier it is under its own instruction than under a pool of instructions of other tasks (D_i), and under its own
source than under other samples' (D_s). D_i near 0: the instruction is ignored. info-eta = D_i / (D_i + D_s).

Examples:

    lsm-probe sensitivity --ckpt my-lsm --data clips.jsonl --instructions probing

    lsm-probe sensitivity --ckpt vanilla --ckpt self-powered --response reference --out runs/compared

    lsm-probe sensitivity --ckpt my-lsm --data clips.jsonl --instructions generation --pool paraphrases

Writes result.json, arrays.npz, samples.jsonl, sensitivity.png, .svg and .csv and sensitivity_tokens.csv; with several
checkpoints comparison.json too.
"""

PROBE = Measurement(
    name="sensitivity",
    help=HELP,
    measure=f"{__name__}.measure:sensitivity",
    result=f"{__name__}.result:SensitivityResult",
    options=f"{__name__}.options:sensitivity_options",
    table=f"{__name__}.table:sensitivity_table",
    note=f"{__name__}.table:sensitivity_note",
    figures=f"{__name__}.plot:sensitivity_figures",
    save_figures=f"{__name__}.plot:save_sensitivity",
    pictures=("sensitivity.png", "sensitivity.svg", "sensitivity.csv", "sensitivity_tokens.csv"),
    section=f"{__name__}.section:sensitivity_section",
)
