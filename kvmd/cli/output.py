"""What the commands of ``kvmd`` share in showing things."""

from __future__ import annotations

import argparse

from kvmd.errors import ConfigError
from kvmd.plugin import TlsFiles


def human_size(size: int | None) -> str:
    """Give a size as people read it: whole bytes below 1 KiB, else three digits and a binary unit."""
    if size is None:
        return "-"
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:  # noqa: PLR2004 - the step between binary units
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} PiB"


def tls_files(arguments: argparse.Namespace) -> TlsFiles:
    """Give the TLS files that were typed, tried once so that a wrong one is told before anything else. Raises ConfigError."""
    files = TlsFiles(arguments.ca, arguments.cert, arguments.key)
    try:
        files.context()
    except OSError as exc:
        raise ConfigError(
            f"--ca, --cert or --key cannot be used: {exc.strerror or exc}.", hint="Give PEM files that can be read."
        ) from exc
    return files
