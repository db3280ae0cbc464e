"""``kvmctl register`` and ``kvmctl unregister``."""

from __future__ import annotations

import random
from typing import Any

from controller import views
from controller.commands.invocation import (
    Invocation,
    Parsers,
    add_parser,
    add_waiting,
    build,
    byte_count,
    header,
    name,
    no_host,
    pair,
)
from controller.errors import UnreachableError, UsageError
from controller.outcome import Standing, exit_of, probe_standing
from controller.publish import Sent, known_generation, known_template, now_utc, publish, register_event
from controller.session import Session, open_session
from controller.waiting import detaching, wait_settled
from kvmwire.codes import Exit
from kvmwire.events import Ensure, RegisterData
from kvmwire.headers import is_likely_secret
from kvmwire.images import ChecksumOf, ImageFormat
from kvmwire.topics import RegisterTopic

_WORDS = {"any", "all", "none"}


def add(parsers: Parsers) -> None:
    """Add the two parsers."""
    parser = add_parser(parsers, "register", register, "tell the hosts where a template is and how to know it")
    parser.add_argument("name", type=name, metavar="NAME", help="the template's name")
    parser.add_argument("urls", nargs="+", metavar="URL", help="its sources; all hold the same content")
    parser.add_argument("--checksum", metavar="{ALG}HEX", help="such as {SHA-256}9f86d0...")
    parser.add_argument(
        "--checksum-of",
        choices=[one.value for one in ChecksumOf],
        help="what it is of where the file is compressed: served (the file itself; default) or content",
    )
    parser.add_argument("--format", choices=[one.value for one in ImageFormat], help="auto where it is not given")
    parser.add_argument(
        "--header", action="append", type=header, default=[], metavar="'N: V'", help="plain HTTP header, no secret"
    )
    parser.add_argument(
        "--credential", action="append", type=name, default=[], metavar="NAME", help="a credential of the hosts"
    )
    parser.add_argument("--size", type=byte_count, metavar="BYTES", help="of the file, such as 600M")
    parser.add_argument("--label", action="append", type=pair, default=[], metavar="K=V", help="of the template")
    parser.add_argument("--description", default="", help="for people")
    parser.add_argument(
        "--check",
        action="append",
        type=name,
        default=[],
        metavar="any|all|none|HOST",
        help="who checks the sources; all by default",
    )
    add_waiting(parser, "the hosts that check have said what they found")
    parser = add_parser(parsers, "unregister", unregister, "forget a template; replicas stay where they are")
    parser.add_argument("name", type=name, metavar="NAME", help="the template's name")


async def register(invocation: Invocation) -> Exit:
    """Publish the template; with --wait show what the hosts found at its sources."""
    args, output = invocation.arguments, invocation.output
    record = build(RegisterData, _values(args))  # refuse before anything is connected
    if record.checksum is None:
        output.say("without --checksum nobody can tell whether the content is right; hosts may refuse it")
    elif record.checksum != args.checksum:
        output.say(f"checksum read as {record.checksum}")
    for secret in filter(is_likely_secret, record.headers):
        output.say(
            f"--header {secret}: everybody who can read the broker reads its value. Secrets go out sealed: "
            f"kvmctl credential add CREDENTIAL --for ORIGIN --header '{secret}'; "
            f"then kvmctl register {args.name} ... --credential CREDENTIAL"
        )
    topics = invocation.settings.mqtt.topics
    wanted = topics.host_filters() + topics.register_filters(args.name) + topics.probe_filters(args.name)
    async with open_session(invocation.settings, wanted + topics.receipt_filters()) as session:
        record = record.model_copy(update={"check": _check(args.check, session)})
        if not args.wait:
            output.show(*views.sent([await _publish(session, record)]))
            return Exit.DONE
        with detaching(output, _how_to_watch(record)):
            return await _wait(invocation, session, await _publish(session, record), record)


async def unregister(invocation: Invocation) -> Exit:
    """Publish the tombstone."""
    template: str = invocation.arguments.name
    topics = invocation.settings.mqtt.topics
    wanted = topics.host_filters() + topics.register_filters(template) + topics.probe_filters(template)
    async with open_session(invocation.settings, wanted) as session:
        known_template(session.fleet, template)
        sent = await _publish(session, RegisterData(template=template, ensure=Ensure.ABSENT))
        invocation.output.show(*views.sent([sent]))
    return Exit.DONE


async def _publish(session: Session, record: RegisterData) -> Sent:
    known = await known_generation(session, [RegisterTopic(record.template)])
    event = register_event(session.fleet, record, known=known, now=now_utc())
    return (await publish(session, [event]))[0]


async def _wait(invocation: Invocation, session: Session, sent: Sent, record: RegisterData) -> Exit:
    args, output = invocation.arguments, invocation.output
    named = () if isinstance(record.check, str) else record.check
    asked = sorted({h for h in session.fleet.hosts if record.is_checked_by(h)} | set(named))
    if not asked:
        if record.check != "none":
            raise no_host()
        output.show(*views.sent([sent]))
        return Exit.DONE
    generation = sent.event.generation or 0

    def standings() -> list[Standing]:
        receipts = session.receipts.get(sent.event.id, {})
        return [probe_standing(host, record.template, generation, session.fleet, receipts) for host in asked]

    found = await wait_settled(
        session, output, standings=standings, timeout_s=args.timeout, how_to_watch=_how_to_watch(record)
    )
    output.show(*views.probed(found))
    return exit_of(found)


def _how_to_watch(record: RegisterData) -> str:
    return f"kvmctl status {record.template}"


def _values(args: Any) -> dict[str, Any]:
    first, *more = args.urls
    return {
        "template": args.name,
        "url": first,
        "sources": more,
        "checksum": args.checksum,
        "checksum_of": args.checksum_of,
        "format": args.format,
        "size": args.size,
        "headers": dict(args.header),
        "credentials": args.credential,
        "description": args.description,
        "labels": dict(args.label),
        "check": None if not set(args.check) - {"any"} else _named_check(args.check),
    }


def _named_check(words: list[str]) -> str | list[str]:
    """Read --check as far as it needs no view of the fleet."""
    match words:
        case ["all" | "none" as word]:
            return word
        case _ if _WORDS & set(words):
            raise UsageError(
                f"--check {' '.join(words)}: any, all and none stand alone.",
                hint="Name hosts only, by --check HOST as often as needed, or one of the three words.",
            )
        case hosts:
            return hosts


def _check(words: list[str], session: Session) -> str | tuple[str, ...]:
    """Give the event's ``check``; ``any`` is one host that listens now."""
    if set(words) == {"any"}:
        online = [host for host in session.fleet.hosts if session.fleet.is_online(host)]
        if not online:
            raise UnreachableError(
                "--check any: no host listens now; nothing was published.",
                hint="Start kvmd on a host, or use --check none.",
            )
        return (random.choice(online),)  # noqa: S311 - to spread the checks
    named = _named_check(words) if words else "all"
    return named if isinstance(named, str) else tuple(named)
