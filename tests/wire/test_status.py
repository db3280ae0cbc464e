from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given

from kvmwire.codec import decode_status, encode_status
from kvmwire.codes import FailureCode, WireError
from kvmwire.status import HostState, HostStatus, ProbeStatus, Progress, ReplicaState, SourceProbe, Status, Verdict
from kvmwire.topics import CredentialStatusTopic, HostTopic, ProgressTopic, ReceiptTopic, StatusTopic
from tests.wire.strategies import statuses


@given(statuses())
def test_what_is_encoded_is_decoded_again(pair: tuple[StatusTopic, Status]) -> None:
    topic, status = pair
    assert decode_status(topic, encode_status(status)) == status


@given(statuses())
def test_fields_that_are_not_set_are_not_sent(pair: tuple[StatusTopic, Status]) -> None:
    assert None not in json.loads(encode_status(pair[1])).values()


def with_news(value: Any) -> Any:
    match value:
        case dict():
            return {**{key: with_news(inner) for key, inner in value.items()}, "of_a_newer_host": {"x": [1]}}
        case list():
            return [with_news(inner) for inner in value]
        case _:
            return value


@given(statuses())
def test_fields_that_a_newer_host_adds_are_ignored(pair: tuple[StatusTopic, Status]) -> None:
    topic, status = pair
    value = json.loads(encode_status(status))
    labels = value.pop("labels", None)  # a mapping of the user's own keys, where nothing is unknown
    value = with_news(value)
    if labels is not None:
        value["labels"] = labels
    assert decode_status(topic, json.dumps(value).encode()) == status


def test_a_credentials_status_is_about_the_credential_of_its_topic() -> None:
    status = b'{"credential": "token", "state": "installed", "generation": 1, "since": "2026-01-01T00:00:00Z"}'
    with pytest.raises(WireError, match="credential"):
        decode_status(CredentialStatusTopic("kvm01", "ca"), status)


@pytest.mark.parametrize(
    ("payload", "wrong"),
    [
        (b"", "payload"),
        (b"[]", "payload"),
        (b"{}", "state: Field required"),
        (b'{"host": "a/b", "state": "online"}', "host"),
        (b'{"host": "kvm01", "state": "asleep"}', "state"),
        (b'{"host": "kvm01", "state": "online", "since": "2026-01-01T00:00:00"}', "since"),
    ],
)
def test_a_wrong_status_is_refused_by_field(payload: bytes, wrong: str) -> None:
    with pytest.raises(WireError, match=wrong) as caught:
        decode_status(HostTopic("kvm01"), payload)
    assert caught.value.code is FailureCode.EVENT_SCHEMA


@pytest.mark.parametrize(
    ("topic", "payload", "wrong"),
    [
        (HostTopic("kvm02"), b'{"host":"kvm01","state":"online"}', "host: the topic says kvm02, the status kvm01"),
        (
            ReceiptTopic("kvm01", "e1"),
            b'{"event":"e2","host":"kvm01","outcome":"accepted","topic":"t","time":"2030-01-01T00:00:00Z"}',
            "event: the topic says e1",
        ),
    ],
)
def test_a_status_that_contradicts_its_topic_is_refused(topic: StatusTopic, payload: bytes, wrong: str) -> None:
    with pytest.raises(WireError, match=wrong):
        decode_status(topic, payload)


def test_a_last_will_needs_no_more_than_host_and_state() -> None:
    status = decode_status(HostTopic("kvm01"), b'{"host":"kvm01","state":"offline"}')
    assert status == HostStatus(host="kvm01", state=HostState.OFFLINE)


def test_a_download_of_unknown_size_has_progress() -> None:
    status = Progress(size=None, done=5, bytes_per_second=1)
    assert decode_status(ProgressTopic("kvm01", "default", "deb12"), encode_status(status)) == status


def test_bytes_of_a_server_that_are_no_text_do_not_stop_a_status() -> None:
    probe = SourceProbe(url="https://example.org/a", reachable=True, seconds=0.1, etag='"\udcff\u00e9"')
    status = ProbeStatus(
        template="deb12", generation=1, verdict=Verdict.GOOD, sources=(probe,), checked=datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert json.loads(encode_status(status))["sources"][0]["etag"] == '"?\u00e9"'


def test_no_state_is_both_settled_and_running() -> None:
    settled = {state.value for state in ReplicaState if state.is_settled}
    running = {state.value for state in ReplicaState if state.is_running}
    assert settled == {"ready", "failed", "cancelled", "absent"}
    assert running == {"probing", "downloading", "verifying", "committing", "removing"}
    assert not settled & running
