"""What ``kvmd config --check`` finds out about pools of libvirt, and what the daemon says where the package is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmd.app.pools import check_pools
from kvmd.config import LibvirtPool, Settings
from tests.support.blockpools import iscsi_pool
from tests.support.libvirtd import Libvirtd


@pytest.fixture(scope="module")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirtd]:
    """Start one with two pools, of which one is stopped."""
    with Libvirtd() as running:
        for name in ("good", "stopped"):
            folder = tmp_path_factory.mktemp(name)
            running.define_pool(f"<pool type='dir'><name>{name}</name><target><path>{folder}</path></target></pool>")
        running.virsh("pool-destroy", "stopped")
        yield running


def _settings(**pools: LibvirtPool) -> Settings:
    return Settings.model_validate({"pools": pools})


async def test_each_pool_that_cannot_be_used_is_named_with_what_to_do(libvirtd: Libvirtd) -> None:
    names = ("good", "stopped", "unknown")
    settings = _settings(**{name: LibvirtPool(type="libvirt", uri=libvirtd.uri, pool=name) for name in names})
    stopped, unknown = await check_pools(settings)
    assert (stopped.key, stopped.severity) == ("pools.stopped.pool", "error")
    assert "is defined and not active" in stopped.message
    assert "virsh pool-start stopped" in stopped.hint
    assert unknown.key == "pools.unknown.pool"
    assert "no storage pool with matching name 'unknown'" in unknown.message


async def test_a_libvirtd_that_is_not_there_is_told(tmp_path: Path) -> None:
    uri = f"qemu+unix:///system?socket={tmp_path}/none"
    (finding,) = await check_pools(_settings(fast=LibvirtPool(type="libvirt", uri=uri, pool="fast")))
    assert "cannot be reached" in finding.message
    assert "Start libvirtd" in finding.hint


def test_the_daemon_says_what_to_install_and_ends(tmp_path: Path) -> None:
    config = tmp_path / "kvmd.toml"
    config.write_text(f"state_dir = '{tmp_path}/state'\n[pools.fast]\ntype = 'libvirt'\npool = 'fast'\n")
    (tmp_path / "libvirt.py").write_text("raise ImportError('No module named libvirt')\n")
    done = subprocess.run(
        [sys.executable, "-m", "kvmd", "run", "--config", config],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=15,
    )
    assert done.returncode != 0
    assert "libvirt-python" in done.stderr
    assert "pip install 'kvmd[libvirt]'" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_pool_of_units_needs_some_that_may_be_overwritten(libvirtd: Libvirtd) -> None:
    with iscsi_pool(libvirtd, name="far") as pool:
        one = LibvirtPool(type="libvirt", uri=libvirtd.uri, pool="far")
        (finding,) = await check_pools(_settings(far=one))
        assert await check_pools(_settings(far=one.model_copy(update={"units": pool.units}))) == []
        (shared,) = await check_pools(_settings(far=one.model_copy(update={"units": pool.units, "shared": True})))
    assert (finding.key, finding.severity) == ("pools.far.units", "error")
    assert shared.key == "pools.far.shared"
    assert "none is named that may be overwritten" in finding.message
    assert 'units = ["unit:0:0:1"]' in finding.hint
