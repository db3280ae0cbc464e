"""What is done about a machine, and what it is made of."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from kvmd.core.desired import Desired, HostRecord, MachineRecord, MachineWish, Replica, Stamp
from kvmd.core.domain import Domain, Power, Provenance
from kvmd.core.machine import (
    GIB,
    Step,
    check_same_template,
    files_of,
    is_own_file,
    next_step,
    next_steps,
    observed,
    planned,
    ready_replica,
    spec_of,
)
from kvmd.core.overlay import Backing
from kvmd.errors import MachineError, TemplateUnknownError
from kvmwire.events import DeployData, Ensure, Machine, RegisterData
from kvmwire.status import FailureCode, MachineState, ReplicaState, ReplicaStatus

NOW = datetime(2030, 1, 1, tzinfo=UTC)
UUID = "7a0f3d0c-5b0e-4b6e-9f52-3c8a2a3f1d11"


def wish(
    ensure: Ensure = Ensure.PRESENT, *, template: str = "deb12", generation: int = 1, **fields: Any
) -> MachineWish:
    """Wish for the machine vm1."""
    machine = Machine(name="vm1", **fields)
    data = DeployData(deployment="vm1", template=template, ensure=ensure, machine=machine)
    return MachineWish(Stamp(generation, "c" * 64, f"e{generation}"), data, machine)


def host(
    wished: MachineWish, template: str = "deb12", state: ReplicaState = ReplicaState.READY, **fields: Any
) -> HostRecord:
    """Give a host that has the wish, and a replica in this state."""
    registered = RegisterData(template=template, url="http://origin.test/disk")
    desired = Desired(wished.stamp, DeployData(deployment="vm1", template=registered), 1)
    values = {"path": f"/pool/{template}", "format": "qcow2", "size": 1000, "virtual_size": 2 * GIB, **fields}
    status = ReplicaStatus(template=template, generation=1, pool="default", state=state, since=NOW, **values)
    replica = Replica(status, desired.fingerprint({}))
    return HostRecord(desired={desired.key: desired}, replicas={replica.key: replica}, wished_machines={"vm1": wished})


def made(wished: MachineWish, record: HostRecord, **status: Any) -> MachineRecord:
    """Give the machine as it is once it was made for the wish, running."""
    replica = ready_replica(record, wished)
    assert replica is not None
    plan = planned(wished, record, replica, uuid=UUID, now=NOW)
    fields = {"state": MachineState.RUNNING, **status}
    return replace(plan, status=plan.status.model_copy(update=fields), is_made=True, made_for=wished.fingerprint)


def test_what_somebody_waits_for_is_done_before_the_rest_is_looked_at() -> None:
    base = wish()
    record = host(base)
    stands = made(base, record)

    def named(one: MachineWish, name: str) -> MachineWish:
        return replace(one, machine=one.machine.model_copy(update={"name": name}))

    record.wished_machines = {
        "watched": named(base, "watched"),
        "gone": named(wish(Ensure.ABSENT), "gone"),
        "never": named(wish(Ensure.ABSENT), "never"),
        "new": named(base, "new"),
        "other": named(wish(generation=2, memory_mib=128), "other"),
    }
    record.machines = dict.fromkeys(("watched", "gone", "other"), stands)
    assert [(one.machine.name, step) for one, step in next_steps(record)] == [
        ("new", Step.MAKE),
        ("other", Step.CHANGE),
        ("gone", Step.REMOVE),
        ("watched", Step.WATCH),
    ]


def test_the_next_step_follows_from_the_wish_and_what_is_there() -> None:
    present, newer, gone = wish(), wish(generation=2), wish(Ensure.ABSENT, generation=3)
    there = made(present, host(present))

    assert next_step(present, None) is Step.MAKE
    assert next_step(present, replace(there, is_made=False, made_for="")) is Step.MAKE
    assert next_step(present, replace(there, is_made=False)) is Step.REST, "it was given up"
    assert next_step(present, there) is Step.WATCH
    assert next_step(newer, there) is Step.CHANGE
    assert next_step(newer, replace(there, is_made=False)) is Step.MAKE
    assert next_step(gone, there) is Step.REMOVE
    assert next_step(gone, None) is Step.REST


@pytest.mark.parametrize("state", [one for one in ReplicaState if one is not ReplicaState.READY])
def test_a_machine_waits_for_its_replica(state: ReplicaState) -> None:
    assert ready_replica(host(wish(), state=state), wish()) is None


def test_a_replica_that_is_about_to_change_or_go_is_not_stood_on() -> None:
    record = host(wish())
    (key,) = record.desired
    desired = record.desired[key]

    record.desired[key] = replace(desired, stamp=Stamp(2, "d" * 64, "e2"))
    assert ready_replica(record, wish()) is None
    absent = desired.data.model_copy(update={"ensure": Ensure.ABSENT})
    record.desired[key] = replace(desired, data=absent)
    assert ready_replica(record, wish()) is None


def test_the_disk_stands_on_the_replica_in_its_own_format_and_size() -> None:
    plain = made(wish(), host(wish(), format="raw"))
    larger = made(wish(disk_gib=10), host(wish()))

    assert plain.root is not None
    assert plain.root.backing == Backing("/pool/deb12", "raw")
    assert plain.root.size == 2 * GIB
    assert larger.root is not None
    assert larger.root.size == 10 * GIB
    assert plain.uses == ("/pool/deb12",)


def test_an_iso_is_a_cdrom_and_its_disk_is_empty() -> None:
    bare = made(wish(), host(wish(), format="iso"))
    with_disk = made(wish(disk_gib=3), host(wish(), format="iso"))

    assert bare.root is None
    assert bare.uses == ("/pool/deb12",)
    assert spec_of(wish(), bare, network="none").cdroms == ("/pool/deb12",)
    assert with_disk.root is not None
    assert (with_disk.root.size, with_disk.root.backing) == (3 * GIB, None)


@pytest.mark.parametrize(
    ("wanted", "fields", "told"),
    [
        ({"disk_gib": 1}, {}, "disk_gib 1 is less"),
        ({}, {"format": "luks"}, "luks"),
        ({}, {"path": "/dev/vg/deb12"}, "block device"),
        ({}, {"path": "/dev/vg/deb12", "format": "iso"}, "block device"),
        ({}, {"path": "ip-192.0.2.1:3260-iscsi-iqn.x-lun-1"}, "block device"),
    ],
)
def test_what_cannot_be_made_is_told(wanted: dict[str, Any], fields: dict[str, Any], told: str) -> None:
    with pytest.raises(MachineError, match=told):
        made(wish(**wanted), host(wish(), **fields))


def test_a_cdrom_must_be_an_iso_that_is_ready() -> None:
    wanted = wish(cdrom=["drivers"])
    record = host(wanted)
    with pytest.raises(TemplateUnknownError, match="drivers"):
        made(wanted, record)

    record.replicas |= host(wanted, "drivers", format="iso").replicas
    assert made(wanted, record).uses == ("/pool/deb12", "/pool/drivers")

    on_device = host(wanted, "drivers", format="iso", path="/dev/vg/drivers").replicas
    record.replicas |= on_device
    with pytest.raises(MachineError, match="CD-ROM drivers lies on the block device"):
        made(wanted, record)


def test_files_lie_beside_the_replica_under_names_that_no_volume_has() -> None:
    files = files_of(wish(), made(wish(), host(wish())))

    assert (files.root, files.seed, files.console) == (
        "/pool/vm1+root.qcow2",
        "/pool/vm1+seed.iso",
        "/pool/vm1+console.log",
    )
    assert UUID in files.documents["meta-data"]


def test_the_hosts_network_is_for_machines_that_name_none() -> None:
    there = made(wish(), host(wish()))

    assert spec_of(wish(), there, network="lab").network == "lab"
    assert spec_of(wish(network="user"), there, network="lab").network == "user"


@pytest.mark.parametrize(
    ("before", "power", "after"),
    [
        (MachineState.RUNNING, Power.ON, None),
        (MachineState.RUNNING, Power.OFF, MachineState.STOPPED),
        (MachineState.RUNNING, Power.CRASHED, MachineState.FAILED),
        (MachineState.RUNNING, None, MachineState.FAILED),
        (MachineState.STOPPED, Power.OFF, None),
        (MachineState.STOPPED, Power.ON, MachineState.RUNNING),
        (MachineState.DEFINED, Power.OFF, None),
        (MachineState.STOPPED, None, MachineState.FAILED),
    ],
)
def test_what_a_domain_does_by_itself_is_noticed(
    before: MachineState, power: Power | None, after: MachineState | None
) -> None:
    there = made(wish(), host(wish()), state=before)
    domain = Domain(UUID, power, Provenance("vm1", "default", "deb12")) if power else None

    seen = observed(there, domain, now=NOW)

    assert (seen.status.state if seen else None) == after
    if seen is not None:
        assert (seen.status.code is FailureCode.MACHINE) == (after is MachineState.FAILED)
        assert observed(seen, domain, now=NOW) is None, "it is told once"


def test_what_is_remarkable_about_a_running_machine_is_told_while_it_runs() -> None:
    domain = Domain(UUID, Power.ON, Provenance("vm1", "default", "deb12"), "Emulated.")

    running = observed(made(wish(), host(wish()), state=MachineState.STOPPED), domain, now=NOW)
    assert running is not None
    stopped = observed(running, replace(domain, power=Power.OFF), now=NOW)

    assert running.status.message == "Emulated."
    assert stopped is not None
    assert stopped.status.message == ""


@pytest.mark.parametrize(
    ("path", "is_own"),
    [
        ("/pool/vm1+root.qcow2", True),
        ("/pool/vm1+seed.iso", True),
        ("/pool/vm1+console.log", True),
        ("/pool/vm1+console.log.12", True),
        ("/pool/vm1+other.qcow2", False),
        ("/pool/vm1+root.qcow2.bak", False),
        ("/elsewhere/vm1+root.qcow2", False),
        ("/pool/vm2+root.qcow2", False),
        ("/pool/vm1", False),
    ],
)
def test_the_files_of_the_journals_machines_are_known_by_folder_and_name(path: str, *, is_own: bool) -> None:
    record = host(wish())
    record.machines["vm1"] = made(wish(), record)

    assert is_own_file(record, path) is is_own


def test_a_machine_of_another_template_keeps_its_disk() -> None:
    there = made(wish(), host(wish()))

    check_same_template(wish(generation=2), there)
    with pytest.raises(MachineError, match="deb12"):
        check_same_template(wish(template="deb13"), there)
