"""``kvmctl sign``: for publishers that only have ``mosquitto_pub``."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from controller.commands.invocation import Invocation, Parsers, add_parser, duration
from controller.errors import ControlError, UsageError
from controller.keys.keyring import load_signing_key
from controller.keys.signer import Signer
from controller.publish import COMMAND_LIFE, make_event, next_generation, now_utc
from kvmwire.codec import MAX_EVENT_SIZE, EventRefusedError, decode_event, encode_event
from kvmwire.codes import Exit, FailureCode, WireError
from kvmwire.events import Event
from kvmwire.topics import CommandTopic, CredentialTopic, DeployTopic, EventTopic, RegisterTopic, Topics


def add(parsers: Parsers) -> None:
    """Add the parser."""
    parser = add_parser(parsers, "sign", sign, "sign an event for mosquitto_pub: reads it, prints it in one line")
    parser.add_argument("file", metavar="FILE", help="an event, or its data alone; - reads standard input")
    parser.add_argument("--topic", required=True, help="where it will be published, such as kvmd/v1/register/deb12")
    parser.add_argument("--key", type=Path, metavar="FILE", help="Ed25519 key (PEM), such as a publisher's signing.key")
    parser.add_argument(
        "--expires",
        type=duration,
        metavar="TIME",
        help="hosts refuse it 5 minutes afterwards (clocks differ); 1h for commands, else never",
    )


async def sign(invocation: Invocation) -> Exit:
    """Print the signed event."""
    args, settings = invocation.arguments, invocation.settings
    topics = settings.mqtt.topics
    topic = _topic(topics, args.topic)
    signer = await asyncio.to_thread(lambda: Signer(load_signing_key(args.key)) if args.key else Signer.of(settings))
    if signer.key is None:
        raise UsageError(
            "sign: there is no key to sign with.", hint="Name one with --key, or make the fleet's: kvmctl keys init"
        )
    event = _event(topics, topic, await asyncio.to_thread(_read, args.file), life=args.expires)
    try:
        signed = signer.sign(encode_event(topics, event))
    except WireError as exc:
        raise ControlError.of(exc) from exc
    invocation.output.line(signed.decode())
    return Exit.DONE


def _topic(topics: Topics, text: str) -> EventTopic:
    match topics.parse(text) or topics.parse(f"{topics.prefix}/{text}"):
        case RegisterTopic() | DeployTopic() | CommandTopic() | CredentialTopic() as topic:
            return topic
        case _:
            raise UsageError(
                f"--topic {text[:200]!a}: no event is published there, under the prefix {topics.prefix}.",
                hint=f"Such as {topics.prefix}/register/NAME, {topics.prefix}/deploy/all/NAME or register/NAME.",
            )


def _read(name: str) -> bytes:
    try:
        if name == "-":
            return sys.stdin.buffer.read(MAX_EVENT_SIZE + 1)
        with Path(name).open("rb") as file:
            return file.read(MAX_EVENT_SIZE + 1)
    except OSError as exc:
        raise UsageError(
            f"sign: {name} cannot be read: {exc.strerror}.", hint="Name a file with the event, or - for stdin."
        ) from exc


def _event(topics: Topics, topic: EventTopic, payload: bytes, *, life: timedelta | None) -> Event:
    """Complete what was given: a signed event needs an end or a generation, or it could be repeated for ever."""
    now = now_utc()
    try:
        given = decode_event(topics, topic, payload)
    except EventRefusedError as exc:
        raise ControlError(f"sign: {exc.message} Nothing was signed.", hint=exc.hint, code=exc.code) from exc
    is_command = isinstance(topic, CommandTopic)
    generation = None if is_command else next_generation(now)
    event = make_event(topic, given.data, generation=generation, now=now) if given.is_bare else given
    if event.generation is None:
        event = replace(event, generation=generation)
    if life is not None:
        return replace(event, expires=now + life)
    if is_command and event.expires is None:
        return replace(event, expires=now + COMMAND_LIFE)
    if event.expires is not None and event.expires <= now:
        raise ControlError(
            f"sign: the event expired at {event.expires}; nothing was signed.",
            hint="Give it a later `expires`, or --expires TIME.",
            code=FailureCode.EVENT_EXPIRED,
        )
    return event
