"""Every step by which a session changes its pool is where it is killed, where the power is cut, and where the disk fails it.

The steps are those that a session is seen to take, so a new one is hit without a change here. ``make system KILLS=300`` goes through
all of them, fewer KILLS through so many of each kind.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kvmd.store.attacks import SCENARIOS, Scenario, Target, spread
from tests.support.disks import KINDS, Disk, Kind
from tests.support.faults import Fault
from tests.support.hostile import HostileServer

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
KILLS = int(os.environ.get("CRASH_KILLS", "300"))
FAULTS = (KILLS + 1) // 2
"""So many steps of each scenario are hit."""
each_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)


@each_scenario
@pytest.mark.parametrize("kind", KINDS, ids=lambda one: one.name)
@pytest.mark.parametrize("keeps_log", [False, True], ids=["nothing unsynced is kept", "names are kept"])
def test_a_loss_of_power(
    tmp_path: Path, hostile_in_thread: HostileServer, *, keeps_log: bool, kind: Kind, scenario: Scenario
) -> None:
    with Disk(kind, tmp_path / "disk.img", tmp_path / "disk") as disk:

        def remount() -> None:
            disk.unmount()
            disk.mount()

        with Target(disk.folder / "pool", hostile_in_thread, tmp_path, comes_back=remount) as target:
            steps = spread(target.steps(scenario), FAULTS)
            hits = [target.hit(scenario, Fault.cut(step, keeps_log=keeps_log), at=step) for step in steps]
    assert sum(hits) >= 0.7 * len(steps)


@each_scenario
def test_a_kill(tmp_path: Path, hostile_in_thread: HostileServer, scenario: Scenario) -> None:
    with Target(tmp_path / "pool", hostile_in_thread, tmp_path) as target:
        steps = spread(target.steps(scenario), KILLS)
        hits = [target.hit(scenario, Fault.kill(step), at=step) for step in steps]
    assert sum(hits) >= 0.7 * len(steps)


@each_scenario
@pytest.mark.parametrize(("error", "code"), [("EIO", "IO"), ("ENOSPC", "NO_SPACE"), ("EROFS", "POOL_READONLY")])
def test_an_error_of_the_disk(
    tmp_path: Path, hostile_in_thread: HostileServer, error: str, code: str, scenario: Scenario
) -> None:
    with Target(tmp_path / "pool", hostile_in_thread, tmp_path) as target:
        steps = spread(target.steps(scenario), FAULTS)
        hits = [target.fail(scenario, step, error, code=code) for step in steps]
    assert sum(hits) >= 0.7 * len(steps)
