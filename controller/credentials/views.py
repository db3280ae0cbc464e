"""Credentials as rows for programs and tables for people; nothing secret is in them. Pure; time is an argument."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from controller.credentials.record import Record
from controller.credentials.standing import HostCredential
from controller.sheet import Sheet, moment, pairs, state
from controller.views import Row, Rows
from kvmwire.certificates import WARN_BEFORE
from kvmwire.events import Ensure, HostLabels

_FINGERPRINT_LENGTH = 12


def credentials(found: Iterable[HostCredential], records: Iterable[Record], *, now: datetime) -> Rows:
    """Show each credential on each host, then those that are kept and meant for nobody yet."""
    rows, shown = (
        list[Row](),
        Sheet("credentials", "credential", "host", "state", "expires", "fingerprint", wide=("origins",)),
    )
    told = set[str]()
    for one in found:
        told.add(one.name)
        rows.append(_row(one, now))
        _add(shown, one, now)
    for record in records:
        if record.name not in told:
            rows.append(
                _record_row(record, now) | {"host": None, "state": "revoked" if _is_gone(record) else "missing"}
            )
            shown.add_row(
                record.name, "-", state(rows[-1]["state"]), moment(record.expires), "", ", ".join(record.origins or ())
            )
            shown.note(
                record.name,
                "" if _is_gone(record) else "no host has it: none that it is for was enrolled, or announced itself.",
            )
    return rows, shown


def kept(record: Record, *, now: datetime) -> Rows:
    """Show what is kept of a credential."""
    shown = Sheet(f"credential {record.name}", "for", "holds", "expires", wide=("origins",))
    holds = ", ".join(record.holds) or ("revoked" if _is_gone(record) else "-")
    shown.add_row(_selection(record), holds, moment(record.expires), ", ".join(record.origins or ()))
    shown.note("not for", ", ".join(record.excluded))
    if record.expires is not None and not _is_gone(record):
        shown.note(record.name, _ending(record.expires, now))
    return [_record_row(record, now)], shown


def _row(one: HostCredential, now: datetime) -> Row:
    status = one.status
    return {
        "kind": "credential",
        "credential": one.name,
        "host": one.host,
        "online": one.is_online,
        "state": one.state,
        "generation": one.generation,
        "installed": status.installed if status else None,
        "origins": list(status.origins) if status else [],
        "holds": list(status.holds) if status else [],
        "fingerprint": status.fingerprint if status else None,
        "expires": status.expires if status else None,
        "expires_soon": one.ends_soon(now),
        "code": one.code,
        "message": one.message,
        "hint": one.hint,
        "since": status.since if status else None,
    }


def _record_row(record: Record, now: datetime) -> Row:
    hosts = record.hosts.model_dump() if isinstance(record.hosts, HostLabels) else record.hosts
    return {
        "kind": "kept",
        "credential": record.name,
        "generation": record.generation,
        "ensure": record.ensure,
        "hosts": hosts,
        "excluded": list(record.excluded),
        "origins": list(record.origins or ()),
        "holds": list(record.holds),
        "fingerprint": record.fingerprint,
        "expires": record.expires,
        "expires_soon": record.expires is not None and record.expires - now <= WARN_BEFORE,
    }


def _add(shown: Sheet, one: HostCredential, now: datetime) -> None:
    status = one.status
    fingerprint = status.fingerprint[:_FINGERPRINT_LENGTH] + "…" if status and status.fingerprint else ""
    expires, origins = (status.expires, ", ".join(status.origins)) if status else (None, "")
    shown.add_row(one.name, one.host, state(one.state), moment(expires), fingerprint, origins)
    about = f"{one.name} on {one.host}"
    code = f"{one.code.value}: " if one.code else ""
    shown.note(about, code + " ".join(part for part in (one.message, one.hint) if part))
    if expires is not None and one.ends_soon(now):
        shown.note(about, _ending(expires, now))


def _ending(expires: datetime, now: datetime) -> str:
    left = expires - now
    if left.total_seconds() <= 0:
        return f"expired at {moment(expires)}: hand out a new one with the same name."
    return (
        f"expires in {left.days} days, at {moment(expires)}: hand out a new one with the same name."
        if left <= WARN_BEFORE
        else ""
    )


def _selection(record: Record) -> str:
    match record.hosts:
        case "all":
            return "all hosts"
        case HostLabels(labels=labels):
            return pairs(labels)
        case names:
            return ", ".join(names)


def _is_gone(record: Record) -> bool:
    return record.ensure is Ensure.ABSENT
