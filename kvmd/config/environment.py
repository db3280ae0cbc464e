"""Settings from ``KVMD_*`` variables: which variable means which key, and how its text becomes a value."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_origin

from pydantic import BaseModel

from kvmd.config.layers import Key
from kvmd.config.settings import POOLS, Settings

PREFIX = "KVMD_"
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def known_keys(model: type[BaseModel] = Settings, prefix: Key = ()) -> dict[Key, Any]:
    """Give the keys that can be set, with their types. ``labels`` and ``pools`` are one each: their names are free."""
    keys: dict[Key, Any] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys |= known_keys(kind, (*prefix, name))
        else:
            keys[*prefix, name] = kind
    return keys


def pool_keys() -> dict[Key, Any]:
    """Give the keys of a pool's table, with their types: those of every kind of pool."""
    return {key: kind for model in POOLS for key, kind in known_keys(model).items()}


@dataclass(frozen=True, slots=True)
class _Variable:
    key: Key
    kind: Any


@dataclass(frozen=True, slots=True)
class FromVariable:
    """A value that a variable sets; ``origin`` names the variable."""

    key: Key
    value: Any
    origin: str


def from_environment(environ: Mapping[str, str], *, pools: Collection[str]) -> tuple[list[FromVariable], list[str]]:
    """Give what ``KVMD_*`` variables set, and a text for each that cannot be used.

    ``KVMD_TRANSFER_SESSIONS`` and ``KVMD_TRANSFER__SESSIONS`` are the same key. ``pools`` are the names that the files
    define: ``KVMD_POOLS_FAST_PATH`` means the pool ``fast``, ``Fast`` or ``FAST``, whichever there is.
    """
    given: list[FromVariable] = []
    problems: list[str] = []
    seen: dict[Key, str] = {}
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        variable = _variable(name, pools)
        if variable is None:
            problems.append(f"environment {name}: unknown variable{_suggestion(name)}")
        elif variable.key in seen:
            problems.append(f"environment {name}: sets the same as {seen[variable.key]}; remove one of them.")
        elif not environ[name].isprintable():
            problems.append(f"environment {name}: expected printable UTF-8 text.")
        else:
            seen[variable.key] = name
            given.append(FromVariable(variable.key, _value(environ[name], variable.kind), f"environment {name}"))
    return given, problems


def _names(key: Key) -> tuple[str, str]:
    upper = [part.upper() for part in key]
    return PREFIX + "_".join(upper), PREFIX + "__".join(upper)


def _variable(name: str, pools: Collection[str]) -> _Variable | None:
    for key, kind in known_keys().items():
        if name in _names(key):
            return _Variable(key, kind)
    label = _between(name, "KVMD_LABELS_", "")
    if label:
        return _Variable(("labels", label.lower() if label.isupper() else label), str)
    for key, kind in pool_keys().items():
        pool = _between(name, "KVMD_POOLS_", f"_{key[0].upper()}")
        if pool:
            return _Variable(("pools", _pool_name(pool, pools), *key), kind)
    return None


def _between(name: str, start: str, end: str) -> str:
    if not name.startswith(start) or not name.endswith(end) or len(name) <= len(start) + len(end):
        return ""
    middle = name[len(start) : len(name) - len(end)]
    return middle.removeprefix("_").removesuffix("_") if end else middle.removeprefix("_")


def _pool_name(text: str, pools: Collection[str]) -> str:
    if text in pools:
        return text
    folded = {pool.upper().replace("-", "_").replace(".", "_"): pool for pool in sorted(pools, reverse=True)}
    return folded.get(text.upper(), text.lower() if text.isupper() else text)


def _suggestion(name: str) -> str:
    known = [_names(key)[0] for key in known_keys() if key[0] != "pools"]
    near = difflib.get_close_matches(name, [*known, "KVMD_POOLS_DEFAULT_PATH"], n=1)
    return f"; did you mean {near[0]}?" if near else "."


def _value(text: str, kind: Any) -> Any:
    """Turn the text into what TOML would have given; what cannot be turned stays text, and validation says so."""
    kind = get_origin(kind) or kind
    if kind is bool:
        return _BOOLEANS.get(text.strip().lower(), text)
    if kind in {int, float}:
        return _number(text)
    if kind is tuple:
        return (
            _json(text) if text.lstrip().startswith("[") else [part.strip() for part in text.split(",") if part.strip()]
        )
    if kind is dict:
        return _json(text)
    return text


def _number(text: str) -> Any:
    for parse in (int, float):
        try:
            return parse(text)
        except ValueError:
            continue
    return text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
