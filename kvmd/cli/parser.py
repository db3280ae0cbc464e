"""The arguments of ``kvmd``; the reference is generated from here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Protocol

from kvmwire import __version__
from kvmwire.codes import WireError
from kvmwire.digest import Digest
from kvmwire.headers import check_header_name, check_header_value
from kvmwire.images import ChecksumOf, ImageFormat
from kvmwire.source import SourceUrl


class Commands(Protocol):
    """What ``add_subparsers`` gives, for which argparse has no public name."""

    def add_parser(self, name: str, *, help: str, description: str) -> argparse.ArgumentParser:  # noqa: A002 - its name there
        """Add one command."""
        ...


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; the chosen command's module in this package stands in ``module``."""
    parser = argparse.ArgumentParser(
        prog="kvmd", description="Virtual-machine images from their origin straight into primary storage."
    )
    parser.add_argument("--version", action="version", version=f"kvmd {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_fetch(commands)
    _add_probe(commands)
    _add_inspect(commands)
    _add_gc(commands)
    _add_config(commands)
    _add_enroll(commands)
    _add(
        commands,
        "inspector",
        text="look at one image with qemu-img, for kvmd-inspector.socket; standard input is the socket",
        module="inspector",
    )
    return parser


def _add(commands: Commands, name: str, *, text: str, module: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(module=module)
    return parser


def _add_run(commands: Commands) -> None:
    parser = _add(commands, "run", text="run the daemon of this host", module="daemon")
    _add_config_file(parser)


def _add_fetch(commands: Commands) -> None:
    parser = _add(
        commands, "fetch", text="download one image with the daemon's engine, without a broker", module="fetch"
    )
    parser.add_argument(
        "urls", metavar="URL", nargs="+", type=_url, help="source of the image; all of them are mirrors"
    )
    parser.add_argument("destination", metavar="DEST", help="file to write, or a folder to write it into")
    parser.add_argument(
        "--checksum",
        metavar="{ALG}HEX",
        type=_checksum,
        help="promised digest, such as {SHA-256}9f86..., or the URL of a file that has it",
    )
    parser.add_argument(
        "--checksum-of",
        metavar="WHAT",
        type=ChecksumOf,
        choices=list(ChecksumOf),
        default=ChecksumOf.SERVED,
        help="what a checksum is of where the file is compressed: served (the file itself, default) or content",
    )
    parser.add_argument(
        "--format",
        metavar="F",
        type=ImageFormat,
        choices=list(ImageFormat),
        default=ImageFormat.AUTO,
        help="auto, qcow2, raw, iso, vmdk or vhdx (default: auto)",
    )
    _add_request(parser)


def _add_probe(commands: Commands) -> None:
    parser = _add(commands, "probe", text="show what a host would see at each URL", module="probe")
    parser.add_argument("urls", metavar="URL", nargs="+", type=_url, help="source to look at")
    _add_request(parser)


def _add_inspect(commands: Commands) -> None:
    parser = _add(
        commands, "inspect", text="show an image's format and sizes, and why it would be refused", module="inspect"
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="image to look at")
    _add_json(parser)


def _add_gc(commands: Commands) -> None:
    parser = _add(
        commands,
        "gc",
        text="delete what nobody needs in the pools of this host, while its daemon is stopped, or tell what would go",
        module="garbage",
    )
    parser.add_argument("--dry-run", action="store_true", help="delete nothing, only tell; the daemon may run")
    parser.add_argument("--pool", metavar="NAME", action="append", help="only in this pool; may be repeated")
    _add_config_file(parser)
    _add_json(parser)


def _add_config(commands: Commands) -> None:
    parser = _add(commands, "config", text="show the effective settings and where each came from", module="config")
    parser.add_argument("--check", action="store_true", help="also look at the files and folders that they name")
    _add_config_file(parser)
    _add_json(parser)


def _add_enroll(commands: Commands) -> None:
    parser = _add(
        commands,
        "enroll",
        text="let this host join a fleet: install a bundle, or make a request for one",
        module="enroll",
    )
    parser.add_argument(
        "bundle", nargs="?", metavar="BUNDLE", type=Path, help="what `kvmctl enroll` wrote: a tar or a folder"
    )
    parser.add_argument(
        "--request", action="store_true", help="make the keys here, and a request for `kvmctl enroll --sign`"
    )
    parser.add_argument("--host", metavar="NAME", help="with --request: name of this host (default: the machine's)")
    parser.add_argument(
        "--into",
        metavar="DIR",
        type=Path,
        default=Path("/etc/kvmd"),
        help="folder of the settings (default: /etc/kvmd)",
    )
    parser.add_argument(
        "--replace", action="store_true", help="also over newer files, other settings, keys in use, or another host's"
    )
    _add_json(parser)


def _add_request(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--header",
        metavar="'N: V'",
        action="append",
        default=[],
        type=_header,
        help="HTTP header to send, to the URLs' own origins only; may be repeated",
    )
    parser.add_argument("--ca", metavar="FILE", default="", help="CA certificates to trust for these URLs")
    parser.add_argument("--cert", metavar="FILE", default="", help="client certificate for these URLs")
    parser.add_argument("--key", metavar="FILE", default="", help="private key of the client certificate")
    _add_config_file(parser)
    _add_json(parser)


def _add_config_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings file (default: /etc/kvmd/kvmd.toml)")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a line on standard output")


def _url(text: str) -> SourceUrl:
    try:
        return SourceUrl.parse(text)
    except WireError as exc:
        raise argparse.ArgumentTypeError(f"{exc.code}: {exc.message}") from exc


def _checksum(text: str) -> Digest | SourceUrl:
    if "://" in text:
        return _url(text)
    try:
        return Digest.parse(text)
    except WireError as exc:
        raise argparse.ArgumentTypeError(f"{exc.code}: {exc.message} {exc.hint}") from exc


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError("expected 'Name: value'")
    try:
        return check_header_name(name.strip()), check_header_value(value.strip())
    except WireError as exc:
        raise argparse.ArgumentTypeError(f"{exc.code}: {exc.message}") from exc
