"""JSON Schemas of all payloads, and the AsyncAPI document around them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from pydantic.json_schema import models_json_schema

from docs.refgen.channels import CHANNELS, PARAMETERS, Channel, all_models
from kvmwire.topics import DEFAULT_PREFIX, Verb

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_files() -> dict[str, str]:
    """Give one self-contained JSON Schema a model, by file name."""
    return {
        f"schemas/{model.__name__}.json": _json({"$schema": _DIALECT, **model.model_json_schema()})
        for model in all_models()
    }


def definitions() -> dict[str, Any]:
    """Give the schemas of all models and of what they are made of, by name."""
    _, together = models_json_schema([(model, "validation") for model in all_models()])
    found: dict[str, Any] = together["$defs"]
    return found


def asyncapi() -> str:
    """Give the AsyncAPI 3.0 document, written from the host's point of view."""
    return _json(
        {
            "asyncapi": "3.0.0",
            "info": {
                "title": "kvmd",
                "version": "1",
                "description": "What controllers and hosts tell each other over MQTT. Operations are those of a host."
                f" The prefix {DEFAULT_PREFIX} is a setting.",
                "license": {"name": "Apache-2.0"},
            },
            "defaultContentType": "application/json",
            "servers": {
                "broker": {
                    "host": "broker.example:8883",
                    "protocol": "secure-mqtt",
                    "description": "Any MQTT 3.1.1 or 5 broker; the address is an example.",
                }
            },
            "channels": {channel.key: _channel(channel) for channel in CHANNELS},
            "operations": dict(_operation(channel) for channel in CHANNELS if not channel.reserved),
            "components": {
                "schemas": _schemas(),
                "messages": {name: _message(name) for name in _message_names(CHANNELS)},
                "parameters": {name: _parameter(name) for name in PARAMETERS},
            },
        }
    )


def _channel(channel: Channel) -> dict[str, Any]:
    parameters = re.findall(r"{(\w+)}", channel.address)
    return {
        "address": channel.address,
        "description": channel.summary,
        "parameters": {name: {"$ref": f"#/components/parameters/{name}"} for name in parameters},
        "messages": {model.__name__: {"$ref": f"#/components/messages/{model.__name__}"} for model in channel.models},
    }


def _operation(channel: Channel) -> tuple[str, dict[str, Any]]:
    name = f"{channel.direction.value}{channel.key[0].upper()}{channel.key[1:]}"
    return name, {
        "action": channel.direction.value,
        "channel": {"$ref": f"#/channels/{channel.key}"},
        "summary": channel.summary,
        "messages": [{"$ref": f"#/channels/{channel.key}/messages/{model.__name__}"} for model in channel.models],
        "bindings": {"mqtt": {"qos": channel.qos, "retain": channel.retained, "bindingVersion": "0.2.0"}},
    }


def _message_names(channels: Iterable[Channel]) -> list[str]:
    return list(dict.fromkeys(model.__name__ for channel in channels for model in channel.models))


def _message(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "title": name,
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{name}"},
    }


def _parameter(name: str) -> dict[str, Any]:
    described: dict[str, Any] = {"description": PARAMETERS[name]}
    return {**described, "enum": [verb.value for verb in Verb]} if name == "verb" else described


def _schemas() -> dict[str, Any]:
    _, together = models_json_schema(
        [(model, "validation") for model in all_models()], ref_template="#/components/schemas/{model}"
    )
    found: dict[str, Any] = together["$defs"]
    return found


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
