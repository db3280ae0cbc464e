"""The published JSON Schemas accept what the code sends, and refuse what the code refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from jsonschema import Draft202012Validator

from kvmwire.codec import encode_event, encode_status
from kvmwire.events import CommandData, CredentialData, DeployData, Event, RegisterData
from kvmwire.status import Status
from kvmwire.topics import StatusTopic, Topics
from tests.wire.strategies import events, statuses

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "reference" / "schemas"
NAMES = {
    RegisterData: "RegisterEvent",
    DeployData: "DeployEvent",
    CommandData: "CommandEvent",
    CredentialData: "CredentialEvent",
}


def schema(name: str) -> Any:
    return json.loads((SCHEMAS / f"{name}.json").read_text())


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(schema(name))


VALIDATORS = {path.stem: validator(path.stem) for path in SCHEMAS.glob("*.json")}


@pytest.mark.parametrize("name", sorted(VALIDATORS))
def test_every_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(schema(name))
    assert schema(name)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@given(events())
@settings(deadline=None, max_examples=50)
def test_events_that_are_sent_fit_their_schema(event: Event) -> None:
    envelope = json.loads(encode_event(Topics(), event))
    VALIDATORS[NAMES[type(event.data)]].validate(envelope)
    VALIDATORS["Envelope"].validate(envelope)


@given(statuses())
@settings(deadline=None, max_examples=50)
def test_statuses_that_are_sent_fit_their_schema(pair: tuple[StatusTopic, Status]) -> None:
    VALIDATORS[type(pair[1]).__name__].validate(json.loads(encode_status(pair[1])))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RegisterData", {"template": "deb12", "check_sum": "x"}),
        ("RegisterData", {"template": "a/b"}),
        ("RegisterData", {"template": "deb12", "size": 0}),
        ("RegisterData", {"template": "deb12", "format": "vdi"}),
        ("DeployData", {"deployment": "web"}),
        ("DeployData", {"deployment": "web", "template": "deb12", "priority": 1001}),
        ("DeployData", {"deployment": "web", "template": "deb12", "hosts": {"labels": {}}}),
        ("RegisterEvent", {"specversion": "1.0", "id": "1", "source": "a", "type": "io.kvmd.deploy.v1", "data": {}}),
        ("Receipt", {"event": "1", "host": "kvm01", "outcome": "lost"}),
    ],
)
def test_what_the_code_refuses_does_not_fit(name: str, value: dict[str, Any]) -> None:
    assert not VALIDATORS[name].is_valid(value)
