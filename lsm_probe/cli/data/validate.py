"""`lsm-probe data validate`: a check of a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt


def validate(
    manifest: Annotated[Path, typer.Argument(help="JSONL manifest.")],
    headers: Annotated[
        bool, typer.Option("--headers", help="Read only the header of each audio file: faster, but finds less.")
    ] = False,
    ckpt: Annotated[
        str | None,
        typer.Option(
            help="Also check the texts for control tokens of this checkpoint's tokenizer (weights are not loaded).",
            metavar="NAME",
        ),
    ] = None,
    base: opt.AdapterBase = None,
    template: opt.Template = None,
    encoder: opt.Encoder = None,
    llm: opt.Llm = None,
    beats: opt.Beats = None,
    json: opt.Json = False,
) -> None:
    r"""Check every line and every audio file of a manifest.

    Decodes each audio file that the manifest names. Prints each line that cannot be used with its number and the cause,
    then the counts. Exit codes: 0 all samples can be used; 2 some cannot.

    Examples:
        lsm-probe data validate clips.jsonl
        lsm-probe data validate clips.jsonl --ckpt my-lsm
        lsm-probe data validate clips.jsonl --ckpt SALMONN-7B/salmonn_7b_v0.pth \
            --encoder whisper-large-v2 --llm vicuna-7b-v1.5
    """
    import sys
    from json import dumps

    from lsm_probe.cli.progress import progress
    from lsm_probe.data.validation import validate_manifest
    from lsm_probe.errors import InputError

    check_texts = None
    asked = {"base": base, "template": template, "encoder": encoder, "llm": llm, "beats": beats}
    if ckpt is None and (unused := [option for option, value in asked.items() if value is not None]):
        raise InputError(f"--{unused[0]} needs --ckpt: give the checkpoint too, or leave the option out")
    if ckpt is not None:
        from lsm_probe.cli.progress import quiet_transformers
        from lsm_probe.models.lookup import load_text_check
        from lsm_probe.models.published import Parts

        quiet_transformers()
        check_texts = load_text_check(
            ckpt, template=template, base=base, parts=Parts(encoder=encoder, llm=llm, beats=beats)
        )
    with progress() as on_progress:
        found = validate_manifest(manifest, headers=headers, check_texts=check_texts, on_progress=on_progress)
    if json:
        print(dumps(found.to_dict()))
    else:
        for line in found.problems:
            print(line, file=sys.stderr)
        print(f"{manifest}: {found.usable} samples usable, {len(found.problems)} not")
        print(f"  of those, {', '.join(f'{count} with {key}' for key, count in found.keys.items())}")
        for task, count in sorted(found.tasks.items()):
            print(f"  {task}: {count}")
    if found.problems:
        raise InputError  # the problems are printed
    if not found.usable:
        raise InputError(f"{manifest} holds no sample; write one JSON object a line")
