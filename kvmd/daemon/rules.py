"""What sessions and probes on this host keep to."""

from __future__ import annotations

from dataclasses import dataclass

from kvmd.core.admission import Policy
from kvmd.engine.job import Limits
from kvmd.ports import Inspector, Keyring

JOURNAL_PAUSE_S = 5.0
"""How long work rests after the journal could not be written: a full disk is not emptied faster by trying."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits of a session, the policy, how many run at once, who checks images, and the keys that may sign checksum files."""

    slots: int
    limits: Limits
    policy: Policy
    inspector: Inspector
    keyring: Keyring | None = None
