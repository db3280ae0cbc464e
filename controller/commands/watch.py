"""``kvmctl watch``: the fleet as it changes."""

from __future__ import annotations

import asyncio
import contextlib

from rich.console import Group
from rich.live import Live

from controller import views
from controller.commands.invocation import Invocation, Parsers, add_parser, name
from controller.fleet import Change, EventChange, Fleet, StatusChange
from controller.output import Output
from controller.session import Session, open_session
from kvmwire.codes import Exit
from kvmwire.status import (
    CredentialStatus,
    HostStatus,
    MachineStatus,
    ProbeStatus,
    Progress,
    Receipt,
    ReplicaStatus,
)
from kvmwire.topics import (
    CommandTopic,
    CredentialStatusTopic,
    CredentialTopic,
    DeployTopic,
    EventTopic,
    MachineTopic,
    ProbeTopic,
    ProgressTopic,
    RegisterTopic,
    ReplicaTopic,
)

_REFRESH_S = 0.25
_OTHER_LINES = 8  # titles, heads and the lines between
_MACHINE_LINES = 4  # an empty one, title, head, and how many are left out
_FEWEST_LINES = 5
_TOLD = (
    "kind",
    "host",
    "name",
    "pool",
    "topic",
    "template",
    "credential",
    "state",
    "verdict",
    "outcome",
    "done",
    "size",
    "code",
    "message",
    "console",
)


def add(parsers: Parsers) -> None:
    """Add the parser."""
    parser = add_parser(
        parsers, "watch", watch, "a live table until Ctrl-C; with --json, or into a file, a line a change"
    )
    parser.add_argument("name", type=name, nargs="?", metavar="NAME", help="only this template")


async def watch(invocation: Invocation) -> Exit:
    """Show changes until interrupted."""
    template: str | None = invocation.arguments.name
    topics = invocation.settings.mqtt.topics
    wanted = (
        *topics.retained_filters(),
        *topics.progress_filters(),
        *topics.machine_filters(),
        *topics.credential_status_filters(),
    )
    async with open_session(invocation.settings, wanted) as session:
        if invocation.output.is_json or not invocation.output.is_terminal:
            await follow(session, invocation.output, template=template)
        else:
            await _live(session, invocation.output, template)
    return Exit.DONE


async def follow(session: Session, output: Output, *, template: str | None) -> None:
    """Print a line a change, for ever."""
    queue: asyncio.Queue[views.Row] = asyncio.Queue(maxsize=10_000)

    def take(change: Change) -> None:
        row = change_row(session.fleet, change, template)
        if row is not None:
            with contextlib.suppress(asyncio.QueueFull):  # whoever reads slower than the fleet speaks misses some
                queue.put_nowait(row)

    session.listeners.append(take)
    while True:
        row = await queue.get()
        if output.is_json:
            output.rows([row])
        else:
            output.line(" ".join(str(row[name]) for name in _TOLD if row.get(name) not in {None, ""}))


async def _live(session: Session, output: Output, template: str | None) -> None:
    """Redraw the table a few times a second, where something changed."""
    has_changed = asyncio.Event()
    session.listeners.append(lambda _change: has_changed.set())
    console = output.console
    with Live(screen(session.fleet, template, height=console.height), console=console, auto_refresh=False) as live:
        live.refresh()
        while True:
            await has_changed.wait()
            has_changed.clear()
            live.update(screen(session.fleet, template, height=console.height), refresh=True)
            await asyncio.sleep(_REFRESH_S)


def screen(fleet: Fleet, template: str | None, *, height: int) -> Group:
    """Draw what fits: of a large fleet how many hosts listen, of many replicas and machines those that are not settled first."""
    online = sum(map(fleet.is_online, fleet.hosts))
    hosts = views.hosts(fleet)[1] if len(fleet.hosts) <= height // 3 else f"{online} of {len(fleet.hosts)} hosts online"
    left = max(height - _OTHER_LINES - min(len(fleet.hosts), height // 3), _FEWEST_LINES)
    machines, unseen = views.current_machines(fleet, template=template, limit=max(left // 2 - _MACHINE_LINES, 1))
    count = machines.table.row_count
    replicas, hidden = views.current_replicas(
        fleet, template=template, limit=max(left - count - _MACHINE_LINES, 1) if count else left
    )
    return Group(hosts, "", replicas, _more(hidden), *(("", machines, _more(unseen)) if count else ()))


def change_row(fleet: Fleet, change: Change, template: str | None) -> views.Row | None:
    """Give a change as a row; None for one about another template."""
    match change:
        case EventChange(topic=RegisterTopic(about)) if about != (template or about):
            return None
        case EventChange():
            return _event_row(fleet, change, template)
        case (
            StatusChange(
                topic=ProbeTopic(template=about) | ReplicaTopic(template=about) | ProgressTopic(template=about)
            )
            | StatusChange(value=MachineStatus(template=about))
        ) if about != (template or about):
            return None
        case StatusChange(topic=CredentialStatusTopic(), value=CredentialStatus()) if template:
            return None
        case StatusChange():
            return _status_row(fleet, change)
        case _:
            return None


def _event_row(fleet: Fleet, change: EventChange, template: str | None) -> views.Row | None:
    event = change.seen.event if change.seen else None
    fields = {"template", "ensure", "pool", "credential"}  # and nothing that is sealed
    data = event.data.model_dump(mode="json", include=fields) if event else {}
    if isinstance(data.get("template"), dict):
        data["template"] = data["template"]["template"]
    if template not in {None, data.get("template")}:
        return None
    generation = event.generation if event else None
    return {"kind": _kind(change.topic), "topic": fleet.topics.build(change.topic), "generation": generation, **data}


def _status_row(fleet: Fleet, change: StatusChange) -> views.Row | None:
    match change.topic, change.value:
        case topic, None:
            return {"kind": "cleared", "topic": fleet.topics.build(topic)}
        case _, HostStatus() as status:
            return {"kind": "host", **status.model_dump(mode="json")}
        case ReplicaTopic() as topic, ReplicaStatus() as status:
            return views.replica_row(topic, status, online=fleet.is_online(topic.host), figures=status.progress)
        case MachineTopic() as topic, MachineStatus() as status:
            return views.machine_row(topic, status, online=fleet.is_online(topic.host))
        case ProbeTopic() as topic, ProbeStatus() as status:
            return views.probe_row(topic, status)
        case ProgressTopic() as topic, Progress() as figures:
            about = {"kind": "progress", "host": topic.host, "pool": topic.pool, "template": topic.template}
            return about | figures.model_dump(mode="json")
        case topic, CredentialStatus() as status:
            return {"kind": "credential_status", "host": topic.host, **status.model_dump(mode="json")}
        case _, Receipt() as receipt:
            return views.receipt_row(receipt)
        case _:
            return None


def _more(count: int) -> str:
    return f"and {count} more" if count else ""


def _kind(topic: EventTopic) -> str:
    match topic:
        case RegisterTopic():
            return "register"
        case DeployTopic():
            return "deploy"
        case CredentialTopic():
            return "credential"
        case CommandTopic():
            return "command"
