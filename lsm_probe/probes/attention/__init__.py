"""Attention: how much of what each layer reads for the response comes from instruction and speech."""

from lsm_probe.runner.measurement import Measurement

HELP = """
Eta by layer: the share of the response's attention that the instruction gets.

Measures, layer by layer, how much of the norm-based attention of the response goes to the instruction and how much
to the speech: eta = S_instruction / (S_instruction + S_source). 0.5 is balanced, low is speech anchor bias.

Examples:

    lsm-probe attention --ckpt my-lsm --data clips.jsonl

    lsm-probe attention --ckpt builtin:llm --ckpt builtin:untrained --out runs/first

    lsm-probe attention --ckpt my-lsm --heads mean_of_norms --response reference --json

    lsm-probe attention --ckpt my-lsm --backend nnsight --responses runs/attention/my-lsm --out runs/second-opinion

Writes result.json, arrays.npz, samples.jsonl, and eta and eta_heads (single heads) as .png, .svg and .csv; with
several checkpoints comparison.json too.
"""

PROBE = Measurement(
    name="attention",
    help=HELP,
    measure=f"{__name__}.measure:attention",
    result=f"{__name__}.result:AttentionResult",
    options=f"{__name__}.options:attention_options",
    table=f"{__name__}.table:attention_table",
    note=f"{__name__}.table:attention_note",
    figures=f"{__name__}.plot:attention_figures",
    save_figures=f"{__name__}.plot:save_eta",
    pictures=tuple(f"{name}.{kind}" for name in ("eta", "eta_heads") for kind in ("png", "svg", "csv")),
    section=f"{__name__}.section:attention_sections",
    controls=f"{__name__}.controls:length_controls",
)
