"""What the commands of the attention probe have in common: progress on stderr, table or JSON on stdout, pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers.utils import logging as transformers_logging

from lsm_probe.cli.progress import progress
from lsm_probe.data.manifest import read_manifest
from lsm_probe.plots.eta import save_eta
from lsm_probe.probes.attention import describe_data
from lsm_probe.probes.result import SEGMENTS, AttentionResult
from lsm_probe.probes.runs import CONTROL, run_attention, slug


def probe_and_report(
    names: Sequence[str],
    data: str,
    out: Path | None,
    *,
    command: str,
    loading: dict[str, Any],
    probing: dict[str, Any],
    responses: Path | None = None,
    limit: int | None = None,
    resume: bool = False,
    as_json: bool = False,
) -> None:
    """Runs the attention probe on checkpoints and shows what came out."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    samples = read_manifest(data, on_error=probing.get("on_error", "fail"))[:limit]
    out = out or Path("runs") / command / "+".join(slug(name) for name in names)
    probing = {**probing, "data": describe_data(samples, data if data.startswith("builtin:") else Path(data).name)}
    if responses is not None:
        probing["responses"] = AttentionResult.load(responses).responses()
    try:
        with progress() as on_progress:
            results, comparison = run_attention(
                names, samples, out, loading=loading, probing=probing, resume=resume, on_progress=on_progress
            )
    except KeyboardInterrupt:
        print("interrupted: the same command with --resume goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    save_eta(results, out)
    if as_json:
        print(json.dumps({"results": [r.to_dict() for r in results], "comparison": comparison}, ensure_ascii=False))
    else:
        _show(results, comparison, out)


def _show(results: Sequence[AttentionResult], comparison: dict[str, Any] | None, out: Path) -> None:
    # Wide enough for the table where the output goes into a file.
    options: dict[str, Any] = {} if sys.stdout.isatty() else {"width": 120}
    console = Console(soft_wrap=True, markup=False, **options)
    console.print(_table(results))
    for result in results:
        check = result.self_check
        left_out = sum(len(ids) for ids in result.excluded.values())
        console.print(
            f"{result.name}: {len(result.samples)} samples, {left_out} left out; alpha, v and W_O reproduce the "
            f"attention output to {check['worst']:.0e} (bound {check['worst_bound']:.0e})",
            highlight=False,
        )
    for pair in comparison["pairs"] if comparison else []:
        with_own_control = pair["second"].startswith(pair["first"] + CONTROL)
        if pair["warning"] and not with_own_control:
            print(f"warning: {pair['warning']}", file=sys.stderr)
    console.print(f"written to {out}: {', '.join(sorted(p.name for p in out.iterdir() if p.name[0] != '.'))}")


def _table(results: Sequence[AttentionResult]) -> Table:
    """Eta averaged over six groups of layers: a row for each checkpoint and segment convention."""
    table = Table(
        title="instruction proportion η by layers: 0.5 is balanced, low is speech anchor bias",
        caption="tokens: source tokens, mean over samples; segment: mean or sum over a segment's tokens",
    )
    table.add_column("checkpoint", overflow="fold")
    table.add_column("tokens", justify="right")
    table.add_column("segment")
    groups = results[0].eta_groups()
    same_layers = len({result.n_layers for result in results}) == 1
    for i, group in enumerate(groups, start=1):
        layers = "–".join(str(layer) for layer in sorted(set(group["layers"])))
        table.add_column(layers if same_layers else f"{i}/{len(groups)}", justify="right")
    for result in results:
        tokens = f"{result.tokens[:, SEGMENTS.index('source')].mean():.1f}"
        for segment in ("mean", "sum"):
            groups = result.with_conventions(segment=segment).eta_groups()
            table.add_row(escape(result.name), tokens, segment, *(f"{group['eta']:.3f}" for group in groups))
    return table
