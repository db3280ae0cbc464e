"""The scenarios by name: what is downloaded how, beside whom, and the targets."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping

from bench.network import one_connection, shaped
from bench.outcome import PEAK_MIB, Figure, Outcome, cost, median_s, ratios
from bench.peers import (
    ARIA2C,
    CURL,
    KVMD,
    REFERENCE,
    Download,
    aria2c,
    curl,
    kvmd,
    kvmd_without_checksum,
    reference,
    standard,
)
from bench.resume import killed_and_resumed
from bench.rounds import Stage, race
from bench.sessions import four_at_once

_MB = 1_000_000
_CONNECTIONS = 16
_RATE = 50 * _MB
_ROUND_TRIP_MS = 20.0
_MIRROR_RATES = (200 * _MB, 60 * _MB, 20 * _MB)
_MANY_CONNECTIONS = 32


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


def paced(stage: Stage) -> Outcome:
    """16 connections at 50 MB/s each, as from a server that limits every connection; with a digest and without."""
    unchecked = f"{KVMD}, no checksum"
    peers = {
        KVMD: kvmd,
        unchecked: kvmd_without_checksum,
        ARIA2C: aria2c,
        f"{REFERENCE} -n{_CONNECTIONS}": reference(stage.reference, connections=_CONNECTIONS),
    }
    with shaped(stage, connection_rate=_RATE) as url:
        rate, _ = one_connection(url, _RATE)
        runs = race(stage, _with_connections(stage, stage.download(url), _CONNECTIONS), peers)
    figures = (
        *ratios(runs, {ARIA2C: 0.75}),
        Figure("time with / without checksum", median_s(runs[KVMD]) / median_s(runs[unchecked]), target=1.05),
        Figure("one connection really has", rate / _MB, "MB/s", 1.05 * _RATE / _MB),
    )
    return Outcome("http, tmpfs, 16 connections paced at 50 MB/s each", figures, runs)


def round_trip(stage: Stage) -> Outcome:
    """With a round trip of 20 ms and a window of 3 MiB a connection; kvmd and aria2c may have 16 of them."""
    peers = {KVMD: kvmd, ARIA2C: aria2c, CURL: curl}
    with shaped(stage, round_trip_ms=0.001) as url:
        capacity, _ = one_connection(url, stage.size)
    with shaped(stage, round_trip_ms=_ROUND_TRIP_MS) as url:
        _, first_byte_s = one_connection(url, _MB)
        runs = race(stage, _with_connections(stage, stage.download(url), _CONNECTIONS), peers)
    figures = (
        *ratios(runs, {ARIA2C: 0.85, CURL: 0.32}),
        Figure("first byte, with handshake", 1000 * first_byte_s, "ms", 2 * _ROUND_TRIP_MS, is_floor=True),
        Figure("capacity without the delay", capacity / 1e9, "GB/s", 1.5, is_floor=True),
    )
    return Outcome("http, tmpfs, round trip 20 ms", figures, runs)


def mirrors(stage: Stage) -> Outcome:
    """Three mirrors with 200, 60 and 20 MB/s, each shared by all its connections."""
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(shaped(stage, total_rate=rate)) for rate in _MIRROR_RATES]
        runs = race(stage, stage.download(*urls), {KVMD: kvmd, ARIA2C: aria2c})
    least_s = stage.size / sum(_MIRROR_RATES)
    figures = (
        *ratios(runs, {ARIA2C: 0.85}),
        Figure("time / (size / sum of rates)", median_s(runs[KVMD]) / least_s, target=1.1),
    )
    return Outcome("http, tmpfs, three mirrors with 200, 60 and 20 MB/s in total", figures, runs)


def many_connections(stage: Stage) -> Outcome:
    """Memory with 32 connections, paced so that all are in use."""
    with shaped(stage, connection_rate=_RATE // 2) as url:
        runs = race(stage, _with_connections(stage, stage.download(url), _MANY_CONNECTIONS), {KVMD: kvmd})
    peak = max(run.peak for run in runs[KVMD]) / (1 << 20)
    return Outcome("http, tmpfs, 32 connections", (Figure("peak memory", peak, "MiB", PEAK_MIB),), runs)


def _with_connections(stage: Stage, download: Download, count: int) -> Download:
    """Have kvmd use so many connections, all to one source; the peers are told in their own words."""
    config = stage.memory / f"connections{count}.toml"
    config.write_text(
        f"[transfer]\nconnections = {count}\nconnections_per_source = {count}\n"
        '[policy]\nallowed_networks = ["127.0.0.0/8"]\n'
    )
    return dataclasses.replace(download, config=config)


Scenario = Callable[[Stage], Outcome]

SCENARIOS: Mapping[str, Scenario] = {
    "http-tmpfs": http_tmpfs,
    "https-tmpfs": https_tmpfs,
    "http-ext4": http_disk,
    "paced": paced,
    "rtt": round_trip,
    "mirrors": mirrors,
    "memory": many_connections,
    "sessions": four_at_once,
    "resume": killed_and_resumed,
}
