"""Which signing keys a host believes, and what each of them may ask for."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from kvmwire.names import Name

PUBLIC_KEY_SIZE = 32
MAX_KEYS = 64
ROOT = "signing-keys"
"""Name of the credential that carries a new trust list; only a key with the role ``trust`` may publish it."""

Pattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.*?_:\[\]-]{1,253}$")]


class Role(StrEnum):
    """What a key may sign. ``remove`` is for events that take something away; ``trust`` for the list of keys itself."""

    REGISTER = "register"
    DEPLOY = "deploy"
    REMOVE = "remove"
    CREDENTIAL = "credential"
    COMMAND = "command"
    TRUST = "trust"


PUBLISHER_ROLES = (Role.REGISTER, Role.DEPLOY)
CONTROLLER_ROLES = (Role.REGISTER, Role.DEPLOY, Role.REMOVE, Role.CREDENTIAL, Role.COMMAND)


def keyid_of(public: bytes) -> str:
    """Name a public key: the first 32 hexadecimal digits of the SHA-256 of its 32 raw bytes."""
    return hashlib.sha256(public).hexdigest()[:32]


def read_public_key(text: str) -> bytes:
    """Read a public key, Ed25519 or X25519, from base64: 32 raw bytes. Raises ValueError."""
    raw = base64.b64decode(text, validate=True)
    if len(raw) != PUBLIC_KEY_SIZE:
        raise ValueError(f"expected {PUBLIC_KEY_SIZE} bytes, got {len(raw)}")
    return raw


class TrustedKey(BaseModel):
    """A public Ed25519 key and its bounds. ``pools`` and ``url_hosts`` are shell patterns (``*``, ``?``); times are inclusive.

    ``public`` is the 32 raw bytes in base64. A revoked key stays listed, so that a refusal can say why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    public: str
    roles: tuple[Role, ...] = Field(min_length=1)
    pools: tuple[Pattern, ...] = ("*",)
    url_hosts: tuple[Pattern, ...] = ("*",)
    not_before: AwareDatetime | None = None
    not_after: AwareDatetime | None = None
    is_revoked: bool = False

    @model_validator(mode="after")
    def _has_key(self) -> Self:
        try:
            read_public_key(self.public)
        except ValueError as exc:
            message = "public: expected the 32 bytes of an Ed25519 public key in base64"
            raise PydanticCustomError("public_key", message) from exc
        return self

    @classmethod
    def of(cls, name: str, key: Ed25519PublicKey, roles: Iterable[Role]) -> Self:
        """Make an entry without bounds."""
        return cls(name=name, public=base64.b64encode(key.public_bytes_raw()).decode(), roles=tuple(roles))

    @cached_property
    def raw(self) -> bytes:
        """The public key's 32 bytes."""
        return base64.b64decode(self.public)

    @cached_property
    def keyid(self) -> str:
        """See ``keyid_of``."""
        return keyid_of(self.raw)

    def is_valid_at(self, now: datetime) -> bool:
        """Whether the time lies in the key's bounds."""
        return (self.not_before is None or self.not_before <= now) and (self.not_after is None or now <= self.not_after)

    def may_use_pool(self, pool: str) -> bool:
        """Whether the key may deploy into this pool."""
        return any(fnmatchcase(pool, pattern) for pattern in self.pools)

    def may_name_host(self, host: str) -> bool:
        """Whether the key may have hosts download from this host name or address."""
        return any(fnmatchcase(host, pattern.lower()) for pattern in self.url_hosts)


class TrustList(BaseModel):
    """All keys that count, in one generation: the higher one replaces the lower one whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    generation: int = Field(default=0, ge=0)
    keys: tuple[TrustedKey, ...] = Field(default=(), max_length=MAX_KEYS)

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        for what, found in (
            ("name", [key.name for key in self.keys]),
            ("public key", [key.public for key in self.keys]),
        ):
            if len(set(found)) != len(found):
                raise PydanticCustomError("twice", "keys: the same {what} twice", {"what": what})
        return self

    def find(self, keyid: str) -> TrustedKey | None:
        """Give the key of this id."""
        return next((key for key in self.keys if key.keyid == keyid), None)
