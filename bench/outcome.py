"""What a scenario found: every run, and figures beside the targets that they are to reach."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.peers import KVMD, REFERENCE
from bench.processes import Run


@dataclass(frozen=True)
class Figure:
    """One number; ``target`` is the most it may be, or the least where ``is_floor``. Without a target it is only told."""

    name: str
    value: float
    unit: str = ""
    target: float | None = None
    is_floor: bool = False

    @property
    def verdict(self) -> str:
        """Whether the target is reached; empty where there is none."""
        if self.target is None:
            return ""
        is_reached = self.value >= self.target if self.is_floor else self.value <= self.target
        return "reached" if is_reached else "missed"


@dataclass(frozen=True)
class Outcome:
    """One scenario's figures, and the runs they come from by the name of who ran."""

    title: str
    figures: tuple[Figure, ...]
    runs: Mapping[str, list[Run]] = field(default_factory=dict)


def median_s(runs: list[Run]) -> float:
    """Median of the runs' seconds."""
    return statistics.median(one.seconds for one in runs)


def ratios(runs: Mapping[str, list[Run]], targets: Mapping[str, float]) -> tuple[Figure, ...]:
    """Give kvmd's median time over each peer's, the best reference counting as the reference."""
    medians = {name: median_s(values) for name, values in runs.items()}
    best = [median for name, median in medians.items() if name.startswith(REFERENCE)]
    times = {name: median for name, median in medians.items() if not name.startswith((REFERENCE, KVMD))}
    times |= {REFERENCE: min(best)} if best else {}
    return tuple(
        Figure(f"time / {name}", medians[KVMD] / time_s, target=targets.get(name)) for name, time_s in times.items()
    )


def cost(runs: list[Run], size: int, *, cpu_target: float | None = None) -> tuple[Figure, ...]:
    """Give the processor seconds a GiB (median) and the peak memory (largest) of kvmd's runs."""
    cpu_s = statistics.median(one.cpu_s for one in runs)
    return (
        Figure("processor time", cpu_s / (size / (1 << 30)), "s/GiB", cpu_target),
        Figure("peak memory", max(one.peak for one in runs) / (1 << 20), "MiB", PEAK_MIB),
    )


PEAK_MIB = 64
"""Most resident memory of a kvmd process that downloads one image."""
