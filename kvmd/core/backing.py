"""Whether what an image names as its backing file is a certain volume, by the names alone."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

_FILE = "file:"
_JSON = "json:"


@dataclass(frozen=True, slots=True)
class Dependents:
    """Paths of a pool's files: ``disks`` read from the volume in question; ``unread`` may, and could not be looked into, with why."""

    disks: tuple[str, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict[str, str])


def backs(reference: str, *, folder: str, path: str) -> bool:
    """Whether an image in ``folder`` that names ``reference`` reads from the volume at ``path``.

    References are QEMU's: a path, absolute or from the image's folder, with ``file:`` before it or not, or a ``json:`` description.
    """
    return posixpath.normpath(path) in targets(reference, folder=folder)


def targets(reference: str, *, folder: str) -> frozenset[str]:
    """Give the absolute paths that such a reference may mean."""
    return frozenset(posixpath.normpath(posixpath.join(folder, one)) for one in _paths(reference))


def _paths(reference: str) -> Iterator[str]:
    if reference.startswith(_JSON):
        try:
            yield from _filenames(json.loads(reference.removeprefix(_JSON)))
        except (ValueError, RecursionError):
            return
    else:
        yield reference.removeprefix(_FILE)


def _filenames(description: object) -> Iterator[str]:
    """Give every file that a description of a block device names, however deep."""
    if isinstance(description, str):
        yield description.removeprefix(_FILE)
    elif isinstance(description, dict):
        for value in cast("dict[str, object]", description).values():
            yield from _filenames(value)
    elif isinstance(description, list):
        for value in cast("list[object]", description):
            yield from _filenames(value)
