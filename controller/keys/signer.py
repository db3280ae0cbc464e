"""What signs this controller's events: the key of the settings, else the fleet's, else nothing."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controller.config import Settings
from controller.errors import ControlError
from controller.keys.keyring import FleetKeys, load_signing_key
from kvmwire.codec import MAX_EVENT_SIZE
from kvmwire.codes import FailureCode, WireError
from kvmwire.signing import sign_payload


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs encoded events; without a key it leaves them as they are."""

    key: Ed25519PrivateKey | None

    @classmethod
    def of(cls, settings: Settings) -> Signer:
        """Read the key. Raises UsageError where there is one that cannot be read: nothing goes out unsigned by mistake."""
        if settings.signing.key is not None:
            return cls(load_signing_key(settings.signing.key))
        keys = FleetKeys.find(settings.fleet)
        return cls(keys.signing_key if keys is not None else None)

    def sign(self, payload: bytes) -> bytes:
        """Sign one event. Raises ControlError where canonical JSON cannot say what is in it, or where it is too long."""
        if self.key is None:
            return payload
        try:
            signed = sign_payload(payload, self.key)
        except WireError as exc:
            raise ControlError(f"{exc.message} Nothing was published.", hint=exc.hint, code=exc.code) from exc
        if len(signed) > MAX_EVENT_SIZE:
            raise ControlError(
                f"the event has {len(signed)} bytes with its signature, at most {MAX_EVENT_SIZE} are accepted; "
                "nothing was published.",
                hint="Shorten it: fewer sources, labels or headers.",
                code=FailureCode.EVENT_SCHEMA,
            )
        return signed
