"""Bytes to events and back. Whatever the bytes are, the answer is an event, a status or one coded refusal."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar, cast

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from kvmwire.codes import FailureCode, WireError
from kvmwire.events import (
    MAX_GENERATION,
    CommandData,
    CredentialData,
    DeployData,
    Event,
    EventData,
    RegisterData,
    type_of,
)
from kvmwire.names import EventId, is_event_id
from kvmwire.signing import Signature, read_signature
from kvmwire.status import (
    CredentialStatus,
    GcStatus,
    HostStatus,
    MachineStatus,
    ProbeStatus,
    Progress,
    Receipt,
    ReplicaStatus,
    Status,
)
from kvmwire.topics import (
    CommandTopic,
    CredentialStatusTopic,
    CredentialTopic,
    DeployTopic,
    EventTopic,
    GcTopic,
    HostTopic,
    MachineTopic,
    ProbeTopic,
    ProgressTopic,
    ReceiptTopic,
    RegisterTopic,
    ReplicaTopic,
    StatusTopic,
    Topics,
)

MAX_EVENT_SIZE = 256 * 1024
_MAX_DEPTH = 16
M = TypeVar("M", bound=BaseModel)
_SHOWN_ERRORS = 5


class Envelope(BaseModel):
    """CloudEvents 1.0, structured JSON. Attributes that are not known are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    specversion: str = Field(pattern=r"^1\.[0-9]+$")
    id: EventId
    source: str = Field(min_length=1, max_length=1024)
    type: str
    subject: str | None = Field(default=None, max_length=256)
    time: AwareDatetime | None = None
    datacontenttype: str | None = None
    generation: int | None = Field(default=None, ge=0, lt=MAX_GENERATION + 1)
    expires: AwareDatetime | None = None
    keyid: str | None = None
    signature: str | None = None
    data: dict[str, Any]


class EventRefusedError(WireError):
    """The payload is no acceptable event. ``event_id`` names it in its receipt."""

    def __init__(self, error: WireError, event_id: str) -> None:
        super().__init__(error.code, error.message, hint=error.hint)
        self.event_id = event_id


def bare_id(topic: str, payload: bytes) -> str:
    """Id of an event without one: SHA-256 of the topic's bytes followed by the payload's, in hexadecimal digits."""
    return hashlib.sha256(topic.encode() + payload).hexdigest()


def content_of(data: EventData) -> str:
    """SHA-256 of what the data asks for, whatever its order, spacing and spelled-out defaults."""
    return hashlib.sha256(canonical_json(data.model_dump(mode="json", exclude_defaults=True))).hexdigest()


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and without spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def decode_event(topics: Topics, topic: EventTopic, payload: bytes) -> Event:
    """Decode what arrived on an event's topic. Raises EventRefusedError, and nothing else."""
    text = topics.build(topic)
    event_id = bare_id(text, payload)
    try:
        value = parse_json_object(payload)
        if "specversion" not in value:
            return _event(topic, data=value, event_id=event_id)
        given = value.get("id")
        event_id = given if isinstance(given, str) and is_event_id(given) else event_id
        return _enveloped(topic, value, subject=text.removeprefix(topics.prefix + "/"))
    except WireError as exc:
        raise EventRefusedError(exc, event_id) from exc


def encode_event(topics: Topics, event: Event) -> bytes:
    """Encode an event as the envelope that ``decode_event`` reads. Raises WireError over the size cap."""
    envelope = Envelope(
        specversion="1.0",
        id=event.id,
        source=event.source,
        type=type_of(event.data).value,
        subject=topics.build(event.topic).removeprefix(topics.prefix + "/"),
        time=event.time,
        datacontenttype="application/json",
        generation=event.generation,
        expires=event.expires,
        data=event.data.model_dump(mode="json", exclude_defaults=True),
    )
    payload = canonical_json(envelope.model_dump(mode="json", exclude_none=True))
    _check_size(payload)
    return payload


def decode_status(topic: StatusTopic, payload: bytes) -> Status:
    """Decode what arrived on a status topic.

    Raises WireError; also where a name inside contradicts the topic: brokers guard topics, so only those can be trusted.
    """
    model: type[Status]
    match topic:
        case HostTopic():
            model = HostStatus
        case ProbeTopic():
            model = ProbeStatus
        case ReplicaTopic():
            model = ReplicaStatus
        case GcTopic():
            model = GcStatus
        case MachineTopic():
            model = MachineStatus
        case ReceiptTopic():
            model = Receipt
        case ProgressTopic():
            model = Progress
        case CredentialStatusTopic():
            model = CredentialStatus
    status = validate(model, parse_json_object(payload))
    _check_is_about(topic, status)
    return status


def encode_status(status: Status) -> bytes:
    """Encode a status as a JSON object without the fields that are not set."""
    return status.model_dump_json(exclude_none=True).encode()


def parse_json_object(payload: bytes) -> dict[str, Any]:
    """Parse strictly: UTF-8, one object, no key twice, no NaN, bounded size and depth. Raises WireError."""
    _check_size(payload)
    try:
        value: object = json.loads(payload.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        detail = "nested too deeply" if isinstance(exc, RecursionError) else _ascii(str(exc))
        raise WireError(FailureCode.EVENT_SCHEMA, f"payload: expected one JSON object in UTF-8; {detail}.") from exc
    if not isinstance(value, dict):
        raise WireError(FailureCode.EVENT_SCHEMA, f"payload: expected a JSON object, got {type(value).__name__}.")
    parsed = cast("dict[str, Any]", value)
    _check_values(parsed, depth=1)
    return parsed


def validate(model: type[M], value: Mapping[str, Any]) -> M:
    """Validate parsed JSON. Raises WireError, whose message names every field that is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        raise _readable(model.__name__, exc) from exc


def _enveloped(topic: EventTopic, value: dict[str, Any], *, subject: str) -> Event:
    envelope = validate(Envelope, value)
    signature = read_signature(value, subject=subject)
    event = _event(topic, data=envelope.data, event_id=envelope.id, envelope=envelope, signature=signature)
    if envelope.type != event.type.value:
        raise WireError(
            FailureCode.EVENT_SCHEMA,
            f"envelope: this topic carries {event.type.value}, got type {_ascii(envelope.type)}.",
        )
    return event


def _event(
    topic: EventTopic,
    *,
    data: dict[str, Any],
    event_id: str,
    envelope: Envelope | None = None,
    signature: Signature | None = None,
) -> Event:
    parsed = _parse_data(topic, data)
    return Event(
        id=event_id,
        topic=topic,
        data=parsed,
        content=content_of(parsed),
        source=envelope.source if envelope else "",
        is_bare=envelope is None,
        generation=envelope.generation if envelope else None,
        time=envelope.time if envelope else None,
        expires=envelope.expires if envelope else None,
        signature=signature,
    )


def _parse_data(topic: EventTopic, data: dict[str, Any]) -> EventData:
    """Validate the data; what the topic names need not be repeated inside, and must not be contradicted."""
    match topic:
        case RegisterTopic(template):
            return validate(RegisterData, _agreeing(data, "template", template))
        case DeployTopic(deployment):
            return validate(DeployData, _agreeing(data, "deployment", deployment))
        case CommandTopic():
            return validate(CommandData, data)
        case CredentialTopic(name):
            return validate(CredentialData, _agreeing(data, "credential", name))


def _agreeing(data: dict[str, Any], field: str, expected: str) -> dict[str, Any]:
    given = data.get(field, expected)
    if given != expected:
        raise WireError(
            FailureCode.EVENT_SCHEMA, f"{field}: the topic says {expected}, the data {_ascii(str(given)[:80])}."
        )
    return {**data, field: expected}


def _check_is_about(topic: StatusTopic, status: Status) -> None:
    """Compare the fields that topic and status share by name; an event's id is ``event`` in a receipt."""
    for field in dataclasses.fields(topic):
        name = "event" if field.name == "event_id" else field.name
        said, expected = getattr(status, name, None), getattr(topic, field.name)
        if said is not None and said != expected:
            raise WireError(
                FailureCode.EVENT_SCHEMA, f"{name}: the topic says {expected}, the status {_ascii(str(said))}."
            )


def _readable(model: str, error: ValidationError) -> WireError:
    code, hint, parts = FailureCode.EVENT_SCHEMA, None, list[str]()
    for one in error.errors(include_url=False, include_input=False)[:_SHOWN_ERRORS]:
        field = _ascii(".".join(str(part) for part in one["loc"]) or model)
        if one["type"] == "extra_forbidden":
            parts.append(f"{field}: unknown field")
            continue
        if one["type"] in set(FailureCode) and code is FailureCode.EVENT_SCHEMA:
            code, hint = FailureCode(one["type"]), one.get("ctx", {}).get("hint")
        parts.append(f"{field}: {_ascii(one['msg']).rstrip('.')}")
    return WireError(code, "; ".join(parts) + ".", hint=hint)


def _check_size(payload: bytes) -> None:
    if len(payload) > MAX_EVENT_SIZE:
        raise WireError(
            FailureCode.EVENT_SCHEMA, f"payload: at most {MAX_EVENT_SIZE} bytes are accepted, got {len(payload)}."
        )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("an object has the same key twice")
    return keys


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _check_values(value: Any, *, depth: int) -> None:
    """Refuse what JSON allows and our own re-encoding would not: lone surrogates, infinity, endless nesting."""
    if depth > _MAX_DEPTH:
        raise WireError(FailureCode.EVENT_SCHEMA, f"payload: nested deeper than {_MAX_DEPTH} levels.")
    match value:
        case str():
            if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
                raise WireError(FailureCode.EVENT_SCHEMA, "payload: a string holds half a surrogate pair.")
        case float() if value in {float("inf"), float("-inf")}:
            raise WireError(FailureCode.EVENT_SCHEMA, "payload: a number is too large.")
        case dict():
            for key, inner in cast("dict[str, Any]", value).items():
                _check_values(key, depth=depth)
                _check_values(inner, depth=depth + 1)
        case list():
            for inner in cast("Sequence[object]", value):
                _check_values(inner, depth=depth + 1)
        case _:
            pass


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()[:300]


__all__ = [
    "MAX_EVENT_SIZE",
    "Envelope",
    "EventRefusedError",
    "bare_id",
    "canonical_json",
    "content_of",
    "decode_event",
    "decode_status",
    "encode_event",
    "encode_status",
    "parse_json_object",
    "validate",
]
