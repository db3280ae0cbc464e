"""Whether an event may be believed: who signed it, and whether that key may ask for this. The signature binds the topic already.

Where signatures are not required, an unsigned event has no warrant and is judged like any other; a signed one must always be right.
Credentials are different: a host that knows signing keys takes none from anybody else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

from kvmwire.codes import FailureCode, WireError
from kvmwire.events import CommandData, CredentialData, DeployData, Ensure, Event, RegisterData
from kvmwire.signing import is_signed_by
from kvmwire.source import SourceUrl
from kvmwire.trust import ROOT, Role, TrustedKey, TrustList

_HOW_TO_SIGN = "Sign it with `kvmctl sign`, or publish it with kvmctl; `kvmctl keys list` shows who may sign what."
_HOW_TO_ALLOW = "Have a key sign it that may do this; `kvmctl keys list` shows which one may."
_EVERY_POOL = ""
"""Is no pool's name: only a pattern that fits everything fits it."""


@dataclass(frozen=True, slots=True)
class Warrant:
    """The key that vouches for an event."""

    keyid: str
    name: str


def warrant(event: Event, trust: TrustList, *, is_required: bool, now: datetime) -> Warrant | None:
    """Give who vouches for the event; None for an event that needs nobody. Raises WireError with EVENT_SIGNATURE.

    A signed event must not be of use for ever: commands need ``expires``, everything else a ``generation``.
    """
    key = _signer(
        event, trust, is_required=is_required or (bool(trust.keys) and isinstance(event.data, CredentialData))
    )
    if key is None:
        return None
    if not key.is_valid_at(now):
        _refuse(
            f"key {key.name} signed it, which is valid from {key.not_before or 'ever'} to {key.not_after or 'ever'}"
        )
    if event.signature is None or not is_signed_by(event.signature, key):
        _refuse(
            f"its signature is not one of key {key.name} over this content",
            "Sign it anew; something changed it on its way.",
        )
    _check_bounds(event, key)
    _check_is_finite(event)
    return Warrant(key.keyid, key.name)


def _signer(event: Event, trust: TrustList, *, is_required: bool) -> TrustedKey | None:
    """Find the key that the event names. A signature that nobody could check counts as none."""
    signature = event.signature
    if signature is None or not trust.keys:
        if not is_required:
            return None
        if signature is not None:
            _refuse("this host knows no signing keys", "Enroll the host, or name its list of keys in trust.keys.")
        _refuse("it is not signed, and this host takes only signed ones")
    key = trust.find(signature.keyid)
    if key is None:
        _refuse(
            f"this host does not know the key {signature.keyid[:64]!a}",
            "If the key is the fleet's own, tell all hosts of it with `kvmctl keys publish`; else have a key sign it that they know.",
        )
    if key.is_revoked:
        _refuse(f"key {key.name} has been revoked")
    return key


def _check_bounds(event: Event, key: TrustedKey) -> None:
    role = role_of(event)
    if role not in key.roles:
        _refuse(
            f"key {key.name} may not sign this: it needs the role {role}, the key has {', '.join(key.roles)}",
            _HOW_TO_ALLOW,
        )
    match event.data:
        case DeployData() as data if not key.may_use_pool(data.pool):
            _refuse(f"key {key.name} may not use pool {data.pool}", _HOW_TO_ALLOW)
        case CommandData(pool=pool) if not key.may_use_pool(pool or _EVERY_POOL):
            _refuse(f"key {key.name} may not use {f'pool {pool}' if pool else 'every pool'}", _HOW_TO_ALLOW)
        case DeployData(ensure=Ensure.PRESENT, template=RegisterData() as template):
            _check_hosts(_urls(template), key)
        case RegisterData(ensure=Ensure.PRESENT) as template:
            _check_hosts(_urls(template), key)
        case _:
            pass


def _check_hosts(urls: Iterable[str], key: TrustedKey) -> None:
    for url in map(SourceUrl.parse, urls):
        if not key.may_name_host(url.origin.host):
            _refuse(f"key {key.name} may not have hosts download from {url}", _HOW_TO_ALLOW)


def _urls(template: RegisterData) -> tuple[str, ...]:
    return (*template.urls, *((template.checksum_url,) if template.checksum_url else ()))


def _check_is_finite(event: Event) -> None:
    if isinstance(event.data, CommandData):
        if event.expires is None:
            _refuse("a signed command without `expires` could be repeated for ever", _HOW_TO_SIGN)
    elif event.generation is None:
        _refuse("a signed event without `generation` could be repeated for ever", _HOW_TO_SIGN)


def role_of(event: Event) -> Role:
    """Name the role that a key needs to sign this event."""
    match event.data:
        case CommandData():
            return Role.COMMAND
        case CredentialData(credential=name, trust=trust):
            return Role.CREDENTIAL if trust is None and name != ROOT else Role.TRUST
        case RegisterData(ensure=Ensure.PRESENT):
            return Role.REGISTER
        case DeployData(ensure=Ensure.PRESENT):
            return Role.DEPLOY
        case RegisterData() | DeployData():
            return Role.REMOVE


def _refuse(why: str, hint: str = _HOW_TO_SIGN) -> NoReturn:
    raise WireError(FailureCode.EVENT_SIGNATURE, f"signature: {why}; the event was refused.", hint=hint)
