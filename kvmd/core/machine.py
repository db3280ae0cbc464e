"""What is to be done about a machine, and what it is made of. Values in, values out."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from enum import StrEnum

from kvmd.core.agenda import outlives_its_template
from kvmd.core.desired import HostRecord, MachineRecord, MachineWish, Replica
from kvmd.core.domain import QEMU_FORMATS, Domain, DomainSpec, MachineFiles, Power, Provenance, RootDisk
from kvmd.core.image import FoundFormat
from kvmd.core.overlay import Backing
from kvmd.core.seed import meta_data, user_data
from kvmd.errors import KvmdError, MachineError, TemplateUnknownError
from kvmwire.events import CloudInit
from kvmwire.status import MachineState, MachineStatus, ReplicaState

GIB = 1 << 30
_ROOT, _SEED, _CONSOLE = "+root.qcow2", "+seed.iso", "+console.log"
_OWN = re.compile(rf"[^+]+(?:{re.escape(_ROOT)}|{re.escape(_SEED)}|{re.escape(_CONSOLE)}(?:\.\d+)?)")
_FILES_HINT = "Deploy into a pool of files: a directory, or libvirt's dir, fs or netfs."


class Step(StrEnum):
    """What comes next for a machine; the first are done first, because somebody waits for them."""

    MAKE = "make"
    CHANGE = "change"
    REMOVE = "remove"
    WATCH = "watch"
    REST = "rest"


_ORDER = {step: number for number, step in enumerate(Step)}


def next_steps(record: HostRecord) -> list[tuple[MachineWish, Step]]:
    """Give what is to be done, in this order, about the machines that do not rest."""
    steps = [(wish, next_step(wish, record.machines.get(name))) for name, wish in record.wished_machines.items()]
    return sorted((one for one in steps if one[1] is not Step.REST), key=lambda one: _ORDER[one[1]])


def next_step(wish: MachineWish, record: MachineRecord | None) -> Step:
    """Compare what is wished with what is there."""
    if not wish.is_present:
        return Step.REMOVE if record is not None else Step.REST
    if record is None or not record.is_made:
        is_given_up = record is not None and record.made_for == wish.fingerprint
        return Step.REST if is_given_up else Step.MAKE
    return Step.WATCH if record.made_for == wish.fingerprint else Step.CHANGE


def ready_replica(record: HostRecord, wish: MachineWish) -> Replica | None:
    """Give the replica to make the machine from, once it is ready and nothing is about to change it."""
    replica, desired = record.replicas.get(wish.replica), record.desired.get(wish.replica)
    if replica is None or desired is None or replica.status.state is not ReplicaState.READY or not desired.is_present:
        return None
    is_current = replica.made_for == desired.fingerprint(record.templates)
    return replica if is_current or outlives_its_template(record, wish.replica) else None


def planned(wish: MachineWish, record: HostRecord, replica: Replica, *, uuid: str, now: datetime) -> MachineRecord:
    """Decide what the machine is made of. Raises MachineError where that cannot be, TemplateUnknownError where a CD-ROM is missing."""
    status = replica.status
    path = status.path or ""
    if not _is_file(path):
        raise MachineError(
            f"machine {wish.machine.name}: the replica {path} is a block device, which has no folder for the machine's files; "
            "nothing was made.",
            hint=_FILES_HINT,
        )
    iso = path if status.format == FoundFormat.ISO else ""
    return MachineRecord(
        status=status_of(wish, MachineState.DEFINED, uuid=uuid, now=now),
        uuid=uuid,
        folder=path.rpartition("/")[0],
        root=None if iso and wish.machine.disk_gib is None else _root(wish, replica),
        iso=iso,
        cdroms=cdroms(wish, record),
    )


def cdroms(wish: MachineWish, record: HostRecord) -> tuple[str, ...]:
    """Give the paths of the ISOs that the machine is to have. Raises TemplateUnknownError for one that is not ready here."""
    return tuple(_iso(name, wish, record) for name in wish.machine.cdrom)


def spec_of(wish: MachineWish, record: MachineRecord, *, network: str) -> DomainSpec:
    """Give the domain; ``network`` is the host's choice for machines that say nothing of theirs."""
    machine, files = wish.machine, files_of(wish, record)
    return DomainSpec(
        name=record.name,
        uuid=record.uuid,
        provenance=Provenance(wish.data.deployment, wish.data.pool, wish.data.template_name),
        memory_mib=machine.memory_mib,
        vcpus=machine.vcpus,
        console=files.console,
        network=machine.network or network,
        root=record.root,
        cdroms=(*((record.iso,) if record.iso else ()), *record.cdroms),
        seed=files.seed,
        is_autostarted=machine.start,
    )


def files_of(wish: MachineWish, record: MachineRecord) -> MachineFiles:
    """Name the machine's own files: ``+`` is in no volume's name, so that no template can have one of these."""
    start = f"{record.folder}/{record.name}"
    given = wish.machine.cloud_init or CloudInit()
    return MachineFiles(
        console=f"{start}{_CONSOLE}",
        root=record.root.path if record.root is not None else None,
        seed=f"{start}{_SEED}",
        documents={
            "user-data": user_data(given),
            "meta-data": meta_data(given, name=record.name, instance_id=record.uuid),
        },
    )


def is_machine_file(name: str) -> bool:
    """Whether a file has a name as machines' own files have, those included that virtlogd has put aside."""
    return _OWN.fullmatch(name) is not None


def is_own_file(record: HostRecord, path: str) -> bool:
    """Whether it is the file of a machine in the journal, which knows what that stands on."""
    folder, _, name = path.rpartition("/")
    machine = record.machines.get(name.partition("+")[0])
    return is_machine_file(name) and machine is not None and machine.folder == folder


def status_of(wish: MachineWish, state: MachineState, *, uuid: str | None, now: datetime) -> MachineStatus:
    """Give a machine's status for this wish."""
    return MachineStatus(
        name=wish.machine.name,
        generation=wish.stamp.generation,
        deployment=wish.data.deployment,
        template=wish.data.template_name,
        pool=wish.data.pool,
        state=state,
        uuid=uuid,
        since=now,
    )


def with_failure(status: MachineStatus, error: KvmdError, *, now: datetime, until: datetime | None) -> MachineStatus:
    """Say why it is not as wished; ``until`` is when it is tried again."""
    failure = error.failure
    update = {
        "code": failure.code,
        "message": failure.message,
        "hint": failure.hint,
        "since": now,
        "next_attempt": until,
    }
    return status.model_copy(update=update)


def check_same_template(wish: MachineWish, record: MachineRecord) -> None:
    """Raise MachineError where the machine there was made from something else: its disk would be lost."""
    status = record.status
    if (status.template, status.pool) != (wish.data.template_name, wish.data.pool):
        raise MachineError(
            f"machine {record.name}: it was made from template {status.template} in pool {status.pool}, the event wants "
            f"{wish.data.template_name} in {wish.data.pool}; it was left as it is.",
            hint="Remove the machine first, or give the new one another name.",
        )


def observed(record: MachineRecord, domain: Domain | None, *, now: datetime) -> MachineRecord | None:
    """Give the record after looking at the domain; None where nothing has changed."""
    status = record.status
    is_on = domain is not None and domain.power is Power.ON
    if (status.state is MachineState.RUNNING) == is_on and (domain is not None or status.code is not None):
        return None
    state = MachineState.RUNNING if is_on else MachineState.STOPPED
    remark = domain.remark if domain is not None and is_on else ""
    seen = status.model_copy(
        update={"state": state, "code": None, "message": remark, "hint": "", "since": now, "next_attempt": None}
    )
    if domain is None:
        error = MachineError(
            f"machine {record.name}: libvirt does not know it any more: somebody undefined it; its files in {record.folder} are kept.",
            hint="Publish the deployment again to define it anew, or remove it.",
        )
    elif domain.power in {Power.CRASHED, Power.FAILED}:
        error = MachineError(f"machine {record.name}: it {domain.power.value}; its disk is kept.")
    else:
        return replace(record, status=seen)
    failed = with_failure(seen.model_copy(update={"state": MachineState.FAILED}), error, now=now, until=None)
    return replace(record, status=failed)


def _root(wish: MachineWish, replica: Replica) -> RootDisk:
    status, machine = replica.status, wish.machine
    path, form = status.path or "", FoundFormat(status.format or FoundFormat.RAW)
    own = f"{path.rpartition('/')[0]}/{machine.name}{_ROOT}"
    asked = (machine.disk_gib or 0) * GIB
    if form is FoundFormat.ISO:
        return RootDisk(own, asked, None)
    if form not in QEMU_FORMATS:
        raise MachineError(
            f"machine {machine.name}: no disk can stand on an image of format {form.value}; nothing was made."
        )
    size = status.virtual_size or status.size or 0
    if asked and asked < size:
        raise MachineError(
            f"machine {machine.name}: disk_gib {machine.disk_gib} is less than the template's {size} bytes; nothing was made.",
            hint=f"Give at least {-(-size // GIB)}, or leave it out.",
        )
    return RootDisk(own, asked or size, Backing(path, QEMU_FORMATS[form]))


def _iso(name: str, wish: MachineWish, record: HostRecord) -> str:
    found = [
        (key.pool != wish.data.pool, one.status.path)
        for key, one in record.replicas.items()
        if key.template == name
        and one.status.state is ReplicaState.READY
        and one.status.format == FoundFormat.ISO
        and one.status.path
    ]
    if not found:
        raise TemplateUnknownError(
            f"machine {wish.machine.name}: the CD-ROM {name} has no ready replica of format iso on this host; "
            "it goes on as soon as there is one.",
            hint=f"Deploy it: kvmctl deploy {name} --host ...",
        )
    files = [one for one in found if _is_file(one[1] or "")]
    if not files:
        raise MachineError(
            f"machine {wish.machine.name}: the CD-ROM {name} lies on the block device {found[0][1]}; nothing was made.",
            hint=_FILES_HINT,
        )
    return min(files)[1] or ""


def _is_file(path: str) -> bool:
    """Whether a replica at the path is a file: block pools give their volumes paths in /dev, or no paths at all."""
    return path.startswith("/") and (not path.startswith("/dev/") or path.startswith("/dev/shm/"))  # noqa: S108 - no file is made
