"""Events become a desired state: judged by generation, so that replaying them in any order gives the same end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from kvmd.core.domain import RootDisk
from kvmd.core.placement import Placement
from kvmd.core.provenance import Provenance
from kvmwire.certificates import WARN_BEFORE
from kvmwire.codec import content_of
from kvmwire.events import CredentialData, DeployData, Ensure, Machine, RegisterData
from kvmwire.status import CredentialStatus, MachineStatus, Outcome, ProbeStatus, Receipt, ReplicaStatus
from kvmwire.trust import ROOT, TrustList


class ReplicaKey(NamedTuple):
    """The subject of a deploy event on this host."""

    pool: str
    template: str


@dataclass(frozen=True, slots=True)
class Stamp:
    """Which event holds for a subject; ``keyid`` is the key that signed it, empty where none did."""

    generation: int
    content: str
    event_id: str
    keyid: str = ""


@dataclass(frozen=True, slots=True)
class TemplateRecord:
    """The newest register event of a template; ``round`` counts the rechecks asked for."""

    stamp: Stamp
    data: RegisterData
    round: int = 0

    @property
    def is_present(self) -> bool:
        """Whether the template is registered, not unregistered."""
        return self.data.ensure is Ensure.PRESENT

    @property
    def fingerprint(self) -> str:
        """Name what is to be probed right now."""
        return f"{self.stamp.generation}-{self.stamp.content[:16]}-{self.round}"


@dataclass(frozen=True, slots=True)
class Desired:
    """The newest deploy event of a template in a pool; ``order`` is its place in the queue of this host.

    ``round`` counts the rechecks asked for, ``scrubs`` the scrubs. ``is_repair``: the last recheck may replace a changed volume.
    """

    stamp: Stamp
    data: DeployData
    order: int
    round: int = 0
    is_cancelled: bool = False
    reason: str = ""
    scrubs: int = 0
    is_repair: bool = False

    @property
    def key(self) -> ReplicaKey:
        """The subject."""
        return ReplicaKey(self.data.pool, self.data.template_name)

    @property
    def is_present(self) -> bool:
        """Whether the replica is to be there."""
        return self.data.ensure is Ensure.PRESENT

    def template(self, templates: Mapping[str, TemplateRecord]) -> RegisterData | None:
        """Give the template to deploy: the one sent along, or the newest registered one; None where none is known."""
        if isinstance(self.data.template, RegisterData):
            return self.data.template
        known = templates.get(self.data.template)
        return known.data if known is not None and known.is_present else None

    def is_signed(self, templates: Mapping[str, TemplateRecord]) -> bool:
        """Whether keys vouch for all of it: the wish, and the template's record where that came by itself."""
        registered = templates.get(self.data.template) if isinstance(self.data.template, str) else None
        return bool(self.stamp.keyid) and (registered is None or bool(registered.stamp.keyid))

    def fingerprint(self, templates: Mapping[str, TemplateRecord]) -> str:
        """Name what is wanted right now; a replica made for another fingerprint is worked on again."""
        registered = templates.get(self.data.template) if isinstance(self.data.template, str) else None
        content = registered.stamp.content if registered is not None else ""
        return f"{self.stamp.generation}-{self.stamp.content[:16]}-{self.round}-{self.is_cancelled:d}-{content[:16]}"

    def aim(self, templates: Mapping[str, TemplateRecord]) -> str:
        """Name what a session works for: a newer event that wants the same of the replica lets a running one go on."""
        same_wish = self.data.model_copy(update={"deployment": "any", "hosts": "all", "priority": 0, "machine": None})
        registered = templates.get(self.data.template) if isinstance(self.data.template, str) else None
        content = registered.stamp.content if registered is not None else ""
        return f"{content_of(same_wish)}-{self.round}-{self.is_cancelled:d}-{content}"


@dataclass(frozen=True, slots=True)
class Former:
    """A volume that kvmd made for a replica that has had another one, or none, ``since`` then. ``content`` is what it was to hold."""

    placement: Placement
    since: datetime
    content: str = ""

    @property
    def volume(self) -> str:
        """The volume's name."""
        return self.placement.name


@dataclass(frozen=True, slots=True)
class Replica:
    """Where a replica stands: what is announced, and what only this host needs to know.

    ``made_for`` is the fingerprint of the wish it was last worked on for, ``content`` what the volume at ``placement`` was to
    hold. ``must_rehash``: somebody asked for a recheck, so the volume is read again although nobody seems to have touched it.
    ``provenance``: what the volume was made of, where that is not the file as it was served. ``scrubbed``: so many of the wish's
    scrubs are done. ``replaced``: kvmd's own volume of before, which may still have the name of ``placement``. ``formers`` have other
    names, the latest is the last.
    """

    status: ReplicaStatus
    made_for: str
    content: str = ""
    failures: int = 0
    placement: Placement | None = None
    is_ours: bool = False
    must_rehash: bool = False
    provenance: Provenance | None = None
    scrubbed: int = 0
    replaced: Placement | None = None
    formers: tuple[Former, ...] = ()

    @property
    def key(self) -> ReplicaKey:
        """The subject."""
        return ReplicaKey(self.status.pool, self.status.template)

    def retiring(self, *, beside: Placement | None, now: datetime) -> Replica:
        """Give the replica with its volume among the former ones, where kvmd made it and its name is not that of ``beside``."""
        path = beside.path if beside is not None else None
        formers = tuple(one for one in self.formers if one.placement.path != path)
        if self.placement is not None and self.is_ours and self.placement.path != path:
            formers += (Former(self.placement, now, self.content),)
        return replace(self, formers=formers)


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """What was found out about a template's sources; ``made_for`` is the fingerprint of the record that was checked."""

    status: ProbeStatus
    made_for: str


@dataclass(frozen=True, slots=True)
class CredentialRecord:
    """The newest credential of a name: as it was published, sealed. ``stamp`` and ``data`` are of the one in force, or of its end.

    ``status`` may tell of a later one that was refused.
    """

    status: CredentialStatus
    stamp: Stamp | None = None
    data: CredentialData | None = None

    @property
    def name(self) -> str:
        """The credential's name."""
        return self.status.credential

    @property
    def is_present(self) -> bool:
        """Whether it is in force."""
        return self.data is not None and self.data.ensure is Ensure.PRESENT

    def announced(self, now: datetime) -> CredentialStatus:
        """Give the status as of now: when its end is near or past, it says so."""
        ends = self.status.expires
        if not self.is_present or ends is None or ends - now > WARN_BEFORE or self.status.message:
            return self.status
        when = f"{ends:%Y-%m-%d %H:%M} UTC"
        return self.status.model_copy(
            update={
                "message": f"a certificate in it ended on {when}."
                if ends <= now
                else f"a certificate in it ends on {when}.",
                "hint": "Hand out a new one with `kvmctl credential add`.",
            }
        )


@dataclass(frozen=True, slots=True)
class MachineWish:
    """The newest deploy event that carries a machine of this name; ``round`` counts the rechecks asked for."""

    stamp: Stamp
    data: DeployData
    machine: Machine
    round: int = 0

    @property
    def is_present(self) -> bool:
        """Whether the machine is to be there; the replica that it stands on is another subject."""
        return self.data.ensure is Ensure.PRESENT

    @property
    def replica(self) -> ReplicaKey:
        """The replica it is made from."""
        return ReplicaKey(self.data.pool, self.data.template_name)

    @property
    def fingerprint(self) -> str:
        """Name what is wanted right now; a machine made for another fingerprint is worked on again."""
        return f"{self.stamp.generation}-{self.stamp.content[:16]}-{self.round}"


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """Where a machine stands: what is announced, and what only this host needs to know.

    ``made_for`` is the fingerprint of the wish that was last carried out, or given up. ``folder`` is where its files are, empty
    while nothing of it was begun. ``iso`` is the replica's path where the template is one. ``is_made``: it was whole once, so that
    nothing of it is deleted before somebody asks for that.
    """

    status: MachineStatus
    uuid: str
    folder: str = ""
    root: RootDisk | None = None
    iso: str = ""
    cdroms: tuple[str, ...] = ()
    is_made: bool = False
    made_for: str = ""

    @property
    def uses(self) -> tuple[str, ...]:
        """Paths of the replicas that its disks need."""
        backing = self.root.backing if self.root is not None else None
        return (*((backing.path,) if backing else ()), *((self.iso,) if self.iso else ()), *self.cdroms)

    @property
    def name(self) -> str:
        """The machine's name, and its domain's."""
        return self.status.name


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event's receipt and what the event changed; stored in one transaction."""

    receipt: Receipt
    templates: tuple[TemplateRecord, ...] = ()
    desired: tuple[Desired, ...] = ()
    credentials: tuple[CredentialRecord, ...] = ()
    machines: tuple[MachineWish, ...] = ()


@dataclass(slots=True)
class HostRecord:
    """Everything the journal holds, kept in memory by the daemon and changed only together with the journal."""

    templates: dict[str, TemplateRecord] = field(default_factory=dict[str, TemplateRecord])
    desired: dict[ReplicaKey, Desired] = field(default_factory=dict[ReplicaKey, Desired])
    replicas: dict[ReplicaKey, Replica] = field(default_factory=dict[ReplicaKey, Replica])
    probes: dict[str, ProbeRecord] = field(default_factory=dict[str, ProbeRecord])
    credentials: dict[str, CredentialRecord] = field(default_factory=dict[str, CredentialRecord])
    wished_machines: dict[str, MachineWish] = field(default_factory=dict[str, MachineWish])
    machines: dict[str, MachineRecord] = field(default_factory=dict[str, MachineRecord])
    receipts: dict[str, Receipt] = field(default_factory=dict[str, Receipt])
    unsent: set[str] = field(default_factory=set[str])

    def apply(self, recorded: Recorded, *, kept: int) -> None:
        """Take over what an event changed, and keep only so many receipts besides the unsent ones.

        Refusals are counted by themselves: anybody can cause them, and they must not drive out what tells that an event was seen.
        """
        self.receipts.pop(recorded.receipt.event, None)
        self.receipts[recorded.receipt.event] = recorded.receipt
        self.unsent.add(recorded.receipt.event)
        if len(self.receipts) > kept + len(self.unsent):
            self._forget_like(recorded.receipt, kept)
        for template in recorded.templates:
            self.templates[template.data.template] = template
            if not template.is_present:
                self.probes.pop(template.data.template, None)
        for desired in recorded.desired:
            self.desired[desired.key] = desired
        for credential in recorded.credentials:
            self.credentials[credential.name] = credential
        for wish in recorded.machines:
            self.wished_machines[wish.machine.name] = wish

    def _forget_like(self, receipt: Receipt, kept: int) -> None:
        is_refusal = receipt.outcome is Outcome.REFUSED
        alike = [event for event, one in self.receipts.items() if (one.outcome is Outcome.REFUSED) == is_refusal]
        sent = [event for event in alike if event not in self.unsent]
        for event in sent[: max(0, len(sent) - kept)]:
            del self.receipts[event]

    def machines_on(self, path: str) -> tuple[str, ...]:
        """Name the machines with a disk that needs the volume of this path."""
        return tuple(sorted(name for name, machine in self.machines.items() if path in machine.uses))

    def machines_wishing(self, key: ReplicaKey) -> tuple[str, ...]:
        """Name the machines that are to be made from a replica, or to have it as a CD-ROM, or were and still are wished."""
        return tuple(
            sorted(
                name
                for name, wish in self.wished_machines.items()
                if wish.is_present and (wish.replica == key or key.template in wish.machine.cdrom)
            )
        )

    def trust(self, enrolled: TrustList) -> TrustList:
        """Give the signing keys that count: those of the enrolment, or a newer list that was published since."""
        record = self.credentials.get(ROOT)
        published = record.data.trust if record is not None and record.data is not None else None
        return published if published is not None and published.generation > enrolled.generation else enrolled


def rechecked(desired: Desired, *, is_repair: bool = False) -> Desired:
    """Give the wish as if it had just been made: a failed or cancelled replica is tried again, a ready one verified."""
    return replace(desired, round=desired.round + 1, is_cancelled=False, reason="", is_repair=is_repair)
