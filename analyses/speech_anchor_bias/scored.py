"""Write `scored.csv`: the score of each response in the tasks of the claims, to recompute shares and rates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from measured import FOLLOWED, LLM, MORE, has_more, measured, only, seeds

from lsm_probe.evaluation.scoring import FOLLOWING


def scored() -> pd.DataFrame:
    """One row per response: whether it has the asked-for form, whether it is correct, and its word errors."""
    return pd.DataFrame(_rows()).astype(dict.fromkeys(("in_form", "right", "errors", "words"), "Int64"))


def _rows() -> Iterator[dict[str, Any]]:
    parts = [(seed, part) for seed in seeds() for part in ("evaluation", "voices-evaluation")]
    for seed, part in [*parts, (MORE, "evaluation")] if has_more() else parts:
        for arm, result in measured(seed, part).items():
            for task, metrics in result.metrics().items():
                if task in FOLLOWED:
                    own = {"in_form": metrics[FOLLOWING].counts[:, 0]}
                    own |= {"right": metrics["accuracy"].counts[:, 0]} if "accuracy" in metrics else {}
                elif "transcription" in task and arm != LLM:
                    own = dict(zip(("errors", "words"), metrics["word_error_rate"].counts.T, strict=True))
                else:
                    continue
                for i, sample in enumerate(only(result, (task,)).samples):
                    counted = {name: int(values[i]) for name, values in own.items()}
                    yield {"seed": seed, "part": part, "arm": arm, "id": sample["id"], **counted}
