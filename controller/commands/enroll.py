"""``kvmctl enroll``."""

from __future__ import annotations

import argparse
import asyncio
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from controller.commands.invocation import Invocation, Parsers, add_parser, name, pair
from controller.config import Settings
from controller.errors import ControlError, UsageError
from controller.keys.enrolling import Mode, Site, enrol
from controller.keys.handing import prepared
from controller.keys.keyring import FleetKeys
from controller.keys.register import EnrolledHost, FleetRegister
from controller.keys.setting_up import broker_url
from controller.sheet import Sheet, pairs
from kvmwire.codes import Exit, WireError
from kvmwire.enrolment import MAX_FILE_SIZE, Applicant, read_request

_POOL = PurePosixPath("/var/lib/libvirt/images")


def add(parsers: Parsers) -> None:
    """Add the parser."""
    parser = add_parser(parsers, "enroll", enroll, "let a host into the fleet: writes the bundle for kvmd enroll")
    parser.add_argument("host", nargs="?", type=name, metavar="HOST", help="the host's name; with --sign the request's")
    parser.add_argument(
        "--sign", type=Path, metavar="REQUEST", help="what kvmd enroll --request wrote: no private key travels then"
    )
    parser.add_argument("--label", action="append", type=pair, default=[], metavar="K=V", help="label; repeat it")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a .tar file, or a folder to make; HOST.tar")
    parser.add_argument(
        "--pool-path", type=_absolute, default=_POOL, metavar="PATH", help=f"folder of the pool default; {_POOL}"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--renew", action="store_true", help="a new certificate for a host of the fleet; the old one stays valid"
    )
    again.add_argument(
        "--reset", action="store_true", help="new keys for a host that lost them; its old certificates are revoked"
    )


def _absolute(text: str) -> PurePosixPath:
    path = PurePosixPath(text)
    if not path.is_absolute() or ".." in path.parts or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text[:80]!a}: expected an absolute path without '..'")
    return path


async def enroll(invocation: Invocation) -> Exit:
    """Write one bundle."""
    output, args = invocation.output, invocation.arguments
    register, host, out = await asyncio.to_thread(_enroll, args, invocation.settings)
    shown = Sheet("enrolled", "host", "until", "sealing key", wide=("labels", "bundle"))
    until = f"{host.not_after:%Y-%m-%d}" if host.not_after else "-"
    shown.add_row(host.name, until, host.sealing_keyid, pairs(host.labels), str(out))
    row = {"kind": "enrolled", "host": host.name, "labels": host.labels, "not_after": host.not_after}
    output.show([{**row, "sealing_key": host.sealing_keyid, "bundle": str(out)}], shown)
    broker = invocation.settings.mqtt
    if broker.is_tls and broker.host not in register.broker_names:
        output.say(
            f"warning: the host will connect to {broker.host}, and the broker's certificate is for "
            f"{', '.join(register.broker_names)} alone: kvmctl keys renew --broker-name ..."
        )
    if not output.is_json:
        output.say("Next:")
        if not args.renew:
            output.say("  kvmctl broker-config ...        # write the broker's access list again, with this host in it")
        output.say(f"  kvmd enroll {out.name}        # on {host.name}, as root, after copying it there")
        if not args.sign:
            output.say(f"  rm -r {out}        # it holds private keys: keep no copy")
        if args.reset:
            output.say(
                "  kvmctl credential sync        # seals what the host had to its new key; kvmctl serve does it by itself"
            )
    return Exit.DONE


def _enroll(args: argparse.Namespace, settings: Settings) -> tuple[FleetRegister, EnrolledHost, Path]:
    applicant = _applicant(args.sign) if args.sign is not None else None
    host = _host(args.host, applicant)
    mode = Mode.RENEW if args.renew else Mode.RESET if args.reset else Mode.JOIN
    out = args.out or Path(f"{host}.tar")
    with FleetKeys.changing(settings.fleet) as keys:
        site = Site(_url(settings, keys), settings.mqtt.prefix, args.pool_path)
        labels = dict(args.label)
        now = datetime.now(UTC)
        admission = enrol(keys, host, labels=labels, site=site, mode=mode, applicant=applicant, now=now)
        with prepared(out, admission.files) as finish:
            keys.save(admission.register)
            finish()
    enrolled = admission.register.host(host)
    if enrolled is None:
        raise AssertionError("unreachable: the register was given the host")
    return admission.register, enrolled, out


def _applicant(path: Path) -> Applicant:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_SIZE + 1)
    except OSError as exc:
        raise UsageError(
            f"--sign {path}: it cannot be read: {exc.strerror}.", hint="Name the file that kvmd enroll --request wrote."
        ) from exc
    try:
        return read_request(content)
    except WireError as exc:
        raise ControlError(f"--sign {path}: {exc.message}", hint=exc.hint, code=exc.code) from exc


def _host(named: str | None, applicant: Applicant | None) -> str:
    if applicant is None:
        if named is None:
            raise UsageError("enroll: no host was named.", hint="kvmctl enroll HOST, or kvmctl enroll --sign REQUEST")
        return named
    if named not in {None, applicant.host}:
        raise UsageError(
            f"enroll {named}: the request is of the host {applicant.host}; nothing was signed.",
            hint="Look where the request came from; leave the name out to take the request's.",
        )
    return applicant.host


def _url(settings: Settings, keys: FleetKeys) -> str:
    """Give the broker's URL for hosts: that of the settings where it is encrypted, else the first name of the broker."""
    return settings.mqtt.url if settings.mqtt.is_tls else broker_url(keys.register.broker_names[0])
