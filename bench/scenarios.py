"""The scenarios by name: what is downloaded how, beside whom, and the targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from bench.outcome import Outcome, cost, ratios
from bench.peers import ARIA2C, CURL, KVMD, REFERENCE, standard
from bench.rounds import Stage, race


def http_tmpfs(stage: Stage) -> Outcome:
    """Plain http into memory."""
    runs = race(stage, stage.download(f"{stage.origin.http}/image.raw"), standard(stage.reference))
    figures = ratios(runs, {ARIA2C: 0.60, CURL: 0.75, REFERENCE: 1.35})
    return Outcome("http, tmpfs", (*figures, *cost(runs[KVMD], stage.size, cpu_target=1.4)), runs)


def https_tmpfs(stage: Stage) -> Outcome:
    """TLS 1.3 with an ECDSA certificate, into memory."""
    runs = race(stage, stage.download(f"{stage.origin.https}/image.raw"), standard(stage.reference))
    figures = ratios(runs, {ARIA2C: 0.68, CURL: 0.90, REFERENCE: 1.25})
    return Outcome("https, tmpfs", (*figures, *cost(runs[KVMD], stage.size, cpu_target=1.8)), runs)


def http_disk(stage: Stage) -> Outcome:
    """Plain http onto a disk, synced by everybody before the time stops."""
    download = dataclasses.replace(stage.download(f"{stage.origin.http}/image.raw", folder=stage.disk), is_synced=True)
    runs = race(stage, download, standard(stage.reference))
    return Outcome("http, disk, synced", ratios(runs, {CURL: 0.60, REFERENCE: 1.20}), runs)


Scenario = Callable[[Stage], Outcome]

SCENARIOS: Mapping[str, Scenario] = {
    "http-tmpfs": http_tmpfs,
    "https-tmpfs": https_tmpfs,
    "http-ext4": http_disk,
}
