"""``kvmctl broker-config``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from controller.brokerconfig import mosquitto, nats
from controller.brokerconfig.access import DEFAULT_CONTROLLER, Access, Identities, accesses
from controller.brokerconfig.site import Listener, Site
from controller.commands.invocation import Invocation, Parsers, add_hosts, add_parser, name
from controller.errors import UsageError
from controller.output import Output
from kvmwire.codes import Exit

_FOLDERS = {"mosquitto": PurePosixPath("/etc/mosquitto"), "nats": PurePosixPath("/etc/nats")}
_NATS_STORE = PurePosixPath("/var/lib/nats")
_PATHS = {
    "--ca": "CA certificates of the fleet; certs/ca.pem in the broker's folder",
    "--cert": "the broker's certificate; certs/broker.pem in the broker's folder",
    "--key": "its key; certs/broker.key in the broker's folder",
    "--crl": "mosquitto: list of revoked certificates (PEM), signed by the CA; none",
    "--acl": f"mosquitto: the access list; {_FOLDERS['mosquitto'] / mosquitto.ACL}",
    "--store": f"nats: folder of the messages; {_NATS_STORE}",
}
_MODE = 0o644  # there is no secret in them, and the broker's user reads them again at each reload


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
    add_hosts(parser, help_text="a host that may connect; repeat it")
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
        help="common name of a certificate that may register and deploy, and nothing else",
    )
    parser.add_argument("--listen", default=str(Listener()), metavar="ADDRESS:PORT", help=f"{Listener()}")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the files there; else they are printed")
    paths = parser.add_argument_group("paths on the broker's machine")
    for option, meaning in _PATHS.items():
        metavar = "FOLDER" if option == "--store" else "FILE"
        paths.add_argument(option, type=PurePosixPath, metavar=metavar, help=meaning)


async def broker_config(invocation: Invocation) -> Exit:
    """Print the files, or write them and say what to do with them."""
    args, output = invocation.arguments, invocation.output
    identities = Identities(
        hosts=tuple(args.host),
        controllers=tuple(args.controller or [DEFAULT_CONTROLLER]),
        publishers=tuple(args.publisher),
    )
    files = _files(args, accesses(invocation.settings.mqtt.topics, identities))
    if args.out is not None:
        await asyncio.to_thread(_write, args.out, files)
    _report(output, args.out, files)
    if not output.is_json:
        _advise(output, args.broker, args.out, files, identities)
    return Exit.DONE


def _files(args: argparse.Namespace, allowed: tuple[Access, ...]) -> list[_File]:
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
    return [
        _File(folder / "conf.d" / mosquitto.CONF, mosquitto.configuration(site, acl=acl, crl=args.crl)),
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


def _write(folder: Path, files: list[_File]) -> None:
    """Write each file whole or not at all. Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            _replace(folder / file.path.name, file.text)
    except OSError as exc:
        raise UsageError(
            f"--out {folder}: {exc.filename or folder} cannot be written: {exc.strerror}.",
            hint="Name a folder that can be written to.",
        ) from exc


def _replace(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), _MODE)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def _report(output: Output, out: Path | None, files: list[_File]) -> None:
    if output.is_json:
        output.rows(
            {
                "kind": "file",
                "path": str(file.path),
                **({"text": file.text} if out is None else {"written": str(out / file.path.name)}),
            }
            for file in files
        )
    elif out is None:
        for file in files:
            output.line(f"# ----- {file.path}")
            for line in file.text.splitlines():
                output.line(line)


def _advise(output: Output, broker: str, out: Path | None, files: list[_File], identities: Identities) -> None:
    """Tell a person who may connect, and how the files get to the broker."""
    output.say(
        f"{broker}: {len(identities.hosts)} hosts, controllers {', '.join(identities.controllers)}, "
        f"publishers {', '.join(identities.publishers) or 'none'}. Whoever is not named may do nothing."
    )
    if out is None:
        return
    output.say("On the broker's machine:")
    for file in files:
        output.say(f"  install -m 0644 {out / file.path.name} {file.path}")
    if broker == "nats":
        output.say(f"  nats-server --config {files[0].path}     # the first time")
        output.say("  nats-server --signal reload             # afterwards (SIGHUP)")
    else:
        output.say("  systemctl restart mosquitto             # the first time, and after a change of paths or address")
        output.say("  systemctl reload mosquitto              # after a change of names alone (SIGHUP)")
