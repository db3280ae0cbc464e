"""What trust costs: a secret sealed to a thousand hosts, and what one host does with the event that brings it."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import SecretStr

from bench.outcome import Figure, Outcome
from bench.report import keep, show
from controller.credentials.handout import due
from controller.credentials.known import Known
from controller.credentials.record import Recipient, Record
from controller.keys.signer import Signer
from controller.publish import make_event
from kvmd.core.credential import open_credential
from kvmd.core.warrant import warrant
from kvmwire.codec import decode_event, encode_event
from kvmwire.events import CredentialData
from kvmwire.seal import Secret
from kvmwire.topics import Topics
from kvmwire.trust import CONTROLLER_ROLES, TrustedKey, TrustList, keyid_of

HOSTS = 1000
SECRET = Secret(headers={"X-Token": SecretStr("s" * 4096)})
ROUNDS = 5
OPENED = 500
TOPICS = Topics()
T = TypeVar("T")


def main() -> int:
    """Measure, print, and write bench/results/trust.json; 1 where a target is missed."""
    now = datetime.now(UTC)
    own = X25519PrivateKey.generate()
    keys = [X25519PrivateKey.generate() for _ in range(HOSTS)]
    publics = [key.public_key() for key in keys]
    recipients = [
        Recipient(f"kvm{number:04}", {}, public, keyid_of(public.public_bytes_raw()))
        for number, public in enumerate(publics)
    ]
    record = Record(name="images", generation=1, origins=("https://images.example.org",)).keeping(
        SECRET, own.public_key()
    )
    plain = SECRET.encode()
    seal_s, parts = _best(lambda: due(record, plain, recipients, Known({}, {}), newer=lambda known: known + 1))

    signing = Ed25519PrivateKey.generate()
    signer, trusted = Signer(signing), TrustedKey.of("controller", signing.public_key(), CONTROLLER_ROLES)
    events = [make_event(part.topic, part.data, generation=part.generation, now=now) for part in parts]
    sign_s, payloads = _best(lambda: [signer.sign(encode_event(TOPICS, event)) for event in events])

    def open_one(number: int) -> None:
        event = decode_event(TOPICS, parts[number].topic, payloads[number])
        vouched = warrant(event, TrustList(keys=(trusted,)), is_required=True, now=now)
        if vouched is None or not isinstance(event.data, CredentialData):
            raise RuntimeError("the event is no signed credential")
        open_credential(event.data, generation=1, host=recipients[number].name, key=keys[number], now=now)

    open_s = statistics.median(_seconds(open_one, number) for number in range(OPENED))
    figures = (
        Figure(f"seal 4 KiB to {HOSTS} hosts", seal_s, "s", target=0.5),
        Figure(f"encode and sign {HOSTS} events", sign_s, "s"),
        Figure("verify and open one", open_s * 1e3, "ms", target=2),
        Figure("one event", len(payloads[0]) / 1024, "KiB"),
    )
    show("trust", Outcome(f"a secret for {HOSTS} hosts", figures))
    keep("trust", {one.name: round(one.value, 4) for one in figures})
    return 1 if any(one.verdict == "missed" for one in figures) else 0


def _best(work: Callable[[], T]) -> tuple[float, T]:
    """Give the shortest of some rounds, and what the last one made."""
    made, found = work(), list[float]()
    for _ in range(ROUNDS):
        start = time.perf_counter()
        made = work()
        found.append(time.perf_counter() - start)
    return min(found), made


def _seconds(work: Callable[[int], None], number: int) -> float:
    start = time.perf_counter()
    work(number)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
