"""The AsyncAPI document hangs together: no meta-schema is at hand, so that the rules used are checked one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from kvmwire.topics import CommandTopic, EventTopic, ProgressTopic, ReceiptTopic, StatusTopic, Topic, Topics, Verb

DOCUMENT: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parents[2] / "docs" / "reference" / "asyncapi.json").read_text()
)


def references(value: Any) -> Iterator[str]:
    match value:
        case {"$ref": str(target)}:
            yield target
        case dict():
            for inner in value.values():
                yield from references(inner)
        case list():
            for inner in value:
                yield from references(inner)
        case _:
            pass


def resolve(reference: str) -> Any:
    value: Any = DOCUMENT
    for level in reference.removeprefix("#/").split("/"):
        value = value[level]
    return value


def topic_of(channel: dict[str, Any]) -> Topic | None:
    """Parse the address with each parameter's name, or first allowed value, in its place."""
    address = channel["address"]
    for name, parameter in channel["parameters"].items():
        address = address.replace(f"{{{name}}}", resolve(parameter["$ref"]).get("enum", [name])[0])
    return Topics().parse(address)


def test_it_is_an_asyncapi_3_document() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= DOCUMENT["info"].keys()
    assert all({"host", "protocol"} <= server.keys() for server in DOCUMENT["servers"].values())


def test_every_reference_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert len(found) > 30
    for reference in found:
        assert reference.startswith("#/"), reference
        assert isinstance(resolve(reference), dict), reference


def test_every_kind_of_topic_has_its_channel() -> None:
    topics = [topic_of(channel) for channel in DOCUMENT["channels"].values()]
    assert None not in topics
    assert {type(topic) for topic in topics} == {*get_args(EventTopic), *get_args(StatusTopic)}
    assert len({channel["address"] for channel in DOCUMENT["channels"].values()}) == len(topics)


def test_every_parameter_in_an_address_is_described_and_no_other() -> None:
    for channel in DOCUMENT["channels"].values():
        assert re.findall(r"{(\w+)}", channel["address"]) == list(channel["parameters"])
    assert DOCUMENT["components"]["parameters"]["verb"]["enum"] == [verb.value for verb in Verb]


def test_every_operation_uses_messages_of_its_channel() -> None:
    for name, operation in DOCUMENT["operations"].items():
        channel = operation["channel"]["$ref"]
        assert operation["action"] in {"send", "receive"}
        assert operation["messages"], name
        assert all(one["$ref"].startswith(f"{channel}/messages/") for one in operation["messages"])


def test_a_host_receives_events_and_sends_statuses() -> None:
    for operation in DOCUMENT["operations"].values():
        topic = topic_of(resolve(operation["channel"]["$ref"]))
        assert (operation["action"] == "receive") == isinstance(topic, get_args(EventTopic))


def test_only_commands_receipts_and_progress_are_not_retained() -> None:
    for operation in DOCUMENT["operations"].values():
        topic = topic_of(resolve(operation["channel"]["$ref"]))
        mqtt = operation["bindings"]["mqtt"]
        assert mqtt["retain"] is not isinstance(topic, CommandTopic | ReceiptTopic | ProgressTopic)
        assert mqtt["qos"] == (0 if isinstance(topic, ProgressTopic) else 1)


@pytest.mark.parametrize("name", sorted(DOCUMENT["components"]["messages"]))
def test_every_message_has_a_payload_with_its_name(name: str) -> None:
    message = DOCUMENT["components"]["messages"][name]
    assert message["contentType"] == "application/json"
    assert resolve(message["payload"]["$ref"])["title"] == message["name"] == name
