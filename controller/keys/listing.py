"""The fleet's keys, certificates, hosts and publishers as rows for programs and tables for people; nothing of it is secret."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives import hashes
from rich.console import Group

from controller.keys.keyring import CA, CONTROLLER, FleetKeys
from controller.keys.register import EnrolledHost, FleetRegister, Publisher
from controller.sheet import Sheet, pairs, some, state
from kvmwire.certificates import WARN_BEFORE
from kvmwire.trust import TrustedKey

Row = dict[str, Any]
_CERTIFICATES = (CA, "broker.pem", f"{CONTROLLER}.pem")


def listed(keys: FleetKeys, now: datetime) -> tuple[list[Row], Group]:
    """Give every row, and the tables; what there is none of has no table."""
    certificates = [_certificate(keys, name) for name in _CERTIFICATES]
    known = [_key(keys.register, one, now) for one in keys.trust.keys]
    hosts = [_host(one, now) for one in keys.hosts()]
    publishers = [_publisher(one) for one in keys.publishers()]
    shown = [_certificates_sheet(certificates), _keys_sheet(known)]
    if hosts:
        shown.append(_hosts_sheet(hosts))
    if publishers:
        shown.append(_publishers_sheet(publishers))
    return [*certificates, *known, *hosts, *publishers], Group(*shown)


def warnings(keys: FleetKeys, now: datetime) -> Iterator[str]:
    """Tell what ends soon, and what to do about it."""
    soon = now + WARN_BEFORE
    for name in _CERTIFICATES:
        end = keys.certificate(name).not_valid_after_utc
        if end < soon:
            what = "make a new fleet" if name == CA else "kvmctl keys renew"
            yield f"warning: {name} is good until {end:%Y-%m-%d}: {what}"
    for host in keys.hosts():
        if host.not_after is not None and not host.is_revoked and host.not_after < soon:
            until = f"{host.not_after:%Y-%m-%d}"
            yield f"warning: the certificate of {host.name} is good until {until}: kvmctl enroll {host.name} --renew"


def _certificate(keys: FleetKeys, name: str) -> Row:
    certificate = keys.certificate(name)
    return {
        "kind": "certificate",
        "name": name,
        "names": list(keys.register.broker_names) if name == "broker.pem" else [],
        "not_after": certificate.not_valid_after_utc,
        "fingerprint": certificate.fingerprint(hashes.SHA256()).hex(),
    }


def _key(register: FleetRegister, key: TrustedKey, now: datetime) -> Row:
    return {
        "kind": "key",
        **key.model_dump(mode="json", exclude={"public", "is_revoked"}),
        "keyid": key.keyid,
        "state": _key_state(register, key, now),
    }


def _key_state(register: FleetRegister, key: TrustedKey, now: datetime) -> str:
    if key.is_revoked:
        return "revoked"
    if not key.is_valid_at(now):
        return "expired"
    return "signs now" if key.keyid == register.signing else "active"


def _host(host: EnrolledHost, now: datetime) -> Row:
    end = host.not_after
    return {
        "kind": "host",
        "host": host.name,
        "labels": host.labels,
        "state": "revoked" if host.is_revoked else "expired" if end is not None and end < now else "active",
        "enrolled": host.enrolled,
        "not_after": end,
        "sealing_key": host.sealing_keyid,
        "certificates": [one.fingerprint for one in host.certificates if one.revoked is None],
    }


def _publisher(publisher: Publisher) -> Row:
    return {
        "kind": "publisher",
        "publisher": publisher.name,
        "state": "revoked" if publisher.is_revoked else "active",
        "keyid": publisher.keyid,
        "not_after": max(one.not_after for one in publisher.certificates),
    }


def _certificates_sheet(rows: list[Row]) -> Sheet:
    shown = Sheet("certificates", "certificate", "until", "SHA-256", wide=("names",))
    for row in rows:
        shown.add_row(row["name"], _day(row["not_after"]), row["fingerprint"][:16], some(row["names"]))
    return shown


def _keys_sheet(rows: list[Row]) -> Sheet:
    shown = Sheet("keys", "key", "id", "state", "until", wide=("roles", "bounds"))
    for row in rows:
        bounds = [
            f"{what} {some(row[key])}" for what, key in (("pools", "pools"), ("URLs", "url_hosts")) if row[key] != ["*"]
        ]
        until = str(row["not_after"] or "-")[:10]
        shown.add_row(
            row["name"], row["keyid"][:12], state(row["state"]), until, ", ".join(row["roles"]), "; ".join(bounds)
        )
    return shown


def _hosts_sheet(rows: list[Row]) -> Sheet:
    shown = Sheet("hosts", "host", "state", "until", "sealing key", wide=("labels",))
    for row in rows:
        key, labels = row["sealing_key"][:12], pairs(row["labels"])
        shown.add_row(row["host"], state(row["state"]), _day(row["not_after"]), key, labels)
    return shown


def _publishers_sheet(rows: list[Row]) -> Sheet:
    shown = Sheet("publishers", "publisher", "state", "until", "key")
    for row in rows:
        shown.add_row(row["publisher"], state(row["state"]), _day(row["not_after"]), row["keyid"][:12])
    return shown


def _day(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d}" if time is not None else "-"
