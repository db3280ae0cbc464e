"""A fleet for tests of the daemon: keys, a host that knows them, and events signed with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kvmwire.seal import Binding, Secret, seal
from kvmwire.signing import sign_payload
from kvmwire.trust import CONTROLLER_ROLES, Role, TrustedKey, TrustList
from tests.kvmd.daemon.harness import HOST, Site, enveloped


class FleetKeys:
    """The fleet's root and controller keys, and one host's sealing key, with the files that its settings name."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.root, self.controller, self.stranger = (Ed25519PrivateKey.generate() for _ in range(3))
        self.sealing = X25519PrivateKey.generate()
        self.trust = TrustList(
            generation=1,
            keys=(
                TrustedKey.of("root", self.root.public_key(), [Role.TRUST]),
                TrustedKey.of("controller", self.controller.public_key(), CONTROLLER_ROLES),
            ),
        )
        self._trust_file, self._sealing_file = folder / "trust.toml", folder / "sealing.key"
        self._trust_file.write_text(tomli_w.dumps(self.trust.model_dump(mode="json", exclude_none=True)))
        self._sealing_file.write_bytes(self.sealing.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self._sealing_file.chmod(0o600)

    def tables(self, **policy: Any) -> dict[str, Any]:
        """Give the settings of a host of this fleet."""
        return {
            "trust": {"keys": str(self._trust_file), "sealing_key": str(self._sealing_file)},
            "policy": {"require_signature": True, **policy},
        }

    def signed(
        self, topic: str, data: Mapping[str, Any], *, key: Ed25519PrivateKey | None = None, **attributes: Any
    ) -> bytes:
        """Sign an event for a topic, with the controller's key unless another is given."""
        bound: dict[str, Any] = {"generation": 1}
        if topic.startswith("command/"):
            bound = {"expires": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}
        envelope = enveloped(topic, data, subject=topic, **{**bound, **attributes})
        return sign_payload(json.dumps(envelope).encode(), key or self.controller)

    async def send(
        self,
        site: Site,
        topic: str,
        data: Mapping[str, Any],
        *,
        key: Ed25519PrivateKey | None = None,
        retain: bool = True,
        **attributes: Any,
    ) -> str:
        """Publish a signed event, and give its id."""
        payload = self.signed(topic, data, key=key, **attributes)
        await site.send(topic, payload, retain=retain)
        return str(json.loads(payload)["id"])

    def sealed(self, name: str, origin: str, *, generation: int, host: str = HOST, **secret: Any) -> dict[str, Any]:
        """Give the data of a credential that is sealed to the host: ``headers``, ``certificate`` and ``key``."""
        binding = Binding(name, generation, (origin,))
        copies = seal(Secret.model_validate(secret).encode(), binding, {host: self.sealing.public_key()})
        return {"origins": [origin], "sealed": copies[host].model_dump()}
