"""``kvmd inspect``."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

import aiofiles
import aiofiles.os

from kvmd.cli.output import human_size
from kvmd.core.image import HEAD_SIZE, check_format, inspect_head
from kvmd.errors import EmptySourceError, KvmdError, PoolMissingError
from kvmwire.codes import CODES, Exit
from kvmwire.events import ImageFormat


def run(arguments: argparse.Namespace) -> int:
    """Show what a file is, and why it would be refused."""
    size, head = asyncio.run(_read(arguments.file))
    shown: dict[str, object] = {"file": str(arguments.file), "size": size}
    code = Exit.DONE
    try:
        if size == 0:
            raise EmptySourceError(f"{arguments.file} has 0 bytes; refused.")
        image = inspect_head(head, size=size)
        shown |= {"format": image.format.value, "version": image.version, "virtual_size": image.virtual_size}
        check_format(image, ImageFormat.AUTO)
        shown["verdict"] = "accepted"
    except KvmdError as exc:
        shown |= {"verdict": "refused", "code": exc.code.value, "message": exc.message, "hint": exc.hint}
        code = CODES[exc.code].exit
    if arguments.json:
        print(json.dumps(shown))
    else:
        _show(shown)
    return code


async def _read(path: Path) -> tuple[int, bytes]:
    try:
        async with aiofiles.open(path, "rb") as file:
            head = await file.read(HEAD_SIZE)
        return (await aiofiles.os.stat(path)).st_size, head
    except OSError as exc:
        raise PoolMissingError(f"{path} cannot be read: {exc.strerror}.", hint="Name a file that can be read.") from exc


def _show(shown: dict[str, object]) -> None:
    for key, value in shown.items():
        if value is None:
            continue
        text = f"{value} ({human_size(value)})" if isinstance(value, int) and key.endswith("size") else str(value)
        print(f"{key.replace('_', ' '):<13} {text}")
