"""The tables of several files, and the environment, laid over each other, each value with its origin."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

Key = tuple[str, ...]
"""Names of the tables, then of the value: ``("transfer", "sessions")``."""


@dataclass(frozen=True, slots=True)
class Given:
    """A value that somebody set; ``origin`` is a file's path or ``environment NAME``."""

    value: Any
    origin: str


Tree = dict[str, "Tree | Given"]


def read_toml(path: Path) -> dict[str, Any]:
    """Read one file. Raises ValueError that names it, also where it cannot be opened."""
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as exc:
        raise ValueError(f"{path}: cannot be read: {exc.strerror}.") from exc
    except UnicodeDecodeError as exc:
        raise ValueError(f"{path}: expected UTF-8 text, got other bytes at offset {exc.start}.") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ValueError(f"{path}: not TOML: {exc}.") from exc


def is_there(path: Path) -> bool:
    """Whether there is a file; one that only may not be looked at counts, so that reading it says why."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def drop_ins(path: Path) -> list[Path]:
    """Give the files ``<path>.d/*.toml`` in the order of their names, hidden ones left out.

    Raises ValueError where the folder is there and cannot be listed.
    """
    folder = path.with_name(path.name + ".d")
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise ValueError(f"{folder}: cannot be listed: {exc.strerror}.") from exc
    return [folder / name for name in names if name.endswith(".toml") and not name.startswith(".")]


def lay_over(tree: Tree, table: Mapping[str, Any], *, origin: str) -> None:
    """Put the table's values over those of the tree; tables are merged, everything else is replaced."""
    for name, value in table.items():
        if not isinstance(value, dict):
            tree[name] = Given(value, origin)
            continue
        below = tree.get(name)
        inner = cast("dict[str, Any]", value)
        if isinstance(below, dict):
            lay_over(below, inner, origin=origin)
        elif inner:
            fresh: Tree = {}
            tree[name] = fresh
            lay_over(fresh, inner, origin=origin)
        else:
            tree[name] = Given(inner, origin)


def nested(key: Key, value: Any) -> dict[str, Any]:
    """Give the tables that hold the value under its key."""
    for name in reversed(key):
        value = {name: value}
    return cast("dict[str, Any]", value)


def plain(tree: Tree) -> dict[str, Any]:
    """Give the values alone."""
    return {name: plain(node) if isinstance(node, dict) else node.value for name, node in tree.items()}


def origins(tree: Tree, prefix: Key = ()) -> dict[Key, str]:
    """Give the origin of every value that is set."""
    found: dict[Key, str] = {}
    for name, node in tree.items():
        key = (*prefix, name)
        if isinstance(node, dict):
            found |= origins(node, key)
        else:
            found[key] = node.origin
    return found
