"""Why a template is, or is not, ready on a host: told in sentences, from the first cause to the next step. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from controller.credentials.standing import missing
from controller.fleet import Deployment, Fleet
from controller.sheet import moment
from kvmwire.events import Ensure, Event
from kvmwire.source import redact
from kvmwire.status import Outcome, ProbeStatus, Receipt, ReplicaState, ReplicaStatus, Verdict
from kvmwire.topics import ProbeTopic, RegisterTopic, ReplicaTopic

UNBELIEVED = "No key of this fleet has signed that: hosts that require signatures refuse it."


@dataclass(frozen=True, slots=True)
class Sentence:
    """One fact. ``about`` is stable for programs: host, template, credential, probe, deploy, receipt, replica or next."""

    about: str
    text: str


def explain(fleet: Fleet, template: str, host: str, receipts: Mapping[str, Receipt]) -> list[Sentence]:
    """Tell everything that is known; ``receipts`` are this host's, by event id."""
    selecting = sorted(
        (d for d in fleet.deployments(template) if host in fleet.audience(d.event)), key=_generation, reverse=True
    )
    statuses = {
        t.pool: s for t, s in sorted(fleet.replicas.items(), key=str) if (t.host, t.template) == (host, template)
    }
    return [
        Sentence("host", _host(fleet, host)),
        Sentence("template", _template(fleet, template)),
        *(Sentence("credential", text) for text in _credentials(fleet, template, host)),
        Sentence("probe", _probe(fleet.probes.get(ProbeTopic(host, template)), template, host)),
        *(Sentence("deploy", text) for text in _deploys(fleet, template, host, selecting)),
        *(Sentence("receipt", _receipt(d, host, receipts)) for d in selecting),
        *(Sentence("replica", _replica(status, host)) for status in statuses.values()),
        Sentence("next", _next(fleet, template, host, selecting)),
    ]


def _host(fleet: Fleet, host: str) -> str:
    status = fleet.hosts.get(host)
    if host in fleet.revoked:
        return f"{host} was revoked and is no part of the fleet any more; what it says is not believed."
    if status is None:
        return f"{host} has never announced itself here."
    pools = ", ".join(f"{pool.name} ({pool.state.value})" for pool in status.pools) or "none"
    since, version = moment(status.since or status.started), status.version or "?"
    return f"{host} is {status.state.value} since {since}, kvmd {version}, pools: {pools}."


def _template(fleet: Fleet, template: str) -> str:
    topic = RegisterTopic(template)
    if topic in fleet.unreadable:
        return f"{template}: its register event cannot be read: {fleet.unreadable[topic].message}"
    seen = fleet.events.get(topic)
    record = fleet.template(template)
    if seen is None:
        return f"{template} is not registered: no register event is retained at the broker."
    if record is None:
        return f"{template} was unregistered, generation {seen.event.generation}."
    sources = ", ".join(redact(url) for url in record.urls)
    checksum = f"checksum {record.checksum}" if record.checksum else "without a checksum"
    generation = f"generation {seen.event.generation or '(none)'}"
    return f"{template} is registered, {generation}, {checksum}, from {sources}.{_doubt(fleet, seen.event)}"


def _doubt(fleet: Fleet, event: Event) -> str:
    return "" if fleet.is_believed(event) else f" {UNBELIEVED}"


def _credentials(fleet: Fleet, template: str, host: str) -> Iterator[str]:
    record = fleet.template(template)
    for one in missing(fleet, record.credentials if record else (), [host]):
        code = f"{one.code.value}: " if one.code else ""
        yield (
            f"{host} lacks the credential {one.name}, {one.state}: {code}{one.message} Hand it out: kvmctl credential add "
            f"{one.name} --for ORIGIN ...; where it is: kvmctl credential show {one.name}"
        )


def _probe(probe: ProbeStatus | None, template: str, host: str) -> str:
    if probe is None:
        return f"{host} has told nothing about the sources of {template}."
    checked = (
        f"{host} checked the sources at {moment(probe.checked)} (generation {probe.generation}): {probe.verdict.value}"
    )
    bad = [f"{s.url}: {s.code.value}: {s.message}" for s in probe.sources if s.code]
    if probe.verdict is Verdict.UNCHECKED:
        return f"{host} was not asked to check the sources."
    reason = f"; {probe.code.value}: {probe.message}" if probe.code else "."
    return f"{checked}{reason}{' ' if bad else ''}{' '.join(bad)}"


def _deploys(fleet: Fleet, template: str, host: str, selecting: list[Deployment]) -> Iterator[str]:
    if not selecting:
        others = [fleet.topics.build(d.topic) for d in fleet.deployments(template)]
        if others:
            yield f"No deploy event of {template} selects {host}; there are others: {', '.join(others)}."
        else:
            yield f"Nobody has deployed {template}: no deploy event is retained at the broker."
    newest = dict[str, Deployment]()
    for deployment in selecting:
        holds = newest.setdefault(deployment.data.pool, deployment) is deployment
        verb = "wants it in" if deployment.data.ensure is Ensure.PRESENT else "wants it gone from"
        rest = "this one holds" if holds else "a newer one holds"
        yield (
            f"{fleet.topics.build(deployment.topic)} {verb} pool {deployment.data.pool}, "
            f"generation {deployment.event.generation or '(none)'}: {rest}.{_doubt(fleet, deployment.event)}"
        )


def _receipt(deployment: Deployment, host: str, receipts: Mapping[str, Receipt]) -> str:
    receipt = receipts.get(deployment.event.id)
    what = f"event {deployment.event.id}"
    if receipt is None:
        return f"No receipt of {host} for {what} is in this controller's registry."
    refused = f"; {receipt.code.value}: {receipt.message} {receipt.hint}" if receipt.code else "."
    return f"{host} answered {what} at {moment(receipt.time)}: {receipt.outcome.value}{refused}"


def _replica(status: ReplicaStatus, host: str) -> str:
    text = f"Pool {status.pool} of {host}: {status.state.value} since {moment(status.since)}, generation {status.generation}"
    if status.attempt > 1:
        text += f", attempt {status.attempt}"
    if status.path and status.state is ReplicaState.READY:
        text += f", {status.path}, {status.checksum}"
    if status.code:
        text += f"; {status.code.value}: {status.message} {status.hint}"
    elif status.message:
        text += f"; {status.message}"
    again = f" Next attempt at {moment(status.next_attempt)}." if status.next_attempt else ""
    return text.removesuffix(".") + "." + again


def _next(fleet: Fleet, template: str, host: str, selecting: list[Deployment]) -> str:
    """Say what a person can do."""
    if host in fleet.revoked:
        return f"Let it in again with new keys, if it is yours again: kvmctl enroll {host} --reset"
    if host not in fleet.hosts:
        return f"Start kvmd on {host}, with the same mqtt.prefix ({fleet.topics.prefix}) and broker as here."
    seen = fleet.events.get(RegisterTopic(template))
    if not selecting and seen is not None and not fleet.is_believed(seen.event):
        return f"Register it yourself, which signs it: kvmctl register {template} URL --checksum '{{SHA-256}}...'"
    if not selecting:
        if fleet.template(template) is None:
            return f"Register it: kvmctl register {template} URL --checksum '{{SHA-256}}...'"
        return f"Deploy it: kvmctl deploy {template} --host {host} --wait"
    if not fleet.is_online(host):
        return f"Start kvmd on {host}, or mend its way to the broker; it gets its events then."
    pool = selecting[0].data.pool
    status = fleet.replicas.get(ReplicaTopic(host, pool, template))
    if status is None or status.generation < (selecting[0].event.generation or 0):
        return f"Wait for {host}, or keep `kvmctl serve` running: it sends the event again until {host} answers."
    return _next_of(status, template, host)


def _next_of(status: ReplicaStatus, template: str, host: str) -> str:
    match status.state:
        case ReplicaState.READY | ReplicaState.ABSENT:
            return status.hint or "Nothing."
        case ReplicaState.WAITING:
            return f"{status.hint or 'Remove the cause.'} At once: kvmctl recheck {template} --host {host}"
        case ReplicaState.FAILED | ReplicaState.CANCELLED:
            return f"{status.hint or 'Remove the cause.'} Then: kvmctl recheck {template} --host {host}"
        case _:
            return "Wait: it is being worked on."


def receipts_of(host: str, found: Mapping[str, list[Receipt]]) -> dict[str, Receipt]:
    """Pick one host's answers, by event; one that says more than `duplicate` before one that does not."""
    picked = dict[str, Receipt]()
    for event_id, answers in found.items():
        for answer in answers:
            if answer.host == host and (event_id not in picked or answer.outcome is not Outcome.DUPLICATE):
                picked[event_id] = answer
    return picked


def _generation(deployment: Deployment) -> int:
    return deployment.event.generation or 0
