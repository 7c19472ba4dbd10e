"""Knockout: what the response loses when the instruction or the source is masked in some layers."""

from lsm_probe.runner.measurement import Measurement

HELP = """
What the response loses when instruction or speech is masked in some layers.

Masks the instruction, and then the source, from the response in windows of layers, and measures by how much the
log-probability of the response falls. Causal eta = fall_i / (fall_i + fall_s), by layer. Tokens that have read a
segment before still pass it on: the instruction reaches the response through the speech tokens, for example. The masked
model is out of distribution, so the falls are not bounds.

Examples:

    lsm-probe knockout --ckpt my-lsm --data clips.jsonl

    lsm-probe knockout --ckpt vanilla --ckpt self-powered --response reference --window 9 --out runs/compared

    lsm-probe knockout --ckpt my-lsm --data clips.jsonl --single-heads --layers 12-23 --max-new-tokens 16

With --single-heads each head is masked alone too. This adds 2 x layers x heads masked passes for each sample, which
takes as many times as long as the windows as a layer has heads. A *speech-anchor head* is a head whose masking of the
speech lowers the log-probability of the response (p < 0.05, corrected for the number of heads) by more than its masking
of the instruction does, which alone shows no effect; an *instruction head* is the reverse. The effect of a single head
is small, and with four utterances or fewer no head can be found.

Writes result.json, arrays.npz, samples.jsonl, knockout.png, .svg and .csv, with --single-heads knockout_heads.png, .svg
and .csv; with several checkpoints comparison.json too.
"""

PROBE = Measurement(
    name="knockout",
    help=HELP,
    measure=f"{__name__}.measure:knockout",
    result=f"{__name__}.result:KnockoutResult",
    options=f"{__name__}.options:knockout_options",
    table=f"{__name__}.table:knockout_table",
    note=f"{__name__}.table:knockout_note",
    figures=f"{__name__}.plot:knockout_figures",
    save_figures=f"{__name__}.plot:save_knockout",
    pictures=tuple(f"{name}.{kind}" for name in ("knockout", "knockout_heads") for kind in ("png", "svg", "csv")),
    section=f"{__name__}.section:knockout_section",
)
