"""Handing out and taking back: what is kept on the disk, what is out, and the events that make up the difference.

One kvmctl at a time does it. What is kept is written before anything is published: a command that is cut off is completed by the
next `sync`, which `kvmctl serve` does by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from controller.config import Settings
from controller.credentials.clearing import clear_revoked
from controller.credentials.handout import Part, due, taken_from, withdrawn
from controller.credentials.known import Known, known_credentials
from controller.credentials.record import Recipient, Record, opened
from controller.credentials.store import CredentialStore
from controller.errors import ControlError, UsageError
from controller.keys.keyring import FleetKeys
from controller.publish import Sender, Sent, make_event, next_generation, now_utc, publish
from controller.registry import Registry
from kvmwire.codec import encode_event
from kvmwire.codes import FailureCode, WireError
from kvmwire.events import Ensure, Event
from kvmwire.seal import MAX_GENERATION, Secret

_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Synced:
    """What was published, and why something could not be."""

    sent: tuple[Sent, ...]
    failures: tuple[ControlError, ...]


@dataclass(frozen=True, slots=True)
class Desk:
    """The credentials of one controller; ``keys`` are the fleet's, None where there is no fleet."""

    sender: Sender
    store: CredentialStore
    keys: FleetKeys | None

    @classmethod
    async def open(cls, sender: Sender) -> Desk:
        """Read the fleet's register. Raises UsageError where it cannot be read."""
        keys = await asyncio.to_thread(FleetKeys.find, sender.settings.fleet)
        return cls(sender, CredentialStore(sender.settings.state_dir), keys)

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """Hosts that secrets can be sealed to."""
        return Recipient.of(self.keys.hosts()) if self.keys is not None else ()

    async def hand_out(self, draft: Record, secret: Secret | None) -> tuple[Record, list[Sent]]:
        """Keep a credential in a new generation and publish it. A host on which it was revoked alone stays out unless it is named."""
        async with self._changing(_PATIENCE_S) as all_known:
            kept, known = await asyncio.to_thread(self.store.read, draft.name), all_known[draft.name]
            # The generation below is for the event that takes it from all before the selected hosts get theirs.
            generation = _newer(_highest(kept, known) + 1)
            named = draft.hosts if isinstance(draft.hosts, tuple) else ()
            record = draft.model_copy(update={"generation": generation}).without(
                set(kept.excluded if kept else ()) - set(named)
            )
            if secret is not None:
                record = record.keeping(secret, self._own_key().public_key())
            plain = secret.encode() if secret is not None else None
            # What takes it from others goes last: the hosts of both have the new one by then, and know it is newer.
            parts = due(record, plain, self.recipients, known, newer=_newer) + withdrawn(record, self.recipients, known)
            events = self._events(parts)
            await asyncio.to_thread(self.store.write, record)
            return record, await publish(self.sender, events)

    async def revoke(self, name: str, hosts: Sequence[str]) -> list[Sent]:
        """Take a credential from the hosts that are named, or from all for good. Raises ControlError where nobody knows of it."""
        async with self._changing(_PATIENCE_S) as all_known:
            kept, known = await asyncio.to_thread(self.store.read, name), all_known[name]
            if kept is None and not known.events and not known.statuses:
                raise unknown_credential(name)
            if hosts:
                if kept is not None and kept.ensure is Ensure.PRESENT:
                    await asyncio.to_thread(self.store.write, kept.without(hosts))
                return await publish(self.sender, self._events(taken_from(name, hosts, known, newer=_newer)))
            record = kept or Record(name=name, generation=0)
            if record.ensure is Ensure.PRESENT:
                record = record.revoked(_newer(_highest(kept, known)))
                await asyncio.to_thread(self.store.write, record)
            return await publish(self.sender, self._events(due(record, None, (), known, newer=_newer)))

    async def sync(self, *, patience_s: float = _PATIENCE_S) -> Synced:
        """Publish what is missing: to hosts that were enrolled later, or anew; after a command that was cut off."""
        sent, failures = list[Sent](), list[ControlError]()
        async with self._changing(patience_s) as known:
            for name in await asyncio.to_thread(self.store.names):
                try:
                    record = await asyncio.to_thread(self.store.read, name)
                    if record is not None and self._can_serve(record):
                        sent += await publish(self.sender, self._events(self._due(record, known[name])))
                except ControlError as exc:
                    failures.append(exc)
        return Synced(tuple(sent), tuple(failures))

    def _can_serve(self, record: Record) -> bool:
        """Whether there are keys to open and seal it with; without a fleet only what is public goes out."""
        return self.keys is not None or record.sealed is None

    def _due(self, record: Record, known: Known) -> list[Part]:
        try:
            secret = opened(record, self._own_key()) if record.sealed is not None else None
        except WireError as exc:
            raise ControlError(
                f"credential {record.name}: what is kept of it cannot be opened with the fleet's key in {self.sender.settings.fleet}.",
                hint=f"Give the key file back, or hand it out anew: kvmctl credential add {record.name} ...",
                code=FailureCode.SECRET,
            ) from exc
        return due(record, secret, self.recipients, known, newer=_newer)

    def _own_key(self) -> X25519PrivateKey:
        if self.keys is None:
            raise no_fleet()
        return self.keys.sealing_key

    def _events(self, parts: Iterable[Part]) -> list[Event]:
        """Make the events, none for a revoked host, and see that they can be sent, before anything is kept or published."""
        now, fleet = now_utc(), self.sender.fleet
        meant = (part for part in parts if not fleet.is_for_revoked(part.topic))
        events = [make_event(part.topic, part.data, generation=part.generation, now=now) for part in meant]
        try:
            for event in events:
                encode_event(fleet.topics, event)
        except WireError as exc:
            raise ControlError(f"{exc.message} Nothing was published.", hint=exc.hint, code=exc.code) from exc
        return events

    @contextlib.asynccontextmanager
    async def _changing(self, patience_s: float) -> AsyncGenerator[defaultdict[str, Known], None]:
        """Let no other kvmctl hand out meanwhile, clear what is out for revoked hosts, and give what is out."""
        async with self.store.changing(patience_s=patience_s):
            await clear_revoked(self.sender)
            yield known_credentials(self.sender.fleet, await self.sender.archive.call(Registry.retained))


def kept_version(settings: Settings) -> tuple[int, int]:
    """Give what changes when a credential is kept or a host let in: nanoseconds."""
    return CredentialStore(settings.state_dir).version(), FleetKeys.version(settings.fleet)


def no_fleet() -> UsageError:
    """Say that secrets need keys."""
    return UsageError(
        "a secret is kept and sent sealed, and there is no fleet whose keys it could be sealed to; nothing was published.",
        hint="Make the fleet's keys and let its hosts in: kvmctl keys init; kvmctl enroll HOST",
    )


def unknown_credential(name: str) -> ControlError:
    """Say that a credential is none of ours, nor of anybody's."""
    return ControlError(
        f"credential {name}: it was not handed out from here, and no event and no host tells of it; nothing was published.",
        hint="See what there is with: kvmctl credential list",
        code=FailureCode.CREDENTIAL_INVALID,
    )


def _newer(known: int) -> int:
    return next_generation(now_utc(), known, highest=MAX_GENERATION)


def _highest(kept: Record | None, known: Known) -> int:
    return max(kept.generation if kept else 0, known.highest)
