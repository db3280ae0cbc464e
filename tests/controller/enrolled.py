"""A fleet with hosts in it, as tests of secrets need one."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from controller.keys import files
from controller.keys.keyring import FleetKeys, raw_key_pem
from controller.keys.register import EnrolledHost
from tests.controller.kvmctl import Kvmctl


class EnrolledFleet:
    """The fleet of a ``Kvmctl``; ``key(host)`` is what only the host has."""

    def __init__(self, kvmctl: Kvmctl) -> None:
        self._folder = kvmctl.state / "fleet"
        self._keys: dict[str, X25519PrivateKey] = {}
        kvmctl.state.mkdir(exist_ok=True)
        FleetKeys.create(self._folder, broker_names=["localhost"], now=dt.datetime.now(dt.UTC))

    def enrol(self, name: str, labels: Mapping[str, str] | None = None) -> X25519PrivateKey:
        """Let a host in, or in again with a new key."""
        key = self._keys[name] = X25519PrivateKey.generate()
        sealing = base64.b64encode(key.public_key().public_bytes_raw()).decode()
        host = EnrolledHost(name=name, labels=dict(labels or {}), sealing=sealing, enrolled=dt.datetime.now(dt.UTC))
        with FleetKeys.changing(self._folder) as keys:
            keys.save(keys.register.with_host(host))
        return key

    def revoke(self, name: str) -> None:
        """Take a host out."""
        with FleetKeys.changing(self._folder) as keys:
            host = keys.register.host(name)
            assert host is not None
            keys.save(keys.register.with_host(host.model_copy(update={"revoked": dt.datetime.now(dt.UTC)})))

    def tables(self, name: str, folder: Path) -> dict[str, Any]:
        """Write what a host's settings name, and give those settings."""
        trust, sealing = folder / "trust.toml", folder / "sealing.key"
        folder.mkdir(exist_ok=True)
        trust.write_text(tomli_w.dumps(FleetKeys.open(self._folder).trust.model_dump(mode="json", exclude_none=True)))
        files.write(sealing, raw_key_pem(self.key(name)))
        return {
            "trust": {"keys": str(trust), "sealing_key": str(sealing)},
            "policy": {"require_signature": True},
        }

    def key(self, name: str) -> X25519PrivateKey:
        """Give the newest key of a host."""
        return self._keys[name]
