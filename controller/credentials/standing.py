"""Where each credential stands on each host: what is wanted there, and what the host says. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from controller.credentials.known import Known
from controller.credentials.record import Recipient, Record
from controller.fleet import Fleet
from kvmwire.certificates import WARN_BEFORE
from kvmwire.codes import FailureCode
from kvmwire.events import Ensure
from kvmwire.status import CredentialState, CredentialStatus
from kvmwire.topics import CredentialTopic

MISSING = "missing"


@dataclass(frozen=True, slots=True)
class HostCredential:
    """One credential on one host. ``state`` is a ``CredentialState``'s value, or ``missing``; ``generation`` is the wanted one."""

    name: str
    host: str
    state: str
    generation: int
    is_online: bool
    message: str = ""
    hint: str = ""
    code: FailureCode | None = None
    status: CredentialStatus | None = None

    def ends_soon(self, now: datetime) -> bool:
        """Whether a certificate that is in force there ends within 30 days, or has ended."""
        expires = self.status.expires if self.status else None
        return expires is not None and self.state != CredentialState.REVOKED and expires - now <= WARN_BEFORE


@dataclass(frozen=True, slots=True)
class _Wanted:
    generation: int
    is_present: bool = True


_ANY = _Wanted(0)


def standings(
    name: str, record: Record | None, recipients: Iterable[Recipient], known: Known, fleet: Fleet
) -> list[HostCredential]:
    """Give a credential on every host that is to have it, that has it, or that has said something of it."""
    wanted = dict(_wanted(name, record, tuple(recipients), known, fleet))
    hosts = sorted((wanted.keys() | known.statuses.keys()) - fleet.revoked)
    found = [_one(name, host, wanted.get(host), known.statuses.get(host), fleet) for host in hosts]
    return [one for one in found if one is not None]


def missing(fleet: Fleet, names: Iterable[str], hosts: Iterable[str]) -> list[HostCredential]:
    """Give those of the named credentials that are not installed on these hosts, as far as hosts have said."""
    statuses: Mapping[tuple[str, str], CredentialStatus] = {
        (topic.host, topic.credential): status for topic, status in fleet.credentials.items()
    }
    found = (_one(name, host, _ANY, statuses.get((host, name)), fleet) for name in names for host in hosts)
    return [one for one in found if one is not None and one.state != CredentialState.INSTALLED]


def _wanted(
    name: str, record: Record | None, recipients: tuple[Recipient, ...], known: Known, fleet: Fleet
) -> Iterator[tuple[str, _Wanted]]:
    """Give what each host is to have: what the newest event that is meant for it says, or what is kept. The last one holds."""
    shared = CredentialTopic(name)
    generation = known.generation(shared)
    if generation:
        is_present = known.has(shared, Ensure.PRESENT)
        yield from ((host, _Wanted(generation, is_present)) for host in (fleet.hosts if is_present else known.statuses))
    if record is not None and record.ensure is Ensure.PRESENT and not record.is_public:
        yield from ((one.name, _Wanted(record.generation)) for one in record.targets(recipients))
    for topic in known.events:
        if topic.host is not None and known.generation(topic) > generation:
            yield topic.host, _Wanted(known.generation(topic), known.has(topic, Ensure.PRESENT))


def _one(
    name: str, host: str, wanted: _Wanted | None, status: CredentialStatus | None, fleet: Fleet
) -> HostCredential | None:
    """Compare; None where nothing is wanted and nothing is there."""
    is_online, wanted = fleet.is_online(host), wanted or _ANY
    if status is not None and status.generation >= wanted.generation:
        generation = wanted.generation or status.generation
        said = (status.message, status.hint, status.code, status)
        return HostCredential(name, host, status.state.value, generation, is_online, *said)
    hint = "Keep `kvmctl serve` running: it sends it again until the host answers."
    if not is_online:
        hint = f"Start kvmd on {host}: it gets it when it comes."
    if not wanted.is_present:
        if status is None:
            return None
        told = (status.state.value, wanted.generation, is_online, "it has not heard yet that it was revoked.", hint)
        return HostCredential(name, host, *told, status=status)
    message = "it has said nothing of it."
    if status is not None:
        message = (
            f"it still uses generation {status.installed}." if status.installed else f"it is still {status.state}."
        )
    return HostCredential(name, host, MISSING, wanted.generation, is_online, message, hint, status=status)
