"""`lsm-probe import`: writes a released checkpoint as an LSM folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt


def import_release(
    name: Annotated[str, typer.Argument(help="Folder or file of the released checkpoint.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write; empty, or not there yet.", show_default=False)],
    encoder: opt.Encoder = None,
    llm: opt.Llm = None,
    beats: opt.Beats = None,
    template: opt.Template = None,
    dtype: opt.Dtype = "auto",
) -> None:
    """Write a released checkpoint as an LSM folder.

    `--ckpt` reads released checkpoints directly; this saves the conversion and, where parts were left out, naming them
    each time. The folder is one of transformers: `AutoModel` and `lsm_probe.load` take it. docs/checkpoints.md lists
    the systems.

    Examples:

        lsm-probe import LLaMA-Omni/Llama-3.1-8B-Omni --out llama-omni

        lsm-probe import SALMONN-7B/salmonn_7b_v0.pth --encoder whisper-large-v2 --llm vicuna-7b-v1.5
        --beats BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt --out salmonn-7b
    """
    from lsm_probe.cli.progress import quiet_transformers
    from lsm_probe.files import check_can_write
    from lsm_probe.models.devices import resolve_device, resolve_dtype
    from lsm_probe.models.published import Parts, check_parts, load_published

    quiet_transformers()
    check_can_write("--out", out, folder=True)
    cpu = resolve_device("cpu")
    parts = Parts(encoder=encoder, llm=llm, beats=beats)
    check_parts(name, parts)
    checkpoint = load_published(name, parts, resolve_dtype(dtype, cpu), template=template)
    checkpoint.save(out)
    print(f"written to {out}: {checkpoint.identity.published}, template {checkpoint.template.name}")
