from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmwire.codec import MAX_EVENT_SIZE, bare_id, canonical_json, content_of, decode_event, encode_event
from kvmwire.codes import FailureCode, WireError
from kvmwire.events import CommandData, DeployData, Event, EventType, RegisterData
from kvmwire.topics import CommandTopic, DeployTopic, EventTopic, RegisterTopic, Topics, Verb
from tests.wire.strategies import events

TOPICS = Topics()
REGISTER = RegisterTopic("deb12")
URL = "https://example.org/deb12.qcow2"
HEX = "a" * 64


def decode(data: dict[str, Any], topic: EventTopic = REGISTER) -> Event:
    return decode_event(TOPICS, topic, json.dumps(data).encode())


@given(events())
def test_what_is_encoded_is_decoded_again(event: Event) -> None:
    assert decode_event(TOPICS, event.topic, encode_event(TOPICS, event)) == event


@given(events())
def test_an_encoded_event_is_a_cloud_event(event: Event) -> None:
    envelope = json.loads(encode_event(TOPICS, event))
    assert envelope["specversion"] == "1.0"
    assert envelope["type"] in set(EventType)
    assert envelope["subject"] == TOPICS.build(event.topic).removeprefix("kvmd/v1/")
    assert envelope["datacontenttype"] == "application/json"


def test_an_event_over_the_cap_is_not_encoded() -> None:
    big = RegisterData(template="deb12", sources=tuple(f"https://example.org/{n}{'a' * 8000}" for n in range(60)))
    event = Event(id="1", topic=REGISTER, data=big, content=content_of(big), source="test", is_bare=False)
    with pytest.raises(WireError, match=f"at most {MAX_EVENT_SIZE} bytes"):
        encode_event(TOPICS, event)


def test_what_a_person_types_is_accepted() -> None:
    payload = b'{"template":"deb12","url":"https://example.org/a","checksum":"{sha256}' + HEX.upper().encode() + b'"}'
    event = decode_event(TOPICS, REGISTER, payload)
    assert event.is_bare
    assert event.generation is None
    assert event.source == ""
    assert event.id == hashlib.sha256(b"kvmd/v1/register/deb12" + payload).hexdigest()
    assert event.id == bare_id("kvmd/v1/register/deb12", payload)
    assert event.data == RegisterData(template="deb12", url="https://example.org/a", checksum="{SHA-256}" + HEX)


def test_the_id_of_a_bare_event_differs_by_topic_and_by_spacing() -> None:
    data = b'{"url":"https://example.org/a"}'
    ids = {
        decode_event(TOPICS, REGISTER, data).id,
        decode_event(TOPICS, REGISTER, data + b"\n").id,
        decode_event(TOPICS, RegisterTopic("deb13"), data).id,
        decode_event(Topics("lab"), REGISTER, data).id,
    }
    assert len(ids) == 4


def test_what_the_topic_names_need_not_be_repeated() -> None:
    assert decode({"url": URL}).data == RegisterData(template="deb12", url=URL)
    deployed = decode({"template": "deb12"}, DeployTopic("web", "kvm01"))
    assert deployed.data == DeployData(deployment="web", template="deb12")


def test_a_command_may_be_empty() -> None:
    event = decode({}, CommandTopic(Verb.ANNOUNCE))
    assert (event.data, event.type) == (CommandData(), EventType.COMMAND)


@given(events(), st.randoms(use_true_random=False))
def test_content_does_not_depend_on_order_or_spacing(event: Event, random: Any) -> None:
    envelope = json.loads(encode_event(TOPICS, event))
    again = decode_event(TOPICS, event.topic, json.dumps(shuffled(envelope, random), indent=3).encode())
    assert again.content == event.content
    assert again == event


def shuffled(value: Any, random: Any) -> Any:
    match value:
        case dict():
            keys = list(value)
            random.shuffle(keys)
            return {key: shuffled(value[key], random) for key in keys}
        case list():
            return [shuffled(inner, random) for inner in value]
        case _:
            return value


@given(events())
def test_content_does_not_depend_on_spelled_out_defaults(event: Event) -> None:
    envelope = json.loads(encode_event(TOPICS, event))
    envelope["data"] = event.data.model_dump(mode="json")
    assert decode_event(TOPICS, event.topic, json.dumps(envelope).encode()).content == event.content


@pytest.mark.parametrize(
    "other",
    [
        {"url": URL + "2"},
        {"url": URL, "format": "raw"},
        {"url": URL, "checksum": "{SHA-256}" + HEX},
        {"url": URL, "ensure": "absent"},
        {"url": URL, "labels": {"zone": "lab"}},
    ],
)
def test_content_differs_when_something_else_is_asked_for(other: dict[str, Any]) -> None:
    assert decode(other).content != decode({"url": URL}).content


def test_the_same_checksum_is_the_same_content_however_it_is_spelled() -> None:
    spelled = [f"{{SHA-256}}{HEX}", f"{{sha256}}{HEX}", f"{{Sha-256}}{HEX.upper()}"]
    assert len({decode({"url": URL, "checksum": text}).content for text in spelled}) == 1


def enveloped(**changes: Any) -> dict[str, Any]:
    envelope = {
        "specversion": "1.0",
        "id": "b4f1",
        "source": "ci",
        "type": "io.kvmd.register.v1",
        "generation": 7,
        "data": {"url": URL},
    }
    return {**envelope, **changes}


def test_unknown_attributes_of_the_envelope_are_ignored() -> None:
    plain = decode(enveloped())
    assert decode(enveloped(traceparent="00-ab", dataschema="https://example.org", extra={"a": [1]})) == plain
    assert (plain.id, plain.generation, plain.source, plain.is_bare) == ("b4f1", 7, "ci", False)


def test_a_later_minor_version_of_cloud_events_is_read() -> None:
    assert decode(enveloped(specversion="1.1")).id == "b4f1"


def test_a_record_inside_a_deployment_is_read_whole() -> None:
    event = decode({"template": {"template": "deb12", "url": URL}}, DeployTopic("web"))
    assert isinstance(event.data, DeployData)
    assert event.data.template == RegisterData(template="deb12", url=URL)
    assert (event.data.template_name, event.data.volume) == ("deb12", "deb12")


def test_canonical_json_has_sorted_keys_and_no_spaces() -> None:
    assert canonical_json({"b": [1, "\u00e9"], "a": None}) == '{"a":null,"b":[1,"\u00e9"]}'.encode()


def test_canonical_json_has_no_form_for_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_a_code_inside_the_data_becomes_the_code_of_the_refusal() -> None:
    with pytest.raises(WireError, match=r"url: source URL http://127\.1/a") as caught:
        decode({"url": "http://127.1/a"})
    assert caught.value.code is FailureCode.URL_INVALID
