"""Outcomes as tables on the terminal, as JSON and as a chart."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.chart import chart
from bench.outcome import Outcome, median_s

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Circumstances:
    """What the figures were taken with."""

    mib: int
    rounds: int
    disk_filesystem: str


def show(name: str, outcome: Outcome) -> None:
    """Print one scenario's times and figures."""
    print(f"\n{name}: {outcome.title}")
    for who, runs in outcome.runs.items():
        rounds = " ".join(f"{one.seconds:.2f}" for one in runs)
        print(f"  {who:<30} median {median_s(runs):6.2f} s   rounds {rounds}")
    for figure in outcome.figures:
        bound = f"target {'>=' if figure.is_floor else '<='} {figure.target:g}" if figure.target is not None else ""
        print(f"  {figure.name:<30} {figure.value:8.2f} {figure.unit:<6} {bound:<16} {figure.verdict}".rstrip())


def keep(name: str, result: object) -> None:
    """Write the results of one bench, in place of the last ones."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


def write(outcomes: Mapping[str, Outcome], circumstances: Circumstances, folder: Path) -> None:
    """Write transfer.json and transfer.svg into ``folder``, in place of the last ones."""
    folder.mkdir(exist_ok=True)
    document = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        **asdict(circumstances),
        "scenarios": {name: _plain(outcome) for name, outcome in outcomes.items()},
    }
    (folder / "transfer.json").write_text(json.dumps(document, indent=2) + "\n")
    (folder / "transfer.svg").write_text(chart(outcomes))
    print(f"\nwritten: {folder}/transfer.json and transfer.svg")


def _plain(outcome: Outcome) -> dict[str, object]:
    return {
        "title": outcome.title,
        "figures": [asdict(one) | {"value": round(one.value, 4), "verdict": one.verdict} for one in outcome.figures],
        "runs": {
            who: [{"seconds": round(one.seconds, 3), "cpu_s": round(one.cpu_s, 3), "peak": one.peak} for one in runs]
            for who, runs in outcome.runs.items()
        },
    }
