"""The power is cut in the middle of a session, on ext4 and xfs: what is saved then is there, and what has the final name is right.

Here at a few steps of each session; ``make system`` cuts it at all of them (tests/system/test_every_step.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kvmd.store.attacks import PACKED, PLAIN, TAKE_OVER, Scenario, Target, spread
from tests.support.disks import EXT4, XFS, Disk, Kind
from tests.support.faults import Fault
from tests.support.hostile import HostileServer

POINTS = 4


@pytest.mark.parametrize(
    ("kind", "keeps_log", "scenario"),
    [(EXT4, False, TAKE_OVER), (EXT4, True, PLAIN), (XFS, False, PACKED)],
    ids=lambda one: getattr(one, "name", None),
)
def test_a_loss_of_power_costs_nothing_that_was_saved(
    tmp_path: Path, hostile_in_thread: HostileServer, *, kind: Kind, keeps_log: bool, scenario: Scenario
) -> None:
    with Disk(kind, tmp_path / "disk.img", tmp_path / "disk") as disk:

        def remount() -> None:
            disk.unmount()
            disk.mount()

        with Target(disk.folder / "pool", hostile_in_thread, tmp_path, comes_back=remount) as target:
            for step in spread(target.steps(scenario), POINTS):
                target.hit(scenario, Fault.cut(step, keeps_log=keeps_log), at=step)
