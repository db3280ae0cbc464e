"""The fleet's register: who was let in, with which certificates and keys, and what was taken back. Values alone, no secret."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from functools import cached_property
from typing import Annotated, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict

from controller.errors import UsageError
from controller.keys.authority import Revoked
from kvmwire.events import Labels
from kvmwire.names import Name
from kvmwire.trust import MAX_KEYS, TrustedKey, TrustList, keyid_of, read_public_key

VERSION = 1
T = TypeVar("T")


def _check_raw_key(text: str) -> str:
    try:
        read_public_key(text)
    except ValueError as exc:
        raise ValueError("expected the 32 bytes of an X25519 public key in base64") from exc
    return text


RawKey = Annotated[str, AfterValidator(_check_raw_key)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Issued(_Record):
    """A certificate that was handed out; ``serial`` is hexadecimal, ``revoked`` the time from which it counts no more."""

    serial: str
    fingerprint: str
    not_after: AwareDatetime
    revoked: AwareDatetime | None = None


class EnrolledHost(_Record):
    """A host of the fleet. ``sealing`` is its X25519 public key: 32 raw bytes in base64."""

    name: Name
    labels: Labels = {}
    sealing: RawKey
    certificates: tuple[Issued, ...] = ()
    enrolled: AwareDatetime
    revoked: AwareDatetime | None = None

    @property
    def is_revoked(self) -> bool:
        """Whether nothing may be meant for it any more."""
        return self.revoked is not None

    @cached_property
    def sealing_key(self) -> X25519PublicKey:
        """Key to which its secrets are sealed."""
        return X25519PublicKey.from_public_bytes(read_public_key(self.sealing))

    @property
    def sealing_keyid(self) -> str:
        """Name of that key, as sealed secrets give it."""
        return keyid_of(read_public_key(self.sealing))

    @property
    def not_after(self) -> datetime | None:
        """End of its newest certificate; None where all are revoked."""
        return max((one.not_after for one in self.certificates if one.revoked is None), default=None)


class Publisher(_Record):
    """Somebody who may register or deploy with a certificate and a signing key of his own; ``keyid`` finds its bounds."""

    name: Name
    keyid: str
    certificates: tuple[Issued, ...] = ()
    enrolled: AwareDatetime
    revoked: AwareDatetime | None = None

    @property
    def is_revoked(self) -> bool:
        """Whether it may publish nothing any more."""
        return self.revoked is not None


class FleetRegister(_Record):
    """Everything that is known of the fleet's keys but the keys themselves. ``signing`` and ``root`` are key ids."""

    version: int = VERSION
    created: AwareDatetime
    broker_names: tuple[str, ...]
    signing: str
    root: str
    trust: TrustList
    hosts: tuple[EnrolledHost, ...] = ()
    publishers: tuple[Publisher, ...] = ()
    crl_number: int = 1

    def host(self, name: str) -> EnrolledHost | None:
        """Give a host, also one that was revoked."""
        return next((one for one in self.hosts if one.name == name), None)

    def publisher(self, name: str) -> Publisher | None:
        """Give a publisher, also one that was revoked."""
        return next((one for one in self.publishers if one.name == name), None)

    def with_host(self, host: EnrolledHost) -> Self:
        """Add a host, or put it in the place of the one of its name."""
        return self.model_copy(update={"hosts": _replaced(self.hosts, host, lambda one: one.name)})

    def with_publisher(self, publisher: Publisher) -> Self:
        """Add a publisher, or put it in the place of the one of its name."""
        return self.model_copy(update={"publishers": _replaced(self.publishers, publisher, lambda one: one.name)})

    def with_trust(self, keys: Iterable[TrustedKey], now: datetime) -> Self:
        """Give the keys that count from now on, in a new generation. Raises UsageError for more than hosts take.

        Dead keys, the oldest first, make room for others: an unknown key is refused just like a revoked one.
        """
        kept = list(keys)
        dead = [key for key in kept if key.is_revoked or (key.not_after is not None and key.not_after < now)]
        for key in dead[: max(0, len(kept) - MAX_KEYS)]:
            kept.remove(key)
        if len(kept) > MAX_KEYS:
            raise UsageError(
                f"keys: {len(kept)} keys would count, hosts take at most {MAX_KEYS}; nothing was changed.",
                hint="Revoke a publisher who is needed no more: kvmctl keys revoke NAME",
            )
        generation = max(int(now.timestamp() * 1000), self.trust.generation + 1)
        return self.model_copy(update={"trust": TrustList(generation=generation, keys=tuple(kept))})

    def with_key(self, key: TrustedKey, now: datetime) -> Self:
        """Add a key to the list, or put it in the place of the same key."""
        return self.with_trust(_replaced(self.trust.keys, key, lambda one: one.keyid), now)

    def with_next_crl(self) -> Self:
        """Ask for a new list of revoked certificates."""
        return self.model_copy(update={"crl_number": self.crl_number + 1})

    def revoked_certificates(self) -> list[Revoked]:
        """Give the content of that list."""
        holders: tuple[EnrolledHost | Publisher, ...] = (*self.hosts, *self.publishers)
        return [
            Revoked(int(one.serial, 16), one.revoked)
            for holder in holders
            for one in holder.certificates
            if one.revoked is not None
        ]


def _replaced(known: tuple[T, ...], new: T, name: Callable[[T], str]) -> tuple[T, ...]:
    others = [one for one in known if name(one) != name(new)]
    if len(others) == len(known):
        return (*known, new)
    return tuple(new if name(one) == name(new) else one for one in known)
