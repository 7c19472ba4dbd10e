"""Alignment: how similar an LSM's states are for speech and for its transcript."""

from lsm_probe.runner.measurement import Measurement

HELP = """
How similar an LSM's states are for speech and for its transcript.

Puts each sample to an LSM twice under the same instruction, with its speech and with its transcript in the source
slot, and says at every layer how alike the two are: cosine with the own and with other transcripts, CKA, retrieval
(also standardised, without the offset between the two), distance of the centres, MMD with a permutation test; and
draws both in one plane by t-SNE. Samples need `audio` and `text`. `builtin:untrained` shows what comes without any
alignment.

Examples:

    lsm-probe alignment --ckpt my-lsm --data clips.jsonl --instruction "Repeat what the speech says."

    lsm-probe alignment --ckpt vanilla --ckpt self-powered --data clips.jsonl --out runs/compared

    lsm-probe alignment --ckpt my-lsm --data clips.jsonl --segment response --response reference --layer 16

Writes result.json, arrays.npz, samples.jsonl, alignment.png, .svg and .csv and alignment_points.csv; with several
checkpoints comparison.json too.
"""

PROBE = Measurement(
    name="alignment",
    help=HELP,
    measure=f"{__name__}.measure:alignment",
    result=f"{__name__}.result:AlignmentResult",
    options=f"{__name__}.options:alignment_options",
    table=f"{__name__}.table:alignment_table",
    note=f"{__name__}.table:alignment_note",
    figures=f"{__name__}.plot:alignment_figures",
    save_figures=f"{__name__}.plot:save_alignment",
    pictures=("alignment.png", "alignment.svg", "alignment.csv", "alignment_points.csv"),
    section=f"{__name__}.section:alignment_section",
)
