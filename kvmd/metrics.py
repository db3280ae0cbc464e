"""The metrics edge: answers GET /metrics in Prometheus' text format. All knowledge of prometheus_client is here."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http import HttpProcessingError
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from kvmd.core.desired import HostRecord
from kvmd.core.tally import DURATION_BOUNDS_S, Durations, Tally
from kvmd.errors import ConfigError
from kvmd.log import get_logger
from kvmd.ports import Bus
from kvmwire.status import Outcome, ReplicaState, Verdict

log = get_logger(__name__)

MAX_CONNECTIONS = 8
"""Further ones are closed at once: a few scrapers and a person need no more."""
PATIENCE_S = 10.0
"""Seconds that a connection may take until its request is there; it gets one answer and is closed."""
_MAX_LINE = 4096
_MAX_HEADERS = 64
_BACKLOG = 16
_FAREWELL_S = 0.5


@asynccontextmanager
async def serving(address: tuple[str, int], record: HostRecord, *, tally: Tally, bus: Bus) -> AsyncGenerator[None]:
    """Serve metrics at host and port. Raises ConfigError where nobody can listen there."""
    registry = CollectorRegistry()
    registry.register(_Figures(record, tally, bus))
    ProcessCollector(registry=registry)
    server = _Server(
        _answering(registry),
        access_log=None,
        logger=_http_log,
        keepalive_timeout=PATIENCE_S,
        lingering_time=0,
        max_line_size=_MAX_LINE,
        max_field_size=_MAX_LINE,
        max_headers=_MAX_HEADERS,
    )
    runner = web.ServerRunner(server, shutdown_timeout=_FAREWELL_S)
    await runner.setup()
    try:
        await _listen(runner, *address)
        yield
    finally:
        await runner.cleanup()


async def _listen(runner: web.ServerRunner, host: str, port: int) -> None:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        await web.TCPSite(runner, host, port, backlog=_BACKLOG).start()
    except OSError as exc:
        reason = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else exc.strerror  # a resolver's are negative
        raise ConfigError(
            f"metrics.listen: {where} cannot be listened on: {reason}.",
            hint="Choose an address of this host and a port that is free (`ss -ltn` shows those in use), or remove the setting.",
        ) from exc
    log.info("metrics", listen=where)


class _Server(web.Server):
    """aiohttp's server, which has no limit of connections by itself."""

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self.connections) > MAX_CONNECTIONS:
            # A moment later: aiohttp's task for a connection that is lost before its first step ends with an AssertionError.
            asyncio.get_running_loop().call_soon(transport.abort)


def _answering(registry: CollectorRegistry) -> Callable[[web.BaseRequest], Awaitable[web.Response]]:
    async def answer(request: web.BaseRequest) -> web.Response:
        if request.path != "/metrics":
            response = web.Response(status=404, text="not found: the metrics are at /metrics\n")
        elif request.method not in {"GET", "HEAD"}:
            response = web.Response(status=405, text="only GET and HEAD\n", headers={"Allow": "GET, HEAD"})
        else:
            # In the loop, whose memory it reads; of files only /proc/self, which no disk can delay.
            body = generate_latest(registry)
            response = web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
        response.force_close()
        return response

    return answer


def _is_defect(record: logging.LogRecord) -> bool:
    """Whether it is worth a line: aiohttp logs a traceback for whatever strangers send that is no HTTP."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


_http_log = logging.getLogger(f"{__name__}.http")
_http_log.addFilter(_is_defect)


@dataclass(frozen=True, slots=True, eq=False)
class _Figures(Collector):
    """Reads what the daemon knows at the moment of a scrape."""

    record: HostRecord
    tally: Tally
    bus: Bus

    def collect(self) -> Iterator[Metric]:
        yield from self._transfers()
        yield from self._sessions()
        yield from self._events()

    def _transfers(self) -> Iterator[Metric]:
        tally = self.tally
        yield _counters(
            "kvmd_received_bytes",
            "Bytes of images received, by origin of the source; probes are not counted.",
            ("origin",),
            {(origin,): count for origin, count in tally.received.items()},
        )
        yield CounterMetricFamily(
            "kvmd_refetched_bytes", "Bytes received more than once in one transfer.", tally.refetched
        )
        yield CounterMetricFamily(
            "kvmd_resumed_bytes",
            "Bytes that were there when a transfer began, and were not fetched again.",
            tally.resumed,
        )
        yield CounterMetricFamily("kvmd_retries", "Requests that failed in a running transfer.", tally.retries)
        yield GaugeMetricFamily(
            "kvmd_connections",
            "The most connections that each running download had at once, added up.",
            tally.connections,
        )
        yield _histogram(
            "kvmd_download_seconds",
            "Seconds from a download's first request to its volume's readiness, of the session that got there.",
            tally.downloads,
        )

    def _sessions(self) -> Iterator[Metric]:
        states = Counter(replica.status.state for replica in self.record.replicas.values())
        verdicts = Counter(probe.status.verdict for probe in self.record.probes.values())
        yield _counters(
            "kvmd_sessions_ended",
            "Sessions that ended, by the replica's state after it and the failure code; those that go on after a restart did not end.",
            ("state", "code"),
            {(state, code or ""): count for (state, code), count in self.tally.ended.items()},
        )
        yield GaugeMetricFamily(
            "kvmd_sessions_running",
            "Sessions at work.",
            sum(states[state] for state in ReplicaState if state.is_running),
        )
        yield _gauges(
            "kvmd_replicas", "Replicas on this host.", "state", {state: states[state] for state in ReplicaState}
        )
        yield _gauges(
            "kvmd_probes",
            "Registered templates, by what their last probe found.",
            "verdict",
            {v: verdicts[v] for v in Verdict},
        )

    def _events(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "kvmd_broker_connected", "1 while the broker is connected, else 0.", self.bus.is_connected
        )
        yield _counters(
            "kvmd_events",
            "Events answered, by outcome.",
            ("outcome",),
            {(outcome,): self.tally.answers[outcome] for outcome in Outcome},
        )
        yield _counters(
            "kvmd_publications_refused",
            "Statuses that the broker did not take, by its reason (MQTT 5 only).",
            ("reason",),
            {(reason,): count for reason, count in self.tally.refusals.items()},
        )


def _counters(name: str, meaning: str, labels: Iterable[str], values: Mapping[tuple[str, ...], int]) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=tuple(labels))
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _gauges(name: str, meaning: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _histogram(name: str, meaning: str, durations: Durations) -> Metric:
    bounds = [*(f"{bound:.1f}" for bound in DURATION_BOUNDS_S), "+Inf"]
    buckets = list(zip(bounds, map(float, durations.cumulative), strict=True))
    return HistogramMetricFamily(name, meaning, buckets=buckets, sum_value=durations.sum_s)
