"""Recompute every number of claims.csv and headline.csv from the committed arrays, without lsm-probe.

python analyses/speech_anchor_bias/recompute.py

The script needs only numpy and shares no code with the package or with claims.py. Eta, D_i, D_s, drift and importance
come from the arrays in the two archives. Shares and word error rates come from scored.csv, which has the score of each
response. The script also scores labels and plain transcripts again from the responses. It prints each published number,
the recomputed number and the difference, and exits with 1 if one disagrees.

Alignment is an exception: its hidden states (70 MB) are not stored. Its rows are only compared with comparison.json,
which the probe wrote.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import tarfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
TOLERANCE = 2e-5
INSTRUCTION, SOURCE = 2, 3  # indices on the last axis of the stored sums: system, template, instruction, source, first
FIRST, FOURTH, FIFTH, LAST = range(5), range(15, 20), range(20, 25), range(25, 30)
Number = tuple[float, float, float, int, float, float]
"""Value, ends of its interval, utterances, lowest and highest value without one utterance."""


# --- stored arrays


@cache
def files() -> dict[str, bytes]:
    found = {}
    for archive in sorted(HERE.glob("*.tar.xz")):
        prefix = "more/" if archive.name.startswith("more") else ""
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile():
                    name = member.name.removeprefix("./").removeprefix("results/")
                    found[prefix + name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


def folder(seed: str, part: str, arm: str) -> str:
    if arm in ("llm", "llm, own length"):
        part = {"own-words": "sensitivity"}.get(part, part) if seed == "more" else part
        return f"{seed}/{part}/builtin-llm"
    if arm == "llm, speech length":
        return next(n for n in files() if n.startswith(f"{seed}/{part}/builtin-llm-at-length")).rsplit("/", 1)[0]
    if arm == "cascade":
        return f"{seed}/{part}/builtin-whisper+builtin-llm"
    if seed == "more":
        part = {"own-words": "sensitivity", "evaluation": "transcription"}.get(part, part)
        return f"more/{part}/{arm if arm == 'untrained' else f'builtin-{arm}'}"
    return f"{seed}/{part}/{arm}-{seed}"


@cache
def arrays(seed: str, part: str, arm: str) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(files()[folder(seed, part, arm) + "/arrays.npz"])) as stored:
        return {name: stored[name] for name in stored.files}


@cache
def samples(seed: str, part: str, arm: str) -> list[dict[str, Any]]:
    lines = files()[folder(seed, part, arm) + "/samples.jsonl"].decode().split("\n")
    return [json.loads(line) for line in lines if line]


@cache
def scored() -> list[dict[str, str]]:
    with (HERE / "scored.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbered(names: Sequence[str]) -> np.ndarray:
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([order[name] for name in names])


def sentences(seed: str, part: str, arm: str) -> np.ndarray:
    """The utterance of each sample. The same sentence in another voice counts as the same utterance."""
    return numbered([sample["text"] for sample in samples(seed, part, arm)])


# --- intervals


@cache
def t_quantile(freedom: int, level: float = 0.975) -> float:
    """Quantile of Student's t, by Simpson integration of the density from 0 and bisection."""

    def below(t: float) -> float:
        x = np.linspace(0, t, 20001)
        density = (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
        weights = np.ones_like(x)
        weights[1:-1:2], weights[2:-1:2] = 4, 2
        grid = np.tan(np.linspace(0, np.pi / 2, 200001)[:-1])  # the positive half line, by substitution
        angle = np.arctan(grid)
        whole = np.trapezoid((1 + grid**2 / freedom) ** (-(freedom + 1) / 2) * (1 + grid**2), angle)
        return 0.5 + float((weights * density).sum() * (x[1] - x[0]) / 3 / whole) / 2

    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < level else (low, middle)
    return low


def without_each(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """The mean over samples without each utterance."""
    return np.array([values[clusters != c].mean(0) for c in range(clusters.max() + 1)])


def interval(value: float, left_out: np.ndarray) -> tuple[float, float]:
    """Student's t of the jackknife's pseudo-values; the end on the side of the longer tail is moved out (Hall 1992)."""
    n = len(left_out)
    pseudo = (n - 1) * (value - left_out)
    error, t = pseudo.std(ddof=1) / np.sqrt(n), t_quantile(n - 1)
    centred = pseudo - pseudo.mean()
    skew = (centred**3).mean() / (centred**2).mean() ** 1.5 * np.sqrt(n * (n - 1)) / (n - 2) / np.sqrt(n)

    def hall(q: float) -> float:
        return q if abs(skew) < 1e-6 else float(3 / skew * (np.cbrt(1 + skew * (q - skew / 6)) - 1))

    return value - error * max(hall(t), t), value - error * min(hall(-t), -t)


def share_difference_interval(values: np.ndarray, left_out: np.ndarray) -> tuple[float, float]:
    """Bonett and Price's interval, for the number of independent samples that matches the variance of utterances."""
    n, value, squares = len(left_out), values.mean(), (values**2).mean()
    spread = ((n - 1) * (value - left_out)).var(ddof=1) / n
    effective = n if spread < 1e-20 else min(1 + (squares - value**2) / spread, len(values))
    middle = effective * value / (effective + 2)
    variance = ((effective * squares + 2) / (effective + 2) - middle**2) / (effective + 2)
    reach = t_quantile(n - 1) * np.sqrt(variance)
    return max(middle - reach, -1), min(middle + reach, 1)


def number(value: float, left_out: np.ndarray) -> Number:
    return (value, *interval(value, left_out), len(left_out), left_out.min(), left_out.max())


# --- attention


@cache
def eta(seed: str, part: str, arm: str, segment: str = "mean") -> np.ndarray:
    """Eta by sample and layer, `[samples, layers]`: S_instruction / (S_instruction + S_source)."""
    stored = arrays(seed, part, arm)
    sums = stored["norms"].astype(np.float64)
    if segment == "mean":
        sums = sums[..., [INSTRUCTION, SOURCE]] / stored["tokens"][:, None, [INSTRUCTION, SOURCE]]
    else:
        sums = sums[..., [INSTRUCTION, SOURCE]]
    return sums[..., 0] / sums.sum(-1)


def last(curve: np.ndarray) -> np.ndarray:
    return curve[..., LAST].mean(-1)


def change(first: Sequence[int], second: Sequence[int]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda curve: curve[..., second].mean(-1) - curve[..., first].mean(-1)


def of_eta(arm: str, other: str | None = "llm, speech length", read: Callable[..., Any] = last,
           part: str = "attention", segment: str = "mean") -> Callable[[str], Number]:  # fmt: skip
    def found(seed: str) -> Number:
        values = eta(seed, part, arm, segment)
        if other is not None:
            assert [s["id"] for s in samples(seed, part, arm)] == [s["id"] for s in samples(seed, part, other)]
            values = values - eta(seed, part, other, segment)
        by_sample = read(values)  # `read` is linear, so the mean over samples can be taken afterwards
        return number(by_sample.mean(), without_each(by_sample, sentences(seed, part, arm)))

    return found


def chosen(arm: str, choose: Callable[..., Any], read: Callable[[Any], Callable[..., Any]]) -> Callable[[str], Number]:
    """Layers are chosen on every other utterance, and the number is measured on the rest."""

    def found(seed: str) -> Number:
        values, own = eta(seed, "attention", arm), sentences(seed, "attention", arm)
        sixths = [range(start, start + 5) for start in range(0, 30, 5)]
        layers = choose(sixths, key=lambda sixth: values[own % 2 == 0][:, sixth].mean())
        by_sample, rest = read(layers)(values[own % 2 == 1]), own[own % 2 == 1]
        return number(by_sample.mean(), without_each(by_sample, numbered([str(c) for c in rest])))

    return found


def nearer(arm: str) -> Callable[[str], Number]:
    def found(seed: str) -> Number:
        far, near, text = (eta(seed, "attention", name) for name in (arm, "self_powered", "llm, speech length"))
        own = sentences(seed, "attention", arm)

        def distance(keep: np.ndarray) -> float:
            middle = text[keep].mean(0)
            return float(np.abs(far[keep].mean(0) - middle).mean() - np.abs(near[keep].mean(0) - middle).mean())

        left_out = np.array([distance(own != c) for c in range(own.max() + 1)])
        return number(distance(own >= 0), left_out)

    return found


# --- the other measurements


def dependence(seed: str, arm: str, of: str) -> np.ndarray:
    """D_i or D_s of each sample: log P of a token under its own prompt minus log of the mean P over the pool."""
    logs = arrays(seed, "own-words", arm)[{"D_i": "instruction_log_probs", "D_s": "source_log_probs"}[of]]
    logs = logs.astype(np.float64)
    known = ~np.isnan(logs)
    highest = np.max(logs, 1, initial=-np.inf, where=known)
    with np.errstate(invalid="ignore", divide="ignore"):  # padding after a response is NaN
        pool = np.log(np.nansum(np.exp(logs - highest[:, None]), 1) / known.sum(1)) + highest
        by_token = np.where(known[:, 0], logs[:, 0] - pool, np.nan)
    return np.nanmean(by_token, 1)


def of_dependence(of: str, first: str, second: str) -> Callable[[str], Number]:
    def found(seed: str) -> Number:
        values = dependence(seed, second, of) - dependence(seed, first, of)
        return number(values.mean(), without_each(values, sentences(seed, "own-words", second)))

    return found


def read_again(seed: str, part: str, arm: str, tasks: Sequence[str], column: str) -> tuple[np.ndarray, list[str]]:
    rows = [r for r in scored() if (r["seed"], r["part"], r["arm"]) == (seed, part, NAMES.get(arm, arm))]
    rows = [row for task in tasks for row in rows if row["id"].startswith(f"{task}/")]
    return np.array([float(row[column]) for row in rows]), [row["id"].rpartition("/")[2] for row in rows]


NAMES = {"llm": "builtin:llm", "cascade": "builtin:whisper + builtin:llm"}
FORM = ("sentiment", "german", "french", "spanish")


def shares(
    column: str, tasks: Sequence[str], first: str, second: str, part: str = "evaluation"
) -> Callable[[str], Number]:
    def found(seed: str) -> Number:
        (one, texts), (other, theirs) = (read_again(seed, part, arm, tasks, column) for arm in (first, second))
        assert texts == theirs
        values = other - one
        left_out = without_each(values, numbered(texts))
        low, high = share_difference_interval(values, left_out)
        value, ends = 100 * values.mean(), 100 * left_out
        return (value, 100 * low, 100 * high, len(left_out), ends.min(), ends.max())

    return found


def errors(seed: str, arm: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    task = ("transcription" if seed == "more" else "commands-transcription",)
    made, texts = read_again(seed, "evaluation", arm, task, "errors")
    return made, read_again(seed, "evaluation", arm, task, "words")[0], texts


def word_errors(first: str | None, second: str) -> Callable[[str], Number]:
    def found(seed: str) -> Number:
        parts = [(sign, *errors(seed, arm)) for sign, arm in ((1, second), (-1, first)) if arm is not None]
        own = numbered(parts[0][3])

        def rate(keep: np.ndarray) -> float:
            return sum(sign * 100 * made[keep].sum() / words[keep].sum() for sign, made, words, _ in parts)

        left_out = np.array([rate(own != c) for c in range(own.max() + 1)])
        value = rate(own >= 0)
        if left_out.std() < 1e-9:  # no errors: upper limit of Clopper and Pearson for 0 of n
            return (value, 0, 100 * (1 - 0.025 ** (1 / len(left_out))), len(left_out), left_out.min(), left_out.max())
        return number(value, left_out)

    return found


def drift(arm: str) -> Callable[[str], Number]:
    def found(seed: str) -> Number:
        before, after = (arrays(seed, "other-text", name)["counts"] for name in ("llm", arm))
        own = sentences(seed, "other-text", arm)

        def nats(keep: np.ndarray) -> float:
            return float(np.subtract(*(c[keep, 0].sum() / c[keep, 1].sum() for c in (after, before))))

        return number(nats(own >= 0), np.array([nats(own != c) for c in range(own.max() + 1)]))

    return found


def speed(seed: str) -> Number:
    cascade, arm = (arrays(seed, "evaluation", name)["seconds"] for name in ("cascade", "self_powered"))
    own = sentences(seed, "evaluation", "self_powered")
    left_out = np.array([cascade[own != c].sum() / arm[own != c].sum() for c in range(own.max() + 1)])
    return number(cascade.sum() / arm.sum(), left_out)


def importance(seed: str) -> Number:
    def depth(arm: str, keep: np.ndarray) -> float:
        stored = arrays(seed, "importance", arm)
        places = zip(stored["parameter_layer"], stored["parameter_shape"], strict=True)
        matrix = np.array([layer.isdigit() and len(re.findall(r"\d+", shape)) > 1 for layer, shape in places])
        layers = stored["parameter_layer"][matrix].astype(int)
        weights = stored["sums"][keep][:, matrix].mean(0)
        return float((weights * layers).sum() / weights.sum())

    own = sentences(seed, "importance", "llm")
    changes = [depth("vanilla_asr", k) - depth("llm", k) for k in (own != c for c in range(-1, own.max() + 1))]
    return number(changes[0], np.array(changes[1:]))


def aligned(name: str, first: str) -> Callable[[str], Number]:
    def found(seed: str) -> Number:
        content = json.loads(files()[f"{seed}/alignment/comparison.json"])
        pair = next(
            p for p in content["pairs"] if (p["first"], p["second"]) == (f"{first}-{seed}", f"self_powered-{seed}")
        )
        ends = (pair[f"{name}_difference"][key][-1] for key in ("mean", "ci_low", "ci_high"))
        return (*ends, 24, np.nan, np.nan)  # type: ignore[return-value]

    return found


V, P, U, ONE, TRUE = "vanilla_asr", "self_powered", "untrained", "self_powered_one", "true_answers"
OWN, LENGTH = "llm, own length", "llm, speech length"
CLAIMS: dict[str, Callable[[str], Number]] = {
    "llm_falls": chosen(OWN, min, lambda lowest: change(FIRST, lowest)),
    "llm_falls_length": chosen(LENGTH, min, lambda lowest: change(FIRST, lowest)),
    "llm_rises": of_eta(OWN, None, change(FIFTH, LAST)),
    "llm_rises_length": of_eta(LENGTH, None, change(FIFTH, LAST)),
    "vanilla_falls_on": of_eta(V, None, change(FIFTH, LAST)),
    "vanilla_falls_on_sum": of_eta(V, None, change(FIFTH, LAST), segment="sum"),
    "bias": of_eta(V, OWN),
    "bias_length": of_eta(V),
    "bias_more": of_eta(V, OWN),
    "bias_length_more": of_eta(V),
    "bias_same_words": of_eta(V, OWN, part="same-words"),
    "bias_length_same_words": of_eta(V, part="same-words"),
    "bias_voices": of_eta(V, OWN, part="voices"),
    "bias_length_voices": of_eta(V, part="voices"),
    "bias_falls": of_eta(V, OWN, change(FIRST, LAST)),
    "bias_falls_length": of_eta(V, LENGTH, change(FIRST, LAST)),
    "bias_everywhere": chosen(V, max, lambda highest: lambda curve: curve[..., highest].mean(-1)),
    "collapse": of_dependence("D_i", V, P),
    "collapse_more": of_dependence("D_i", V, P),
    "heard_D_s": of_dependence("D_s", U, P),
    "heard_D_s_more": of_dependence("D_s", U, P),
    "heard_wer": word_errors(U, P),
    "heard_wer_more": word_errors(U, P),
    "heard_eta": of_eta(P, U),
    "heard_eta_more": of_eta(P, U),
    "heard_D_i": of_dependence("D_i", U, P),
    "heard_D_i_more": of_dependence("D_i", U, P),
    "heard_nearer": nearer(U),
    "heard_form": shares("in_form", FORM, U, P),
    "heard_right": shares("right", ("sentiment",), U, P),
    "repair": of_eta(P, V),
    "repair_more": of_eta(P, V),
    "repair_same_words": of_eta(P, V, part="same-words"),
    "repair_voices": of_eta(P, V, part="voices"),
    "repair_terminal": of_eta(P, V, change(FOURTH, LAST)),
    "repair_terminal_same_words": of_eta(P, V, change(FOURTH, LAST), "same-words"),
    "nearer": nearer(V),
    "aligned": aligned("paired_cosine", V),
    "aligned_untrained": aligned("paired_cosine", U),
    "aligned_own": aligned("cosine_gap", V),
    "follows": shares("in_form", FORM, V, P),
    "follows_unseen": shares("in_form", FORM[2:], V, P),
    "follows_voices": shares("in_form", FORM, V, P, "voices-evaluation"),
    "right": shares("right", ("sentiment",), V, P),
    "wer": word_errors(V, P),
    "true_answers_eta": of_eta(TRUE, V),
    "many_kinds": shares("in_form", FORM[2:], TRUE, P),
    "one_kind": shares("in_form", ("sentiment", "french", "spanish"), ONE, P),
    "one_kind_unseen": shares("in_form", FORM[2:], ONE, P),
    "one_kind_eta": of_eta(P, ONE),
    "faster": speed,
    "beats_cascade": shares("right", ("sentiment",), "cascade", P),
    "drift_powered": drift(P),
    "drift_vanilla": drift(V),
    "importance_moves": importance,
}
SHIPPED = {"builtin:llm": "llm", "untrained": U, "vanilla_asr": V, "self_powered": P}


def of_one_arm(arm: str, name: str, seed: str) -> Number:
    """One row of headline.csv."""
    if name == "eta":
        return of_eta(OWN if arm == "llm" else arm, None)(seed)
    if name.startswith("word"):
        value, low, *rest = word_errors(None, arm)(seed)
        return (value, max(low, 0), *rest)  # a rate is at least 0
    values = dependence(seed, arm, name)
    return number(values.mean(), without_each(values, sentences(seed, "own-words", arm)))


# --- scoring of responses


def misread() -> list[str]:
    """Responses whose label or word errors in scored.csv differ from those of a simple parser."""
    found = []
    for row in scored():
        task, arm = row["id"].split("/")[0], next((a for a, n in NAMES.items() if n == row["arm"]), row["arm"])
        sample = next(s for s in samples(row["seed"], row["part"], arm) if s["id"] == row["id"])
        if task == "sentiment":
            said = re.sub(r"[^a-z]", "", sample["response"].lower())
            form = int(said in ("positive", "negative", "neutral") and " " not in sample["response"].strip())
            right = int(form and said in re.findall(r"[a-z]+", sample["reference"].lower()))
            if (form, right) != (int(row["in_form"]), int(row["right"])):
                found.append(f"{row['seed']} {arm} {row['id']}: {sample['response']!r}")
        if row["errors"] and arm in (V, P):
            texts = (sample[key].lower().replace("'m", " am") for key in ("reference", "response"))
            plain = [re.sub(r"[^a-z ]", "", text).split() for text in texts]
            if edits(*plain) != int(row["errors"]) or len(plain[0]) != int(row["words"]):
                found.append(f"{row['seed']} {arm} {row['id']}: {sample['response']!r}")
    return found


def edits(one: list[str], other: list[str]) -> int:
    """Levenshtein distance in words."""
    line = list(range(len(other) + 1))
    for i, word in enumerate(one, 1):
        previous, line = line, [i]
        for j, said in enumerate(other, 1):
            line.append(min(previous[j] + 1, line[-1] + 1, previous[j - 1] + (word != said)))
    return line[-1]


def main() -> int:
    wrong = 0
    columns = ("mean", "ci_low", "ci_high", "utterances", "without_one_low", "without_one_high")
    print(f"{'number':48} {'seed':4}  {'published':>26}  {'recomputed':>26}  difference")
    for table in ("claims", "headline"):
        with (HERE / f"{table}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            if table == "claims":
                name, seed = row["key"], "more" if row["key"].endswith("_more") else row["seed"]
                again = CLAIMS[row["key"]](seed)
            else:
                name, seed = f"{row['arm']}: {row['number']}", "more" if row["measured"] == "more" else "0"
                again = of_one_arm(SHIPPED[row["arm"]], row["number"], seed)
            ours = [float(row[column] or "nan") for column in columns]
            apart = np.abs(np.array(ours) - np.array(again))
            apart = apart[~(np.isnan(ours) & np.isnan(again))]
            agrees = bool((apart <= TOLERANCE * max(1, np.nanmax(np.abs(ours)))).all())
            wrong += not agrees
            one, other = (f"{v[0]:.4f} [{v[1]:.4f}, {v[2]:.4f}]" for v in (ours, again))
            print(f"{name:48} {seed:4}  {one:>26}  {other:>26}  {apart.max():.1e}{'' if agrees else '  DISAGREES'}")
        published = {row["key"] for row in rows} if table == "claims" else set()
        if table == "claims" and published != {key for key in CLAIMS if key in published or not key.endswith("_more")}:
            print("claims.csv and recompute.py do not have the same claims")
            wrong += 1
    for line in misread():
        print(f"read otherwise in scored.csv: {line}")
        wrong += 1
    print(f"{wrong} disagree" if wrong else "all agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
