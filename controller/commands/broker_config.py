"""``kvmctl broker-config``."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from controller.brokerconfig import mosquitto, nats
from controller.brokerconfig.access import DEFAULT_CONTROLLER, Access, Identities, accesses
from controller.brokerconfig.site import Listener, Site
from controller.commands.invocation import Invocation, Parsers, add_hosts, add_parser, name
from controller.errors import UsageError
from controller.keys import files, keyring
from controller.keys.keyring import FleetKeys
from controller.output import Output
from kvmwire.codes import Exit

_FOLDERS = {"mosquitto": PurePosixPath("/etc/mosquitto"), "nats": PurePosixPath("/etc/nats")}
_NATS_STORE = PurePosixPath("/var/lib/nats")
_PATHS = {
    "--ca": "CA certificates of the fleet; certs/ca.pem in the broker's folder",
    "--cert": "the broker's certificate; certs/broker.pem in the broker's folder",
    "--key": "its key; certs/broker.key in the broker's folder",
    "--crl": "mosquitto: list of revoked certificates (PEM); certs/crl.pem where there is a fleet and no --ca",
    "--acl": f"mosquitto: the access list; {_FOLDERS['mosquitto'] / mosquitto.ACL}",
    "--store": f"nats: folder of the messages; {_NATS_STORE}",
}


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the broker: its text, and the path that it has on the broker's machine."""

    path: PurePosixPath
    text: str


def add(parsers: Parsers) -> None:
    """Add the parser."""
    parser = add_parser(
        parsers,
        "broker-config",
        broker_config,
        "the broker's configuration: TLS, identities, who may read and write what",
    )
    parser.add_argument("broker", choices=tuple(_FOLDERS), help="the kind of broker")
    add_hosts(parser, help_text="a host that may connect beside those of the fleet; repeat it")
    parser.add_argument(
        "--controller",
        action="append",
        type=name,
        metavar="NAME",
        help=f"common name of a controller's certificate; {DEFAULT_CONTROLLER}",
    )
    parser.add_argument(
        "--publisher",
        action="append",
        type=name,
        default=[],
        metavar="NAME",
        help="a publisher beside those of the fleet: it may register and deploy, and nothing else",
    )
    parser.add_argument("--listen", default=str(Listener()), metavar="ADDRESS:PORT", help=f"{Listener()}")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the files there; else they are printed")
    paths = parser.add_argument_group("paths on the broker's machine")
    for option, meaning in _PATHS.items():
        metavar = "FOLDER" if option == "--store" else "FILE"
        paths.add_argument(option, type=PurePosixPath, metavar=metavar, help=meaning)


async def broker_config(invocation: Invocation) -> Exit:
    """Print the files, or write them and say what to do with them."""
    args, settings, output = invocation.arguments, invocation.settings, invocation.output
    fleet = await asyncio.to_thread(FleetKeys.find, settings.fleet)
    identities = _identities(args, fleet)
    written = _files(args, accesses(settings.mqtt.topics, identities), has_fleet=fleet is not None)
    if args.out is not None:
        await asyncio.to_thread(_write, args.out, written)
    _report(output, args.out, written)
    if not output.is_json:
        output.say(_summary(args.broker, identities))
        if args.out is not None:
            for line in _steps(args, written, fleet):
                output.say(line)
    return Exit.DONE


def _identities(args: argparse.Namespace, fleet: FleetKeys | None) -> Identities:
    """Give the fleet's hosts and publishers but for revoked ones, and those that the person named. Raises UsageError."""
    enrolled = fleet.register if fleet else None
    hosts, publishers = (enrolled.hosts, enrolled.publishers) if enrolled else ((), ())
    revoked = {one.name for one in hosts if one.is_revoked} | {one.name for one in publishers if one.is_revoked}
    unwanted = revoked & {*args.host, *args.publisher}
    if unwanted:
        raise UsageError(
            f"broker-config: {', '.join(sorted(unwanted))}: revoked in the fleet; nothing was written.",
            hint="Enrol the host again, or leave the name out.",
        )
    return Identities(
        hosts=_once(*(one.name for one in hosts if not one.is_revoked), *args.host),
        controllers=_once(*(args.controller or [DEFAULT_CONTROLLER])),
        publishers=_once(*(one.name for one in publishers if not one.is_revoked), *args.publisher),
    )


def _once(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _files(args: argparse.Namespace, allowed: Iterable[Access], *, has_fleet: bool) -> list[_File]:
    folder = _FOLDERS[args.broker]
    certs = folder / "certs"
    site = Site(
        ca=args.ca or certs / "ca.pem",
        cert=args.cert or certs / "broker.pem",
        key=args.key or certs / "broker.key",
        listener=Listener.parse(args.listen),
    )
    if args.broker == "nats":
        _refuse(args, "crl", "acl", of="mosquitto")
        text = nats.configuration(site, allowed, store=args.store or _NATS_STORE)
        return [_File(folder / nats.CONF, text)]
    _refuse(args, "store", of="nats")
    acl = args.acl or folder / mosquitto.ACL
    crl = args.crl or (certs / keyring.CRL if has_fleet and args.ca is None else None)
    return [
        _File(folder / "conf.d" / mosquitto.CONF, mosquitto.configuration(site, acl=acl, crl=crl)),
        _File(acl, mosquitto.access_list(allowed)),
    ]


def _refuse(args: argparse.Namespace, *options: str, of: str) -> None:
    for option in options:
        if getattr(args, option) is not None:
            raise UsageError(
                f"broker-config {args.broker}: --{option} is for {of} alone; nothing was written.",
                hint=f"Leave it out. With {args.broker}, a certificate whose name is not listed is refused as it connects."
                if option == "crl"
                else "Leave it out.",
            )


def _write(folder: Path, written: Iterable[_File]) -> None:
    """Write each file whole or not at all, for the broker's user to read: there is no secret in them. Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in written:
            files.write(folder / file.path.name, file.text.encode(), mode=files.PUBLIC)
    except OSError as exc:
        raise UsageError(
            f"--out {folder}: {exc.filename or folder} cannot be written: {exc.strerror}.",
            hint="Name a folder that can be written to.",
        ) from exc


def _report(output: Output, out: Path | None, written: Iterable[_File]) -> None:
    if output.is_json:
        output.rows(
            {
                "kind": "file",
                "path": str(file.path),
                **({"text": file.text} if out is None else {"written": str(out / file.path.name)}),
            }
            for file in written
        )
    elif out is None:
        for file in written:
            output.line(f"# ----- {file.path}")
            for line in file.text.splitlines():
                output.line(line)


def _summary(broker: str, identities: Identities) -> str:
    return (
        f"{broker}: {len(identities.hosts)} hosts, controllers {', '.join(identities.controllers)}, "
        f"publishers {', '.join(identities.publishers) or 'none'}. Whoever is not named may do nothing."
    )


def _steps(args: argparse.Namespace, written: Iterable[_File], fleet: FleetKeys | None) -> Iterator[str]:
    """Tell how the files get to the broker, and how it takes them up."""
    yield "On the broker's machine, with these files copied there:"
    for file in written:
        yield f"  install -D -m 0644 {args.out / file.path.name} {file.path}"
    if fleet is not None and args.ca is None:
        certs = _FOLDERS[args.broker] / "certs"
        for name in (keyring.CA, "broker.pem", *([keyring.CRL] if args.broker == "mosquitto" else [])):
            yield f"  install -D -m 0644 {fleet.folder / name} {certs / name}"
        yield f"  install -D -m 0600 -o {args.broker} {fleet.folder / 'broker.key'} {certs / 'broker.key'}"
    if args.broker == "nats":
        yield f"  nats-server --config {_FOLDERS['nats'] / nats.CONF}     # the first time"
        yield "  nats-server --signal reload     # afterwards (SIGHUP)"
    else:
        yield "  systemctl restart mosquitto     # the first time, and after a change of paths or address"
        yield "  systemctl reload mosquitto      # after a change of names or of crl.pem (SIGHUP)"
