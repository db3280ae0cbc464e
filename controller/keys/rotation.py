"""Taking keys out of use: a new signing key with an overlap, revocation, and events signed anew. Pure; time is an argument."""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controller.errors import UsageError
from controller.keys.enrolling import taken_back
from controller.keys.keyring import controller_key
from controller.keys.register import FleetRegister
from kvmwire.codec import EventRefusedError, decode_event
from kvmwire.signing import is_signed_by, sign_payload
from kvmwire.topics import EventTopic, Topics
from kvmwire.trust import TrustedKey

_TAKEN_OVER = timedelta(days=1)


def rotated(register: FleetRegister, key: Ed25519PrivateKey, *, overlap: timedelta, now: datetime) -> FleetRegister:
    """Sign with a new key from now on; the one so far is believed for the overlap."""
    new, end = controller_key(key), now + overlap
    kept = [
        one.model_copy(update={"not_after": end}) if one.keyid == register.signing else one
        for one in register.trust.keys
    ]
    return register.with_trust((*kept, new), now).model_copy(update={"signing": new.keyid})


def with_key_revoked(register: FleetRegister, name: str, now: datetime) -> FleetRegister:
    """Refuse a key, named by its name or id, from now on; a publisher's certificate too. Raises UsageError."""
    key = next((one for one in register.trust.keys if name in {one.name, one.keyid}), None)
    if key is None:
        raise UsageError(f"keys revoke {name}: there is no such key.", hint="See the keys with: kvmctl keys list")
    if key.keyid == register.signing:
        raise UsageError(
            f"keys revoke {name}: this key signs what kvmctl publishes now; nothing was changed.",
            hint="First: kvmctl keys rotate --overlap 0. Then revoke this one.",
        )
    if key.keyid == register.root:
        raise UsageError(
            f"keys revoke {name}: hosts take no other list of keys without it; nothing was changed.",
            hint="If it was stolen, make a new fleet with kvmctl keys init in another folder, and enrol every host anew.",
        )
    register = register.with_key(key.model_copy(update={"is_revoked": True}), now)
    publisher = next((one for one in register.publishers if one.keyid == key.keyid), None)
    if publisher is None:
        return register
    update = {"revoked": publisher.revoked or now, "certificates": taken_back(publisher.certificates, now)}
    return register.with_publisher(publisher.model_copy(update=update)).with_next_crl()


def with_host_revoked(register: FleetRegister, name: str, now: datetime) -> FleetRegister:
    """Take a host out of the fleet. Raises UsageError for one that never was in it."""
    host = register.host(name)
    if host is None:
        raise UsageError(
            f"keys revoke --host {name}: no such host was enrolled.", hint="See the hosts with: kvmctl keys list"
        )
    update = {"revoked": host.revoked or now, "certificates": taken_back(host.certificates, now)}
    return register.with_host(host.model_copy(update=update)).with_next_crl()


def retired_keys(register: FleetRegister, now: datetime) -> list[TrustedKey]:
    """Give the controller's former keys of which what they signed may be taken over.

    Only for a day after its end: nobody may have believed what a key signs that was lost much later.
    """
    others = {register.signing, register.root, *(one.keyid for one in register.publishers)}
    kept = (key for key in register.trust.keys if key.keyid not in others and not key.is_revoked)
    return [key for key in kept if key.is_valid_at(now) or key.is_valid_at(now - _TAKEN_OVER)]


def signed_anew(
    topics: Topics, topic: EventTopic, payload: bytes, *, retired: list[TrustedKey], key: Ed25519PrivateKey
) -> bytes | None:
    """Sign an event of a retired key with the new one: the same id, generation and content. None for any other event.

    Its signature is verified first: whoever can write to the broker could else have anything signed.
    """
    try:
        event = decode_event(topics, topic, payload)
    except EventRefusedError:
        return None
    signature = event.signature
    former = next((one for one in retired if signature is not None and one.keyid == signature.keyid), None)
    if former is None or signature is None or not is_signed_by(signature, former):
        return None
    return sign_payload(payload, key)
