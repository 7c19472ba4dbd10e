"""Measure missed planted regressions and false alarms of `lsm-probe check`.

    python analyses/regression/planted.py BASELINE RERUN OTHER

BASELINE, RERUN: result folders of one checkpoint, measured twice on the same samples (other batch size and threads).
OTHER: the result of another checkpoint on these samples. Prints tables in Markdown and writes planted.json beside this
file.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lsm_probe import AttentionResult
from lsm_probe.regression.check import check

HERE = Path(__file__).parent
SOURCE = 3
DRAWS = 200
Floats = NDArray[np.float64]
Make = Callable[[AttentionResult], AttentionResult]


def moved_to(result: AttentionResult, eta: Floats) -> AttentionResult:
    """The result with the source norms of each layer scaled by one factor, so that the curve is `eta`, `[layers]`.

    This simulates more or less attention to the speech in a layer. Utterances change by different amounts.
    """
    low, high = np.full(result.n_layers, -30.0), np.full(result.n_layers, 30.0)
    for _ in range(50):
        middle = (low + high) / 2
        too_high = scaled(result, np.exp(middle)).eta().mean > eta
        low, high = np.where(too_high, middle, low), np.where(too_high, high, middle)
    unmoved = np.abs(result.eta().mean - eta) < 1e-12
    return scaled(result, np.where(unmoved, 1, np.exp(middle)))


def scaled(result: AttentionResult, factors: Floats) -> AttentionResult:
    norms, head_norms = result.norms.astype(np.float64), result.head_norms.astype(np.float64)
    norms[:, :, SOURCE] *= factors
    head_norms[:, :, :, SOURCE] *= factors[:, None]
    return replace(result, norms=norms, head_norms=head_norms)


def fall(by: float, layer: int | slice = slice(None)) -> Make:
    """Lower eta by this amount, in one layer or in all."""

    def plant(result: AttentionResult) -> AttentionResult:
        eta = result.eta().mean.astype(np.float64)
        eta[layer] -= by
        return moved_to(result, eta)

    return plant


def one_utterance(layer: int) -> Make:
    """Lower the eta of one utterance to almost 0 in a layer."""

    def plant(result: AttentionResult) -> AttentionResult:
        norms = result.norms.copy()
        norms[0, layer, SOURCE] *= 1e4
        return replace(result, norms=norms)

    return plant


def without(result: AttentionResult, count: int) -> AttentionResult:
    """The result without the last samples."""
    return replace(result.subset(result.ids[:-count]), excluded={"zero norms": result.ids[-count:]})


def edited(**changes: object) -> Callable[[Path], None]:
    """Change a saved `result.json`: `eta__mean=...` is `["eta"]["mean"]`."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / "result.json").read_text())
        for key, value in changes.items():
            *parents, last = key.split("__")
            place = content
            for parent in parents:
                place = place[parent]
            place[last] = value
        (folder / "result.json").write_text(json.dumps(content))

    return edit


@dataclass
class Case:
    """A change planted into the rerun, the flags of `check`, and the expected exit code."""

    what: str
    expect: int
    plant: Make = lambda result: result
    flags: tuple[str, ...] = ()
    edit: Callable[[Path], None] = lambda folder: None
    conventions: tuple[tuple[str, str], ...] = ()


def cases(rerun: AttentionResult, other: AttentionResult) -> list[Case]:
    eta, last = rerun.eta(), rerun.n_layers - 1
    width = eta.ci_high - eta.ci_low
    # eta must have room to fall and to rise.
    loud = int(np.argmax(np.where((eta.mean > 0.1) & (eta.mean < 0.9), width, 0)))
    quiet = int(np.argmin(np.where(eta.mean > 0.1, width, 1)))
    values = eta.mean.round(6).tolist()
    ratio = (("aggregate", "ratio_of_means"),)
    return [
        Case("the same checkpoint probed again", 0),
        Case("the same", 0, flags=("--two-sided",)),
        Case("the same", 0, flags=("--paired",)),
        Case("eta falls by 0.05 in layer 0", 1, fall(0.05, 0)),
        Case(f"by 0.05 in layer {loud}, where utterances differ most", 1, fall(0.05, loud)),
        Case("by 0.05 in that layer", 1, fall(0.05, loud), ("--paired",)),
        Case(f"by 0.05 in layer {quiet}, where they differ least", 1, fall(0.05, quiet)),
        Case("by 0.05 in that layer", 1, fall(0.05, quiet), ("--paired",)),
        Case(f"by 0.05 in layer {last}", 1, fall(0.05, last)),
        Case("by 0.021 in layer 0", 1, fall(0.021, 0)),
        Case("by 0.019 in layer 0", 0, fall(0.019, 0)),
        Case("by 0.019 in every layer", 0, fall(0.019)),
        Case("by 0.019 in every layer", 1, fall(0.019), ("--tolerance", "0.01")),
        Case("by 0.05 in every layer", 1, fall(0.05), ("--paired",)),
        Case(f"eta rises by 0.05 in layer {loud}", 0, fall(-0.05, loud)),
        Case("the same rise", 1, fall(-0.05, loud), ("--two-sided",)),
        Case("the same rise", 1, fall(-0.05, loud), ("--two-sided", "--paired")),
        Case(f"one utterance of {len(rerun.ids)} falls to 0 in layer {quiet}", 1, one_utterance(quiet)),
        Case("the same utterance", 0, one_utterance(quiet), ("--paired",)),
        Case("by 0.05 in layer 0, segment sum", 1, fall(0.05, 0), conventions=(("segment", "sum"),)),
        Case("by 0.05 in layer 0, ratio of means", 1, fall(0.05, 0), conventions=ratio),
        Case("by 0.05 in layer 0, ratio of means", 1, fall(0.05, 0), ("--paired",), conventions=ratio),
        Case("by 0.05 in layer 0, norms of heads", 1, fall(0.05, 0), conventions=(("heads", "mean_of_norms"),)),
        Case("another checkpoint", 1, lambda r: other),
        Case("another checkpoint", 1, lambda r: other, ("--paired",)),
        Case("two samples were left out", 2, lambda r: without(r, 2)),
        Case("two samples were left out", 0, lambda r: without(r, 2), ("--paired",)),
        Case("other data", 2, edit=edited(data__sha256="0" * 64)),
        Case("segment sum against mean", 2, lambda r: r.with_conventions(segment="sum")),
        Case("generated against reference", 2, edit=edited(conventions__response="generated")),
        Case("another template", 2, edit=edited(checkpoint__template="vicuna")),
        Case("one layer less", 2, lambda r: replace(r, norms=r.norms[:, 1:], head_norms=r.head_norms[:, 1:])),
        Case("eta of one layer is NaN", 2, edit=edited(eta__mean=[float("nan"), *values[1:]])),
        Case("another schema", 2, edit=edited(schema="lsm-probe/attention/2")),
        Case("arrays of another curve", 2, flags=("--paired",), edit=edited(eta__mean=[v / 2 for v in values])),
    ]


def run(case: Case, baseline: AttentionResult, rerun: AttentionResult, folder: Path) -> dict[str, object]:
    conventions = dict(case.conventions)
    baseline.with_conventions(**conventions).save(folder / "baseline")
    current = case.plant(rerun.with_conventions(**conventions)).save(folder / "current")
    case.edit(current)
    command = ["check", "--baseline", "baseline", "--current", "current", *case.flags]
    done = subprocess.run([sys.executable, "-m", "lsm_probe", *command], cwd=folder, capture_output=True, text=True)
    said = (done.stdout or done.stderr).splitlines()[0]
    return {
        "planted": case.what,
        "flags": " ".join(case.flags),
        "expected": case.expect,
        "exit": done.returncode,
        "said": said,
    }


def every_layer(baseline: AttentionResult, rerun: AttentionResult, folder: Path, *, paired: bool) -> str:
    """Number of layers in which a fall of 0.05, planted alone, is detected there and in no other layer."""
    first, caught = baseline.save(folder / "baseline"), 0
    for layer in range(rerun.n_layers):
        verdict = check(first, fall(0.05, layer)(rerun).save(folder / "current"), paired=paired)
        caught += verdict.regressed == [layer]
    return f"{caught} of {rerun.n_layers}"


def alarms(baseline: AttentionResult, current: AttentionResult, folder: Path, draws: int = DRAWS) -> dict[str, int]:
    """Number of draws (same utterances for both results) in which each kind of check reports `regressed`."""
    rng, count = np.random.default_rng(0), len(baseline.ids)
    found = {"default": 0, "--paired": 0, "--paired --two-sided": 0}
    for _ in range(draws):
        chosen = rng.integers(0, count, count)
        first, second = (
            drawn(baseline, chosen).save(folder / "baseline"),
            drawn(current, chosen).save(folder / "current"),
        )
        for flags in found:
            verdict = check(first, second, paired="--paired" in flags, two_sided="--two-sided" in flags)
            found[flags] += bool(verdict.regressed)
    return found


def drawn(result: AttentionResult, chosen: NDArray[np.int64]) -> AttentionResult:
    """The drawn utterances as a result with new ids."""
    return replace(
        result,
        clusters=np.arange(len(chosen)),
        samples=[{**result.samples[i], "id": f"draw-{k}"} for k, i in enumerate(chosen)],
        **{name: getattr(result, name)[chosen] for name in result.BY_SAMPLE},
    )


def table(rows: list[dict[str, object]]) -> str:
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([str(row[key]) for key in head] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    baseline, rerun, other = (AttentionResult.load(folder) for folder in sys.argv[1:4])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        said = [run(case, baseline, rerun, folder) for case in cases(rerun, other)]
        print(table(said))
        layers = {
            mode: every_layer(baseline, rerun, folder, paired=mode == "--paired") for mode in ("default", "--paired")
        }
        print(f"a fall of 0.05 planted in each layer alone, caught there and nowhere else: {layers}\n")
        level = moved_to(other, baseline.eta().mean)
        worlds = {
            "the same checkpoint probed again": rerun,
            "another checkpoint, moved so that on average no layer differs": level,
            "the same, moved so that every layer falls by the tolerance": fall(0.02)(level),
            "the same checkpoint, a fall of 0.05 planted in layer 0": fall(0.05, 0)(rerun),
            "another checkpoint, moved so that only layer 0 falls, by 0.05": fall(0.05, 0)(level),
        }
        counted = [
            {"truth": what, "draws": DRAWS, **alarms(baseline, current, folder)} for what, current in worlds.items()
        ]
        print(table(counted))
    wrong = [row["planted"] for row in said if row["exit"] != row["expected"]]
    content = {"cases": said, "not_as_expected": wrong, "each_layer": layers, "regressed_in_draws": counted}
    (HERE / "planted.json").write_text(json.dumps(content, indent=2) + "\n")
    print(f"{len(said) - len(wrong)} of {len(said)} cases as expected")


if __name__ == "__main__":
    main()
