"""The steps at which a run is probed: at fixed intervals, or as often as a share of its time allows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median_low
from time import perf_counter

MEASURED_STEPS = 5
"""Number of steps that measure the time per step. The first step, a warm-up, is not counted."""


def steps_between(
    *, share: float, total_steps: int, step_seconds: float, probe_seconds: float, setup_seconds: float
) -> int:
    """Steps between two probings that together take at most a share of a run's time; 0 for no further probing.

    A probing before the first step and the setup also count.

    Args:
        share: of the time that the steps take, such as 0.05.
        total_steps: number of steps of the whole run.
        step_seconds: time of one step.
        probe_seconds: time of one probing.
        setup_seconds: time before the first probing, such as for generating the responses.
    """
    budget = share * total_steps * step_seconds - setup_seconds
    affordable = math.floor(budget / probe_seconds) - 1
    return 0 if affordable < 1 else math.ceil(total_steps / affordable)


@dataclass
class StepTimer:
    """Measures the duration of each step in this process."""

    seconds: list[float] = field(default_factory=list)
    _begun: float | None = None

    def begin(self) -> None:
        self._begun = perf_counter()

    def end(self) -> None:
        if self._begun is not None:
            self.seconds.append(perf_counter() - self._begun)
            self._begun = None

    @property
    def step_seconds(self) -> float | None:
        """The lower median of the steps after the first; None until there are enough.

        The next steps can still be slow, twice the usual time for one of them in a run of the miniature model. Their
        mean would allow too many probings.
        """
        return median_low(self.seconds[1:]) if len(self.seconds) >= MEASURED_STEPS else None
