"""``kvmd inspect``: what a file is, and every reason why a host would refuse it."""

from __future__ import annotations

import argparse
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

from kvmd.cli.output import human_size
from kvmd.core.image import Facts, ImageHead, ImagePolicy, judge
from kvmd.errors import EmptySourceError, KvmdError, PoolMissingError
from kvmd.store.looking import image_of
from kvmwire.codes import CODES, Exit
from kvmwire.images import ImageFormat


def run(arguments: argparse.Namespace) -> int:
    """Show what a file is, and why it would be refused by a host whose policy is the default one."""
    path: Path = arguments.file
    size, allocated, image = _look(path)
    errors = _errors(path, size, image)
    code = CODES[errors[0].code].exit if errors else Exit.DONE
    shown = {"file": str(path), "size": size, "allocated": allocated, **_facts(image), **_verdict(errors)}
    if arguments.json:
        print(json.dumps(shown))
    else:
        _show(shown, image.facts)
    return code


def _look(path: Path) -> tuple[int, int, ImageHead]:
    """Give size, bytes on the disk, and what the file is. No file that it names is opened. Raises PoolMissingError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(fd)
            if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
                raise PoolMissingError(f"{path} is neither a file nor a disk.", hint="Name an image.")
            size = os.lseek(fd, 0, os.SEEK_END)
            return size, found.st_blocks * 512, image_of(fd, size)
        finally:
            os.close(fd)
    except OSError as exc:
        raise PoolMissingError(f"{path} cannot be read: {exc.strerror}.", hint="Name a file that can be read.") from exc


def _errors(path: Path, size: int, image: ImageHead) -> Sequence[KvmdError]:
    if size == 0:
        return [EmptySourceError(f"{path} has 0 bytes; refused.")]
    return [refusal.error for refusal in judge(image, ImageFormat.AUTO, policy=ImagePolicy())]


def _facts(image: ImageHead) -> dict[str, object]:
    facts = {key: value for key, value in asdict(image.facts).items() if key not in {"refusals", "needs"}}
    return {"format": image.format.value, "also": [one.value for one in image.also], **facts}


def _verdict(errors: Sequence[KvmdError]) -> dict[str, object]:
    """Give the first reason as every command does, and all of them as ``refusals``."""
    if not errors:
        return {"verdict": "accepted", "refusals": []}
    reasons = [{"code": one.code.value, "message": one.message, "hint": one.hint} for one in errors]
    return {"verdict": "refused", **reasons[0], "refusals": reasons}


def _show(shown: Mapping[str, object], facts: Facts) -> None:
    for key, value in shown.items():
        if not value or key in {"partitions", "refusals", "code", "message", "hint"}:
            continue
        is_size = isinstance(value, int) and key.rpartition("_")[2] in {"size", "allocated"}
        text = f"{value} ({human_size(cast('int', value))})" if is_size else _plain(value)
        print(f"{key.replace('_', ' '):<13} {text}")
    for partition in facts.partitions:
        place = f"{human_size(partition.size)} at {human_size(partition.start)}"
        print(f"{'partition':<13} {place}, {partition.kind} {partition.name}".rstrip())
    for reason in cast("Sequence[Mapping[str, str]]", shown["refusals"]):
        print(f"{reason['code']:<13} {reason['message']}\n{'':<13} {reason['hint']}")


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, cast("Sequence[object]", value)))
    return str(value)
