"""What sessions and probes on this host keep to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from kvmd.core.admission import Policy
from kvmd.engine.job import Limits
from kvmd.engine.shaping import Shaper
from kvmd.errors import CredentialMissingError
from kvmd.ports import Converter, Credentials, Inspector, Keyring, Sharing
from kvmwire.events import RegisterData

JOURNAL_PAUSE_S = 5.0
"""How long work rests after the journal could not be written: a full disk is not emptied faster by trying."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits of a session, the policy, and how many sessions run at once.

    ``inspector`` checks images, ``converter`` makes raw ones for ``raw_pools``, ``credentials`` are those of this host, ``shaper``
    keeps all sessions to the host's rate, ``keyring`` has the keys that may sign checksum files. ``shared`` are those of the pools
    that other hosts have, too.
    """

    slots: int
    limits: Limits
    policy: Policy
    inspector: Inspector
    converter: Converter
    credentials: Credentials
    shaper: Shaper
    keyring: Keyring | None = None
    shared: Mapping[str, Sharing] = field(default_factory=dict[str, Sharing])
    raw_pools: Collection[str] = ()


def check_credentials(template: RegisterData, installed: Credentials) -> None:
    """Raise CredentialMissingError where the template names a credential that this host does not have."""
    for name in template.credentials:
        if not installed.has(name):
            raise CredentialMissingError(name)
