"""The page about the settings, from their models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from controller.config import Settings as ControllerSettings
from docs.refgen.markdown import NOTICE, Schema, code, default, in_words, meaning, table
from kvmd.config import Settings as HostSettings

_HEADER = ("key", "type", "default", "meaning", "environment")
_MADE_WHEN_READ = {
    ("KVMD", "host"): "the machine's host name",
    ("KVMD", "pools.NAME.path"): 'required; without any pool: `pools.default.path = "/var/lib/libvirt/images"`',
    ("KVMCTL", "state_dir"): "`$XDG_STATE_HOME/kvmd`, else `~/.local/state/kvmd`; for root `/var/lib/kvmd-controller`",
}


def settings_page() -> str:
    """Give ``settings.md``."""
    return (
        NOTICE + "# Settings\n\n"
        "Files are TOML; the part of a key before the dot is the table. An unknown key is an error. The environment wins "
        "over the files.\n\n"
        "## kvmd\n\n"
        "`/etc/kvmd/kvmd.toml` (another with `--config FILE`), then `FILE.d/*.toml` in the order of their names.\n\n"
        + _settings_table(HostSettings, "KVMD")
        + "\n## kvmctl\n\n"
        "The first of: `--config FILE`, `$KVMCTL_CONFIG`, `~/.config/kvmd/kvmctl.toml`, `/etc/kvmd/kvmctl.toml`.\n\n"
        + _settings_table(ControllerSettings, "KVMCTL")
    )


def _settings_table(model: type[BaseModel], variable: str) -> str:
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    return table(_HEADER, _rows(schema, definitions, key=(), variable=variable))


def _rows(
    schema: Schema, definitions: Mapping[str, Schema], *, key: tuple[str, ...], variable: str
) -> Iterator[tuple[str, ...]]:
    """Give one row a key; tables are walked into, those with names that the user chooses too."""
    for name, one in schema["properties"].items():
        here = (*key, name)
        many: Any = one.get("additionalProperties")
        if "$ref" in one and "properties" in _target(one, definitions):
            yield from _rows(_target(one, definitions), definitions, key=here, variable=variable)
        elif many and "oneOf" in many:
            yield from _variants(many["oneOf"], definitions, key=(*here, "NAME"), variable=variable)
        elif many and "$ref" in many:
            yield from _rows(_target(many, definitions), definitions, key=(*here, "NAME"), variable=variable)
        else:
            dotted = ".".join(here)
            yield (
                code(dotted),
                in_words(one, definitions),
                _MADE_WHEN_READ.get((variable, dotted), default(one)),
                meaning(one),
                code("_".join((variable, *(part.upper() for part in here)))),
            )


def _variants(
    variants: list[Schema], definitions: Mapping[str, Schema], *, key: tuple[str, ...], variable: str
) -> Iterator[tuple[str, ...]]:
    """Give one row a key of any variant of a table: the first one's, with the types of all."""
    rows: dict[str, tuple[str, ...]] = {}
    for one in variants:
        for row in _rows(_target(one, definitions), definitions, key=key, variable=variable):
            first = rows.setdefault(row[0], row)
            if row[1] not in first[1]:
                rows[row[0]] = (first[0], f"{first[1]}, {row[1]}", *first[2:])
    yield from rows.values()


def _target(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    return definitions[schema["$ref"].rpartition("/")[2]]
