"""``kvmd enroll``."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from kvmd.config.settings import machine_name
from kvmd.enrolment.checking import Bundle, check_bundle
from kvmd.enrolment.installing import Installed, install
from kvmd.enrolment.reading import read_bundle
from kvmd.enrolment.requesting import request
from kvmd.errors import ConfigError
from kvmwire.codes import Exit
from kvmwire.names import is_name


def run(arguments: argparse.Namespace) -> int:
    """Install a bundle, or make keys and a request for one."""
    if arguments.request:
        return _request(arguments)
    if arguments.bundle is None:
        raise ConfigError(
            "enroll: expected a bundle or --request.", hint="kvmd enroll BUNDLE, or kvmd enroll --request"
        )
    folder: Path = arguments.into
    bundle = check_bundle(read_bundle(arguments.bundle), now=datetime.now(UTC))
    done = install(bundle, folder, replace=arguments.replace)
    if arguments.json:
        row = {"host": bundle.host, "written": [str(folder / name) for name in done.written]}
        print(
            json.dumps(
                {
                    **row,
                    "settings_kept": done.settings_kept,
                    "unused": done.unused,
                    "not_after": str(bundle.certificate.not_valid_after_utc),
                }
            )
        )
    else:
        _tell(bundle, done, folder)
    return Exit.DONE


def _tell(bundle: Bundle, done: Installed, folder: Path) -> None:
    until = f"{bundle.certificate.not_valid_after_utc:%Y-%m-%d}"
    print(f"{bundle.host} is enrolled: {', '.join(done.written)} in {folder}; its certificate is good until {until}.")
    if done.settings_kept:
        print(f"{folder}/kvmd.toml was there and was kept; --replace puts the bundle's in its place.", file=sys.stderr)
    if done.unused:
        print(f"NOT IN FORCE, as the settings do not say so: {', '.join(done.unused)}.", file=sys.stderr)
        print(f"{folder}/kvmd.toml: see the bundle's, and add them, or take it with --replace.", file=sys.stderr)
    print("Next:", file=sys.stderr)
    print("  kvmd config --check", file=sys.stderr)
    print("  systemctl enable kvmd; systemctl restart kvmd", file=sys.stderr)


def _request(arguments: argparse.Namespace) -> int:
    if arguments.bundle is not None:
        raise ConfigError("enroll: a bundle and --request at once.", hint="First the request, later its bundle.")
    host: str = arguments.host or machine_name()
    if not is_name(host):
        raise ConfigError(
            f"--host {host[:80]!a} is no name.", hint="Use letters, digits, '.', '_' and '-'; at most 63."
        )
    path, content = request(host, arguments.into, replace=arguments.replace)
    if arguments.json:
        print(content.decode(), end="")
    else:
        print(f"{path}: the request of {host}. No private key is in it.")
        print("Next, on the controller, with a copy of it:", file=sys.stderr)
        print(f"  kvmctl enroll --sign {path.name} --out {host}.tar", file=sys.stderr)
        print(f"then here: kvmd enroll {host}.tar", file=sys.stderr)
    return Exit.DONE
