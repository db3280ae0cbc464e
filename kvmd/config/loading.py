"""From files and environment to checked settings, with the origin of each; all errors are told at once."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from kvmd.config.environment import from_environment, known_keys, pool_keys
from kvmd.config.fields import UNQUOTED, KeyFiles
from kvmd.config.layers import Key, Tree, drop_ins, is_there, lay_over, nested, origins, plain, read_toml
from kvmd.config.settings import Settings
from kvmd.errors import ConfigError
from kvmwire.source import redact

DEFAULT_FILE = Path("/etc/kvmd/kvmd.toml")
DEFAULT_ORIGIN = "default"

_HINT = "Correct what is named above; `kvmd config` shows every setting and where it came from."
_LONGEST_SHOWN = 80
_TEXTS = {
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "path_type": "expected a path",
    "tuple_type": "expected a list",
    "dict_type": "expected a table",
    "model_type": "expected a table",
    "model_attributes_type": "expected a table",
    "missing": "is missing",
    "union_tag_invalid": "expected type = 'directory' or type = 'libvirt'",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """The effective settings. ``origins``: dotted key -> ``default``, a file's path or ``environment NAME``."""

    settings: Settings
    origins: Mapping[str, str]


class Described(NamedTuple):
    """One setting as it is shown: the value as TOML would write it."""

    key: str
    value: str
    origin: str


def load(path: Path | None, environ: Mapping[str, str]) -> Loaded:
    """Read the settings; None means the default file, which may be absent.

    Later ones win: defaults, the file, its drop-ins by name, the environment. Raises one ConfigError that names every
    file and key that cannot be used.
    """
    tree, problems = _read(path)
    given, more = from_environment(environ, pools=_pool_names(tree))
    for one in given:
        lay_over(tree, nested(one.key, one.value), origin=one.origin)
    problems += more
    set_by = origins(tree)
    try:
        text = json.dumps(plain(tree), default=str)
        settings = Settings.model_validate_json(text, strict=True, context=_key_files(path, environ))
    except ValidationError as exc:
        problems += [_text(error, set_by) for error in exc.errors(include_url=False)]
        raise _config_error(problems) from exc
    if problems:
        raise _config_error(problems)
    keys = (key for key, _ in _leaves(settings.model_dump(mode="json")))
    return Loaded(settings, {".".join(key): _origin(key, set_by) for key in keys})


def describe(loaded: Loaded) -> list[Described]:
    """Give every effective setting with its value and its origin. No setting holds a secret."""
    return [
        Described(".".join(key), _toml(value), loaded.origins[".".join(key)])
        for key, value in _leaves(loaded.settings.model_dump(mode="json"))
    ]


def _read(path: Path | None) -> tuple[Tree, list[str]]:
    """Lay the files over each other; what cannot be read is told and left out."""
    tree: Tree = {}
    problems: list[str] = []
    file = path if path is not None else DEFAULT_FILE
    files = [file] if path is not None or is_there(file) else []
    try:
        files += drop_ins(file)
    except ValueError as exc:
        problems.append(str(exc))
    for one in files:
        try:
            lay_over(tree, read_toml(one), origin=str(one))
        except ValueError as exc:
            problems.append(str(exc))
    return tree, problems


def _key_files(path: Path | None, environ: Mapping[str, str]) -> KeyFiles:
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    return KeyFiles((path or DEFAULT_FILE).absolute().parent, Path(credentials) if credentials else None)


def _pool_names(tree: Tree) -> list[str]:
    pools = tree.get("pools")
    return [*pools, "default"] if isinstance(pools, dict) else ["default"]


def _config_error(problems: list[str]) -> ConfigError:
    if len(problems) == 1:
        return ConfigError(problems[0], hint=_HINT)
    lines = "".join(f"\n  {problem}" for problem in problems)
    return ConfigError(f"{len(problems)} settings cannot be used:{lines}", hint=_HINT)


def _text(error: ErrorDetails, set_by: Mapping[Key, str]) -> str:
    key = _key(error)
    name = ".".join(key) or "settings"
    place = f"{_origin(key[:-1] if error['type'] == 'missing' else key, set_by)}: {name}"
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown key{_suggestion(key)}"
    expected = _TEXTS.get(error["type"]) or error["msg"].removeprefix("Value error, ").replace(
        "Input should be", "expected"
    )
    if error["type"] in {UNQUOTED, "missing"}:
        return f"{place}: {expected}."
    return f"{place}: {expected}, got {_shown(error['input'])}."


def _key(error: ErrorDetails) -> Key:
    """Give the key that the error is about, without what pydantic adds: of a pool, its type."""
    key = tuple(str(part) for part in error["loc"] if part != "[key]")
    return (*key[:2], *key[3:]) if key[:1] == ("pools",) and key[2:3] in {("directory",), ("libvirt",)} else key


def _origin(key: Key, set_by: Mapping[Key, str]) -> str:
    """Give who set the key, a table around it, or something inside of it."""
    for length in range(len(key), 0, -1):
        if key[:length] in set_by:
            return set_by[key[:length]]
    inside = sorted({origin for other, origin in set_by.items() if other[: len(key)] == key})
    return ", ".join(inside) or DEFAULT_ORIGIN


def _suggestion(key: Key) -> str:
    if key[:1] == ("pools",):
        known = {other[-1]: (*key[:-1], *other) for other in pool_keys()}
        if key[-1] in known:
            return "; a pool of this type has none."
    else:
        every = {*known_keys(), *(other[:1] for other in known_keys())}
        known = {other[-1]: other for other in sorted(every, key=lambda other: other[:-1] == key[:-1])}
    near = difflib.get_close_matches(key[-1], known, n=1)
    return f"; did you mean {'.'.join(known[near[0]])}?" if near else "."


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, str) and ("@" in value or "://" in value) and redact(value) != value:
        return f"{json.dumps(redact(value))} after user information and query were left out here"
    text = json.dumps(value, default=str)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


def _leaves(table: Mapping[str, Any], prefix: Key = ()) -> list[tuple[Key, Any]]:
    found: list[tuple[Key, Any]] = []
    for name, value in table.items():
        key = (*prefix, name)
        if isinstance(value, dict) and value:
            found += _leaves(cast("dict[str, Any]", value), key)
        else:
            found.append((key, cast("Any", value)))
    return found


def _toml(value: Any) -> str:
    return '""' if value is None else json.dumps(value, ensure_ascii=False)
