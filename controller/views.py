"""The fleet as rows for programs and tables for people; a row is the wire model plus what the table adds. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from controller.explain import UNBELIEVED
from controller.fleet import Fleet
from controller.outcome import Phase, Standing
from controller.publish import Sent
from controller.registry import Stored
from controller.sheet import Sheet, day, moment, pairs, short, size, some, state
from kvmwire.events import RegisterData
from kvmwire.source import redact
from kvmwire.status import (
    GcStatus,
    MachineState,
    MachineStatus,
    PoolStatus,
    ProbeStatus,
    Progress,
    Receipt,
    ReplicaState,
    ReplicaStatus,
)
from kvmwire.topics import MachineTopic, ProbeTopic, ProgressTopic, RegisterTopic, ReplicaTopic

Row = dict[str, Any]
Rows = tuple[list[Row], Sheet]
_NO_SOURCE = ("-",) * 5
_ID_LENGTH = 8
_AT_REST = frozenset({MachineState.RUNNING, MachineState.STOPPED})
_CONSOLE_LINES = 5
"""So many of the last lines of a failed machine's console stand in tables; ``kvmctl machine console-log`` shows all that is known."""


def hosts(fleet: Fleet) -> Rows:
    """Every host with its pools."""
    rows, shown = list[Row](), Sheet("hosts", "host", "state", "version", "ready", "since", wide=("pools", "labels"))
    ready = Counter(topic.host for topic in _ready(fleet))
    for name, host in sorted(fleet.hosts.items()):
        rows.append({"kind": "host", **host.model_dump(mode="json"), "ready": ready[name]})
        pools = ", ".join(map(_pool, host.pools))
        shown.add_row(
            name,
            state(host.state.value),
            host.version,
            ready[name],
            moment(host.since or host.started),
            pools,
            pairs(host.labels),
        )
    return rows, shown


def templates(fleet: Fleet, names: Iterable[str] | None = None) -> Rows:
    """Every registered template, or those named."""
    rows = list[Row]()
    shown = Sheet("templates", "template", "format", "size", "ready on", "generation", "checksum")
    on = defaultdict[str, set[str]](set)
    for topic in _ready(fleet):
        on[topic.template].add(topic.host)
    for name, record in fleet.templates().items():
        if names is not None and name not in names:
            continue
        seen = fleet.events[RegisterTopic(name)].event
        ready = sorted(on[name])
        rows.append(
            {
                "kind": "template",
                **_shown_record(record),
                "generation": seen.generation,
                "event": seen.id,
                "believed": fleet.is_believed(seen),
                "ready": ready,
            }
        )
        shown.add_row(
            name,
            record.format.value,
            size(record.size),
            f"{len(ready)} of {len(fleet.hosts)}",
            seen.generation,
            short(record.checksum),
        )
        shown.note(name, some(map(redact, record.urls)))
        if not fleet.is_believed(seen):
            shown.note(name, UNBELIEVED)
    return rows, shown


def replicas(fleet: Fleet, *, template: str | None = None, host: str | None = None) -> Rows:
    """Every replica, or those of a template or a host."""
    rows, shown = list[Row](), _replica_table()
    for topic, status in sorted(fleet.replicas.items(), key=lambda pair: _replica_order(pair[0])):
        if template not in {None, topic.template} or host not in {None, topic.host}:
            continue
        figures = _figures(fleet, topic, status)
        rows.append(replica_row(topic, status, online=fleet.is_online(topic.host), figures=figures))
        _add_replica(shown, topic, status, figures)
    return rows, shown


def current_replicas(fleet: Fleet, *, template: str | None, limit: int) -> tuple[Sheet, int]:
    """Show so many replicas, those that are not settled first, and tell how many are left out."""
    found = [(t, s) for t, s in fleet.replicas.items() if template in {None, t.template}]
    found.sort(key=lambda pair: (pair[1].state.is_settled, _replica_order(pair[0])))
    shown = _replica_table()
    for topic, status in found[:limit]:
        _add_replica(shown, topic, status, _figures(fleet, topic, status))
    return shown, max(len(found) - limit, 0)


def probes(fleet: Fleet, *, template: str) -> Rows:
    """Show what each host found out about the sources of a template."""
    found = {t.host: s for t, s in sorted(fleet.probes.items(), key=lambda p: p[0].host) if t.template == template}
    shown = _probe_table()
    for host, status in found.items():
        _add_probe(shown, host, status)
    return [probe_row(ProbeTopic(host, template), status) for host, status in found.items()], shown


def garbage(found: Iterable[GcStatus]) -> Rows:
    """Show what hosts deleted, or would have, and why the rest stays."""
    rows, shown = list[Row](), Sheet("garbage", "host", "pool", "kind", "size", "what", wide=("path", "why"))
    for one in found:
        rows.append({"kind": "gc", **one.model_dump(mode="json")})
        for item in one.items:
            what = ("would go" if one.dry_run else "deleted") if item.goes else "stays"
            shown.add_row(one.host, item.pool, item.kind.value, size(item.size), what, item.path, item.why)
        word = "would be deleted" if one.dry_run else "were deleted"
        shown.note(one.host, f"{one.deleted} of {one.deleted + one.kept} {word}, {size(one.freed)}.")
        for skipped in one.skipped:
            shown.note(f"{one.host} {skipped.pool}", f"not looked into: {skipped.why}")
    return rows, shown


def machines(fleet: Fleet, *, template: str | None = None, host: str | None = None) -> Rows:
    """Every machine, or those made from a template or on a host; of the console the end, where one has failed."""
    rows, shown = list[Row](), _machine_table()
    for topic, status in sorted(fleet.machines.items(), key=lambda pair: _machine_order(pair[0])):
        if template not in {None, status.template} or host not in {None, topic.host}:
            continue
        rows.append(machine_row(topic, status, online=fleet.is_online(topic.host)))
        _add_machine(shown, topic, status)
    return rows, shown


def current_machines(fleet: Fleet, *, template: str | None, limit: int) -> tuple[Sheet, int]:
    """Show so many machines, first those that have failed or do not yet stand, and tell how many are left out."""
    found = [(t, s) for t, s in fleet.machines.items() if template in {None, s.template}]
    found.sort(key=lambda pair: (not pair[1].code, pair[1].state in _AT_REST, _machine_order(pair[0])))
    shown = _machine_table()
    for topic, status in found[:limit]:
        _add_machine(shown, topic, status)
    return shown, max(len(found) - limit, 0)


def machine_row(topic: MachineTopic, status: MachineStatus, *, online: bool) -> Row:
    """Give one machine as a row; ``console`` is empty unless something is wrong with it."""
    row = {"kind": "machine", "host": topic.host, "online": online, **status.model_dump(mode="json")}
    return row | {"console": status.console if status.code else ""}


def replica_row(topic: ReplicaTopic, status: ReplicaStatus, *, online: bool, figures: Progress | None) -> Row:
    """Give one replica as a row."""
    row = {"kind": "replica", "host": topic.host, "online": online, **status.model_dump(mode="json")}
    return row | {"progress": figures.model_dump(mode="json") if figures else None}


def probe_row(topic: ProbeTopic, status: ProbeStatus) -> Row:
    """Give one probe as a row."""
    return {"kind": "probe", "host": topic.host, **status.model_dump(mode="json")}


def outcome(standings: Sequence[Standing], *, title: str) -> Rows:
    """Show the end of a deploy or remove that was waited for."""
    rows, shown = list[Row](), Sheet(title, "host", "state", "checksum", wide=("path",))
    for one in standings:
        status = one.status if isinstance(one.status, ReplicaStatus) else None
        rows.append(
            _standing_row(one)
            | {"path": status.path if status else None, "checksum": status.checksum if status else None}
        )
        shown.add_row(
            one.host,
            state(one.state),
            short(status.checksum if status and status.path else None),
            status and status.path,
        )
        shown.note(one.host, _explained(one))
    return rows, shown


def probed(standings: Sequence[Standing]) -> Rows:
    """Show the end of a register that was waited for: a line a source."""
    rows, shown = list[Row](), _probe_table()
    for one in standings:
        sources = one.status.sources if isinstance(one.status, ProbeStatus) else ()
        rows.append(_standing_row(one) | {"sources": [source.model_dump(mode="json") for source in sources]})
        if isinstance(one.status, ProbeStatus) and one.status.sources:
            _add_probe(shown, one.host, one.status)
        else:
            shown.add_row(one.host, state(one.state), *_NO_SOURCE)
            shown.note(one.host, _explained(one))
    return rows, shown


def sent(events: Iterable[Sent]) -> Rows:
    """Show what was published."""
    rows, shown = list[Row](), Sheet("published", "event", "generation", wide=("topic",))
    for one in events:
        hosts_ = sorted(one.hosts)
        rows.append(
            {
                "kind": "published",
                "event": one.event.id,
                "generation": one.event.generation,
                "topic": one.topic,
                "hosts": hosts_,
            }
        )
        shown.add_row(one.event.id, one.event.generation, one.topic)
        shown.note("meant for", some(hosts_) or "nobody yet")
    return rows, shown


def receipts(found: Iterable[Receipt]) -> Rows:
    """Answers of hosts."""
    rows, shown = list[Row](), Sheet("receipts", "host", "outcome", "code", wide=("event",))
    for one in found:
        rows.append(receipt_row(one))
        shown.add_row(one.host, state(one.outcome.value), one.code, one.event)
        shown.note(one.host, _sentences(one.message, one.hint))
    return rows, shown


def receipt_row(receipt: Receipt) -> Row:
    """Give one receipt as a row."""
    return {"kind": "receipt", **receipt.model_dump(mode="json")}


def history(events: Iterable[tuple[Stored, set[str], list[Receipt]]]) -> Rows:
    """Show what this controller published, who it was for, and who answered what."""
    rows, shown = list[Row](), Sheet("events", "event", "generation", "answers", wide=("topic", "not yet"))
    for stored, audience, answers in events:
        silent = sorted(audience - {answer.host for answer in answers})
        rows.append(
            {
                "kind": "event",
                "event": stored.id,
                "topic": stored.topic,
                "generation": stored.generation,
                "current": stored.is_current,
                "hosts": sorted(audience),
                "receipts": [answer.model_dump(mode="json") for answer in answers],
            }
        )
        shown.add_row(stored.id[:_ID_LENGTH], stored.generation, len(answers), stored.topic, some(silent))
        for answer in answers:
            if answer.code:
                shown.note(f"{answer.host} about {stored.id[:_ID_LENGTH]}", f"{answer.code.value}: {answer.message}")
    return rows, shown


def progress(status: ReplicaStatus, figures: Progress | None) -> str:
    """Write how far a download is."""
    if figures is None or not status.state.is_running:
        whole = size(status.size) if status.size else ""
        return f"of {whole}" if whole and status.state.is_running else whole
    whole = f"{figures.done * 100 // figures.size}% of {size(figures.size)}" if figures.size else size(figures.done)
    return f"{whole}, {size(figures.bytes_per_second)}/s"


def why(status: ReplicaStatus | ProbeStatus | MachineStatus) -> str:
    """Write code, message and next attempt."""
    again = getattr(status, "next_attempt", None)
    parts = [
        f"{status.code.value}:" if status.code else "",
        status.message,
        f"next attempt {moment(again)}" if again else "",
    ]
    return " ".join(part for part in parts if part)


def _figures(fleet: Fleet, topic: ReplicaTopic, status: ReplicaStatus) -> Progress | None:
    return fleet.progress.get(ProgressTopic(topic.host, topic.pool, topic.template)) or status.progress


def _replica_table() -> Sheet:
    return Sheet("replicas", "host", "pool", "template", "state", "size", "used", wide=("path",))


def _add_replica(shown: Sheet, topic: ReplicaTopic, status: ReplicaStatus, figures: Progress | None) -> None:
    shown.add_row(
        topic.host,
        topic.pool,
        topic.template,
        state(status.state.value),
        progress(status, figures),
        day(status.last_used),
        status.path,
    )
    for message in (why(status), *status.warnings):
        shown.note(f"{topic.host} {topic.pool}/{topic.template}", message)


def _machine_table() -> Sheet:
    return Sheet("machines", "host", "machine", "state", "template", "pool", "since")


def _add_machine(shown: Sheet, topic: MachineTopic, status: MachineStatus) -> None:
    shown.add_row(topic.host, topic.name, state(status.state.value), status.template, status.pool, moment(status.since))
    about = f"{topic.host} {topic.name}"
    shown.note(about, _sentences(why(status), status.hint))
    for line in status.console.splitlines()[-_CONSOLE_LINES:] if status.code else ():
        shown.note(f"{about} console", line)


def _ready(fleet: Fleet) -> list[ReplicaTopic]:
    return [topic for topic, status in fleet.replicas.items() if status.state is ReplicaState.READY]


def _machine_order(topic: MachineTopic) -> tuple[str, str]:
    return topic.host, topic.name


def _replica_order(topic: ReplicaTopic) -> tuple[str, str, str]:
    return topic.template, topic.host, topic.pool


def _pool(pool: PoolStatus) -> str:
    whole = f" of {size(pool.capacity)}" if pool.capacity is not None else ""
    free = f" {size(pool.available)}{whole} free" if pool.available is not None else ""
    return f"{pool.name} {pool.state.value}{free}"


def _shown_record(record: RegisterData) -> Row:
    """Dump a record with redacted URLs, and headers by name only."""
    row = record.model_dump(mode="json")
    return row | {
        "url": redact(record.url) if record.url else None,
        "sources": [redact(url) for url in record.sources],
        "headers": sorted(record.headers),
    }


def _standing_row(one: Standing) -> Row:
    return {
        "kind": "outcome",
        "host": one.host,
        "state": one.state,
        "done": one.phase is Phase.DONE,
        "code": one.code,
        "message": one.message,
        "hint": one.hint,
        "generation": one.status.generation if one.status else None,
    }


def _explained(one: Standing) -> str:
    code = f"{one.code.value}: " if one.code else ""
    return code + _sentences(one.message, one.hint if one.phase is not Phase.DONE else "")


def _sentences(*words: str) -> str:
    return " ".join(filter(None, words))


def _probe_table() -> Sheet:
    return Sheet("sources", "host", "verdict", "status", "size", "ranges", "format", wide=("source",))


def _add_probe(shown: Sheet, host: str, status: ProbeStatus) -> None:
    for source in status.sources:
        ranges = {None: "-", True: "yes", False: "no"}[source.ranges]
        code = f"{source.code.value}: " if source.code else ""
        shown.add_row(
            host,
            state(status.verdict.value),
            source.status,
            size(source.size),
            ranges,
            source.format,
            redact(source.url),
        )
        shown.note(host, code + _sentences(source.message, source.hint))
    if not status.sources:
        shown.add_row(host, state(status.verdict.value), *_NO_SOURCE)
        shown.note(host, why(status))
