from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmwire.codec import MAX_EVENT_SIZE, Envelope, EventRefusedError, bare_id, decode_event
from kvmwire.codes import FailureCode
from kvmwire.events import CommandData, DeployData, Event, RegisterData
from kvmwire.names import is_event_id
from kvmwire.topics import CommandTopic, CredentialTopic, DeployTopic, EventTopic, RegisterTopic, Topics, Verb
from tests.wire.strategies import event_topics

TOPICS = Topics()
REGISTER = RegisterTopic("deb12")
DEPLOY = DeployTopic("web")
URL = "https://example.org/deb12.qcow2"
DIGEST = "{SHA-256}" + "a" * 64


def refusal(payload: bytes | dict[str, Any], topic: EventTopic = REGISTER) -> EventRefusedError:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    with pytest.raises(EventRefusedError) as caught:
        decode_event(TOPICS, topic, raw)
    assert_usable(caught.value)
    return caught.value


def assert_usable(error: EventRefusedError) -> None:
    """Check that a receipt can be made of it and sent."""
    assert error.message.isascii()
    assert 0 < len(error.message) < 2000
    assert error.hint.encode()
    assert is_event_id(error.event_id)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
FIELDS = sorted(
    RegisterData.model_fields.keys()
    | DeployData.model_fields.keys()
    | CommandData.model_fields.keys()
    | Envelope.model_fields.keys()
)
near_events = st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=6)


@given(event_topics, st.binary(max_size=300))
def test_arbitrary_bytes_are_an_event_or_one_refusal(topic: EventTopic, payload: bytes) -> None:
    assert_event_or_refusal(topic, payload)


@given(
    event_topics,
    json_values | near_events | st.fixed_dictionaries({"specversion": st.just("1.0"), "data": near_events}),
)
@settings(max_examples=300)
def test_arbitrary_json_is_an_event_or_one_refusal(topic: EventTopic, value: Any) -> None:
    assert_event_or_refusal(topic, json.dumps(value).encode())


def assert_event_or_refusal(topic: EventTopic, payload: bytes) -> None:
    try:
        event = decode_event(TOPICS, topic, payload)
    except EventRefusedError as exc:
        assert_usable(exc)
    else:
        assert isinstance(event, Event)
        assert event.topic == topic


BAD_PAYLOADS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "JSON object"),
    "no JSON": (b"hello", "JSON object"),
    "no UTF-8": (b'{"url": "\xff"}', "UTF-8"),
    "UTF-16": ('{"url": "x"}'.encode("utf-16"), "UTF-8"),
    "a byte order mark": (b'\xef\xbb\xbf{"url": "x"}', "BOM"),
    "a list": (b"[]", "got list"),
    "a string": (b'"x"', "got str"),
    "null": (b"null", "got NoneType"),
    "NaN": (b'{"size": NaN}', "NaN is not JSON"),
    "infinity": (b'{"size": -Infinity}', "-Infinity is not JSON"),
    "a number over every limit": (b'{"size": 1e999}', "too large"),
    "a number of many digits": (b'{"size": ' + b"9" * 5000 + b"}", "JSON object"),
    "the same key twice": (b'{"url": "a", "url": "b"}', "same key twice"),
    "the same key twice inside": (b'{"labels": {"a": "b", "a": "c"}}', "same key twice"),
    "the same key twice, once escaped": (b'{"url": "a", "\\u0075rl": "b"}', "same key twice"),
    "17 levels": (b'{"labels":' + b"[" * 16 + b"]" * 16 + b"}", "deeper than 16"),
    "100,000 levels": (b'{"a":' * 40_000 + b"1" + b"}" * 40_000, "deep"),
    "half a surrogate pair": (b'{"description": "\\ud800"}', "surrogate"),
    "half a surrogate pair as key": (b'{"\\udc00": 1}', "surrogate"),
    "text after the object": (b"{} {}", "Extra data"),
    "a trailing comma": (b'{"url": "a",}', "JSON object"),
    "one byte over the cap": (b"{" + b" " * (MAX_EVENT_SIZE - 1) + b"}", f"at most {MAX_EVENT_SIZE} bytes"),
    "1 MiB": (b'{"description": "' + b"a" * 2**20 + b'"}', f"at most {MAX_EVENT_SIZE} bytes"),
}


@pytest.mark.parametrize(("payload", "message"), BAD_PAYLOADS.values(), ids=BAD_PAYLOADS)
def test_a_payload_that_is_no_json_object_is_refused(payload: bytes, message: str) -> None:
    error = refusal(payload)
    assert error.code is FailureCode.EVENT_SCHEMA
    assert message in error.message
    assert error.event_id == bare_id("kvmd/v1/register/deb12", payload)


def test_a_payload_of_exactly_the_cap_is_read() -> None:
    payload = json.dumps({"url": URL}).encode()
    assert decode_event(TOPICS, REGISTER, payload + b" " * (MAX_EVENT_SIZE - len(payload))).is_bare


BAD_REGISTERS: list[tuple[dict[str, Any], FailureCode, str]] = [
    ({}, FailureCode.EVENT_SCHEMA, "expected `url` or `sources`"),
    ({"url": URL, "check_sum": DIGEST}, FailureCode.EVENT_SCHEMA, "check_sum: unknown field"),
    ({"url": URL, "a\u00e4\n": 1}, FailureCode.EVENT_SCHEMA, "unknown field"),
    ({"url": URL, "template": "deb13"}, FailureCode.EVENT_SCHEMA, "template: the topic says deb12, the data deb13"),
    ({"url": URL, "template": None}, FailureCode.EVENT_SCHEMA, "template: the topic says deb12"),
    ({"url": URL, "checksum": "sha256:abc"}, FailureCode.CHECKSUM_FORMAT, "checksum: expected"),
    ({"url": URL, "checksum": "{hint}{message}"}, FailureCode.CHECKSUM_FORMAT, "checksum"),
    ({"url": "http://user:s3cret@h/a"}, FailureCode.URL_INVALID, "url: source URL http://h/a"),
    ({"sources": [URL, "http://127.1/"]}, FailureCode.URL_INVALID, "sources.1: source URL"),
    ({"sources": [URL] * 65}, FailureCode.EVENT_SCHEMA, "sources"),
    ({"url": URL, "headers": {"Range": "s3cret"}}, FailureCode.HEADER_FORBIDDEN, "header Range"),
    ({"url": URL, "headers": {"X": "s3cret\r\n"}}, FailureCode.HEADER_FORBIDDEN, "headers.X"),
    ({"url": URL, "headers": {"X": ["s3cret"]}}, FailureCode.EVENT_SCHEMA, "headers.X"),
    ({"url": URL, "size": 0}, FailureCode.EVENT_SCHEMA, "size"),
    ({"url": URL, "size": 2**63}, FailureCode.EVENT_SCHEMA, "size"),
    ({"url": URL, "size": "big"}, FailureCode.EVENT_SCHEMA, "size"),
    ({"url": URL, "format": "vdi"}, FailureCode.EVENT_SCHEMA, "format"),
    ({"url": URL, "check": ["a/b"]}, FailureCode.EVENT_SCHEMA, "check"),
    ({"url": URL, "credentials": ["../x"]}, FailureCode.EVENT_SCHEMA, "credentials.0"),
    ({"url": URL, "labels": {"a b": "c"}}, FailureCode.EVENT_SCHEMA, "labels"),
    ({"url": URL, "ensure": "gone"}, FailureCode.EVENT_SCHEMA, "ensure"),
]


@pytest.mark.parametrize(("data", "code", "message"), BAD_REGISTERS)
def test_a_wrong_register_event_is_refused_by_field(data: dict[str, Any], code: FailureCode, message: str) -> None:
    error = refusal(data)
    assert (error.code, message in error.message) == (code, True), error.message
    assert "s3cret" not in error.message + error.hint


BAD_DEPLOYS: list[tuple[dict[str, Any], FailureCode, str]] = [
    ({}, FailureCode.EVENT_SCHEMA, "template"),
    ({"template": "a/b"}, FailureCode.EVENT_SCHEMA, "template"),
    ({"template": 5}, FailureCode.EVENT_SCHEMA, "template"),
    ({"template": "deb12", "deployment": "db"}, FailureCode.EVENT_SCHEMA, "deployment: the topic says web"),
    ({"template": "deb12", "pools": "fast"}, FailureCode.EVENT_SCHEMA, "pools: unknown field"),
    ({"template": {"template": "deb12", "url": URL, "x": 1}}, FailureCode.EVENT_SCHEMA, "x: unknown field"),
    ({"template": {"template": "deb12", "url": "file"}}, FailureCode.URL_INVALID, "url: source URL file"),
    ({"template": {"template": "deb12", "ensure": "absent"}}, FailureCode.EVENT_SCHEMA, "ensure: absent"),
    ({"template": "deb12", "hosts": "kvm01"}, FailureCode.EVENT_SCHEMA, "hosts"),
    ({"template": "deb12", "hosts": {"labels": {}}}, FailureCode.EVENT_SCHEMA, "hosts"),
    ({"template": "deb12", "hosts": ["kvm01", "#"]}, FailureCode.EVENT_SCHEMA, "hosts"),
    ({"template": "deb12", "deadline": "2026-01-01T00:00:00"}, FailureCode.EVENT_SCHEMA, "deadline"),
    ({"template": "deb12", "priority": 1001}, FailureCode.EVENT_SCHEMA, "priority"),
    ({"template": "deb12", "rate_limit": -1}, FailureCode.EVENT_SCHEMA, "rate_limit"),
    (
        {"template": "deb12", "machine": {"name": "vm", "cpu": 2}},
        FailureCode.EVENT_SCHEMA,
        "machine.cpu: unknown field",
    ),
]


@pytest.mark.parametrize(("data", "code", "message"), BAD_DEPLOYS)
def test_a_wrong_deploy_event_is_refused_by_field(data: dict[str, Any], code: FailureCode, message: str) -> None:
    error = refusal(data, DEPLOY)
    assert (error.code, message in error.message) == (code, True), error.message


GOOD_ENVELOPE: dict[str, Any] = {
    "specversion": "1.0",
    "id": "b4f1",
    "source": "ci",
    "type": "io.kvmd.register.v1",
    "data": {"url": URL},
}
BAD_ENVELOPES: list[tuple[dict[str, Any], str]] = [
    ({"specversion": "0.3"}, "specversion"),
    ({"specversion": 1}, "specversion"),
    ({"source": ""}, "source"),
    ({"type": "io.kvmd.deploy.v1"}, "this topic carries io.kvmd.register.v1, got type io.kvmd.deploy.v1"),
    ({"type": "io.kvmd.register.v2"}, "got type io.kvmd.register.v2"),
    ({"data": [1]}, "data"),
    ({"data": None}, "data"),
    ({"generation": -1}, "generation"),
    ({"generation": 2**63}, "generation"),
    ({"generation": "newest"}, "generation"),
    ({"time": "yesterday"}, "time"),
    ({"expires": "2026-01-01T00:00:00"}, "expires"),
    ({"data": {"url": URL, "typo": 1}}, "typo: unknown field"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ENVELOPES)
def test_a_wrong_envelope_is_refused_under_its_own_id(change: dict[str, Any], message: str) -> None:
    error = refusal({**GOOD_ENVELOPE, **change})
    assert error.code is FailureCode.EVENT_SCHEMA
    assert message in error.message
    assert error.event_id == "b4f1"


@pytest.mark.parametrize("event_id", ["a/b", "#", "", 5, None, "a" * 129, "\u00e4"])
def test_an_id_that_is_no_topic_level_is_refused_under_the_id_of_the_payload(event_id: object) -> None:
    payload = json.dumps({**GOOD_ENVELOPE, "id": event_id}).encode()
    error = refusal(payload)
    assert "id: " in error.message
    assert error.event_id == bare_id("kvmd/v1/register/deb12", payload)


@pytest.mark.parametrize("missing", ["id", "source", "type", "data"])
def test_what_the_envelope_lacks_is_named(missing: str) -> None:
    envelope = {key: value for key, value in GOOD_ENVELOPE.items() if key != missing}
    assert f"{missing}: Field required" in refusal(envelope).message


def test_a_command_with_an_unknown_field_is_refused() -> None:
    assert "templates: unknown field" in refusal({"templates": "x"}, CommandTopic(Verb.CANCEL)).message


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({}, "anchors"),
        ({"anchors": "PEM"}, "origins"),
        ({"anchors": "PEM", "origins": []}, "origins"),
        ({"anchors": "PEM", "origins": ["https://a.example"], "trust": {"keys": []}}, "trust"),
        ({"trust": {"keys": [{"name": "x", "public": "AAAA", "roles": ["deploy"]}]}}, "public"),
        ({"credential": "other", "ensure": "absent"}, "credential"),
        ({"anchor": "PEM"}, "anchor: unknown field"),
    ],
)
def test_a_credential_that_holds_nothing_or_is_for_nobody_is_refused(data: dict[str, Any], named: str) -> None:
    error = refusal(data, CredentialTopic("ca"))
    assert error.code is FailureCode.EVENT_SCHEMA
    assert named in error.message


def test_a_credential_for_an_unreadable_origin_is_refused() -> None:
    error = refusal({"anchors": "PEM", "origins": ["images.example"]}, CredentialTopic("ca"))
    assert error.code is FailureCode.CREDENTIAL_INVALID
