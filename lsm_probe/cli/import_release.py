"""`lsm-probe import`: writes a released checkpoint as an LSM folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lsm_probe.cli import options as opt


def import_release(
    name: Annotated[
        str, typer.Argument(help="Folder, file or hub name of the released checkpoint.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must be empty or absent.", metavar="FOLDER")],
    encoder: opt.Encoder = None,
    llm: opt.Llm = None,
    beats: opt.Beats = None,
    template: opt.Template = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(
            help="Dtype of the written weights. auto: the smallest that holds all of them exactly; float32 if weights "
            "are merged."
        ),
    ] = "auto",
) -> None:
    r"""Convert a released checkpoint to an LSM folder.

    `--ckpt` of other commands reads released checkpoints directly; this saves the time of the conversion, and the
    naming of parts that the release leaves out. `AutoModel` of transformers and `lsm_probe.load` read the folder.
    docs/checkpoints.md lists the systems.

    Examples:
        lsm-probe import LLaMA-Omni/Llama-3.1-8B-Omni --out llama-omni
        lsm-probe import SALMONN-7B/salmonn_7b_v0.pth --encoder whisper-large-v2 \
            --llm vicuna-7b-v1.5 --out salmonn-7b \
            --beats BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt
    """
    import torch

    from lsm_probe.cli.progress import quiet_transformers
    from lsm_probe.files import check_can_write, check_is_empty
    from lsm_probe.models.published import Parts, load_published
    from lsm_probe.models.resolve import check_parts, resolve

    quiet_transformers()
    check_can_write("--out", out, folder=True)
    check_is_empty(out)
    parts = Parts(encoder=encoder, llm=llm, beats=beats)
    check_parts({name: None}, parts)
    place = resolve(name, download=True).path or name
    chosen = None if dtype == "auto" else getattr(torch, dtype)
    checkpoint = load_published(place, parts, chosen, template=template)
    checkpoint.save(out)
    print(f"written to {out}: {checkpoint.identity.published}, template {checkpoint.template.name}")
