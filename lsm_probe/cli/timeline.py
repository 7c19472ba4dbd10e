"""`lsm-probe timeline`: what the response takes from one utterance, over time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt


def timeline(
    ckpt: Annotated[
        str,
        typer.Option(help="A model that takes speech: a folder, hub name or built-in LSM.", metavar="NAME"),
    ],
    data: opt.Data = "builtin:probe",
    sample: Annotated[str | None, typer.Option(help="Id of the sample. [default: the first]", metavar="ID")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Output folder. [default: runs/timeline/CHECKPOINT/SAMPLE]", metavar="FOLDER")
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(help="Layer shown by response token. [default: chosen automatically]", min=0),
    ] = None,
    base: opt.AdapterBase = None,
    template: opt.Template = None,
    date: opt.Date = None,
    encoder: opt.Encoder = None,
    llm: opt.Llm = None,
    beats: opt.Beats = None,
    max_new_tokens: opt.MaxNewTokens = 128,
    response: opt.Response = "generated",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    json: opt.Json = False,
) -> None:
    """Show what the response attends to in one utterance over time.

    Draws waveform, spectrogram and words above the norm-based attention of the response to the speech, by layer and by
    response token, with eta beside it. timeline.html plays the speech under a moving cursor.

    Examples:
        lsm-probe timeline --ckpt my-lsm --data clips.jsonl --sample clip-7
        lsm-probe timeline --ckpt builtin:untrained --layer 17
        lsm-probe timeline --ckpt Qwen/Qwen2-Audio-7B-Instruct --data clips.jsonl --json

    If the sample has a transcript (`text`, English, up to 30 s of speech), the built-in Whisper finds the times of its
    words. The times of speech tokens follow from the connector; for other audio LLMs they are spaced evenly.

    Writes timeline.html, timeline.png, timeline.svg and timeline.json.
    """
    from lsm_probe.cli.progress import quiet_transformers
    from lsm_probe.data.manifest import read_manifest
    from lsm_probe.files import check_can_write, plain_name
    from lsm_probe.folders import alone_in
    from lsm_probe.models.loading import load
    from lsm_probe.probes.timeline.measure import choose_sample
    from lsm_probe.probes.timeline.measure import timeline as probe
    from lsm_probe.probes.timeline.page import save_page
    from lsm_probe.probes.timeline.plot import save_timeline
    from lsm_probe.probes.timeline.result import check_layer
    from lsm_probe.probes.timeline.table import show_timeline
    from lsm_probe.runner.output_folder import folder_name
    from lsm_probe.runner.picture_files import report_drawing_failure
    from lsm_probe.runner.run import check_names

    quiet_transformers()
    if out is not None:
        check_can_write("--out", out, folder=True)
    check_names([ckpt])
    loading = opt.loading_options(
        device=device, dtype=dtype, template=template, date=date, encoder=encoder, llm=llm, beats=beats
    )
    chosen = choose_sample(read_manifest(data), sample)
    out = out or Path("runs") / "timeline" / folder_name(ckpt) / plain_name(chosen.id)
    with alone_in(out):
        checkpoint = load(ckpt, base=base, **loading)
        if layer is not None:
            check_layer(layer, checkpoint.llm.config.get_text_config().num_hidden_layers)
        result = probe(checkpoint, chosen, response=response, max_new_tokens=max_new_tokens)
        layer = result.choose_layer(layer)
        result.save(out)
        try:
            with report_drawing_failure(out):
                save_timeline(result, out, layer)
                save_page(result, out, layer)
        finally:
            show_timeline(result, out, as_json=json)
