"""What the controller keeps of a credential: everything but its secret, and the secret sealed to the controller's own key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from pydantic import AwareDatetime, BaseModel, ConfigDict

from controller.keys.register import EnrolledHost
from kvmwire.events import Ensure, HostLabels, Origins, Sealed
from kvmwire.names import Name
from kvmwire.seal import Binding, Secret, seal, unseal

_SELF = "+controller"  # is no host's name, so that nothing that was sealed to a host can be mistaken for it

Selection = Literal["all"] | HostLabels | tuple[Name, ...]


@dataclass(frozen=True, slots=True)
class Recipient:
    """A host, and the key that its secrets are sealed to; without one it can be given what is public.

    Its labels are those it was enrolled with: what a host says of itself does not count.
    """

    name: str
    labels: Mapping[str, str]
    key: X25519PublicKey | None = None
    keyid: str = ""

    @classmethod
    def of(cls, hosts: Iterable[EnrolledHost]) -> tuple[Self, ...]:
        """Give the enrolled hosts, without those that were revoked."""
        return tuple(
            cls(one.name, one.labels, one.sealing_key, one.sealing_keyid) for one in hosts if not one.is_revoked
        )


class Record(BaseModel):
    """A credential of one generation. ``ensure: absent`` means revoked: it holds no secret, and nothing brings it back.

    ``excluded`` are hosts on which it was revoked alone. ``fingerprint`` and ``expires`` are as in ``CredentialStatus``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    name: Name
    generation: int
    ensure: Ensure = Ensure.PRESENT
    hosts: Selection = "all"
    excluded: tuple[Name, ...] = ()
    origins: Origins | None = None
    anchors: str = ""
    sealed: Sealed | None = None
    holds: tuple[str, ...] = ()
    fingerprint: str | None = None
    expires: AwareDatetime | None = None

    @property
    def binding(self) -> Binding:
        """What its secret belongs to."""
        return Binding(self.name, self.generation, self.origins or ())

    @property
    def is_public(self) -> bool:
        """Whether it is meant for all and holds nothing secret: then one event serves every host."""
        return self.sealed is None and self.hosts == "all"

    def selects(self, host: str, labels: Mapping[str, str]) -> bool:
        """Whether the host that carries these labels is to have it."""
        if host in self.excluded:
            return False
        match self.hosts:
            case "all":
                return True
            case HostLabels(labels=wanted):
                return wanted.items() <= labels.items()
            case names:
                return host in names

    def keeping(self, secret: Secret, key: X25519PublicKey) -> Self:
        """Hold the secret, too: sealed to this key."""
        return self.model_copy(update={"sealed": seal(secret.encode(), self.binding, {_SELF: key})[_SELF]})

    def targets(self, enrolled: Iterable[Recipient]) -> tuple[Recipient, ...]:
        """Give the hosts that get an event of their own; one that was not enrolled may be named for what is public."""
        known = tuple(enrolled)
        named = self.hosts if isinstance(self.hosts, tuple) and self.sealed is None else ()
        strangers = (Recipient(host, {}) for host in named if host not in {one.name for one in known})
        return tuple(one for one in (*known, *strangers) if self.selects(one.name, one.labels))

    def revoked(self, generation: int) -> Self:
        """Hold nothing any more."""
        return type(self)(name=self.name, generation=generation, ensure=Ensure.ABSENT, origins=self.origins)

    def without(self, hosts: Iterable[str]) -> Self:
        """Select these hosts no more."""
        return self.model_copy(update={"excluded": tuple(sorted({*self.excluded, *hosts}))})


def opened(record: Record, key: X25519PrivateKey) -> bytes | None:
    """Give the secret in clear, to be sealed to hosts at once; None where it has none. Raises WireError with SECRET."""
    return None if record.sealed is None else unseal(record.sealed, record.binding, host=_SELF, key=key)
