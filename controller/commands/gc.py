"""``kvmctl gc``: let hosts delete what nobody needs, or tell what they would."""

from __future__ import annotations

import asyncio
import contextlib

from controller import views
from controller.commands.invocation import Invocation, Parsers, add_hosts, add_parser, duration_s, name, no_host
from controller.outcome import receipt_exit
from controller.publish import commands, now_utc, publish
from controller.session import Session, open_session
from controller.waiting import wait_answered
from kvmwire.codes import Exit
from kvmwire.events import CommandData
from kvmwire.status import GcStatus, Outcome, Receipt
from kvmwire.topics import GcTopic, Verb

_DEFAULT_WAIT_S = 60.0


def add(parsers: Parsers) -> None:
    """Add the parser."""
    parser = add_parser(
        parsers,
        "gc",
        gc,
        "let hosts delete what nobody needs in their pools, by their own policy, and tell what and why",
    )
    add_hosts(parser, help_text="only this host; may be repeated")
    parser.add_argument("--pool", type=name, help="only in this pool")
    parser.add_argument("--dry-run", action="store_true", help="delete nothing, only tell what would go")
    parser.add_argument("--reason", default="", help="for the hosts' logs")
    parser.add_argument(
        "--timeout", type=duration_s, default=_DEFAULT_WAIT_S, metavar="TIME", help="wait so long for the hosts; 60s"
    )


async def gc(invocation: Invocation) -> Exit:
    """Publish ``gc``, and show what the hosts make of it."""
    args, output = invocation.arguments, invocation.output
    topics = invocation.settings.mqtt.topics
    filters = topics.host_filters() + topics.gc_filters() + topics.receipt_filters()
    async with open_session(invocation.settings, filters) as session:
        data = CommandData(pool=args.pool, reason=args.reason, dry_run=args.dry_run)
        sent = await publish(session, commands(Verb.GC, data, hosts=dict.fromkeys(args.host), now=now_utc()))
        hosts = set[str]().union(*(one.hosts for one in sent))
        if not hosts:
            raise no_host()
        answers = await wait_answered(session, sent, timeout_s=args.timeout)
        found = await _wait_told(session, answers, timeout_s=args.timeout)
        output.show(*views.garbage(found[host] for host in sorted(found)))
        refused = [answers[host] for host in sorted(answers) if answers[host].outcome is Outcome.REFUSED]
        if refused:
            output.show(*views.receipts(refused))
        silent = sorted(host for host in hosts - found.keys() if host not in {one.host for one in refused})
        if silent:
            output.say(f"nothing heard yet from: {', '.join(silent)}; it goes on by itself where they listen")
        online = {host for host in hosts if session.fleet.is_online(host)}
        return receipt_exit(online or hosts, answers)


async def _wait_told(session: Session, answers: dict[str, Receipt], *, timeout_s: float) -> dict[str, GcStatus]:
    """Give what the hosts told that took the command on, once all have, or when the time is up."""
    asked = {host: receipt.event for host, receipt in answers.items() if receipt.outcome is not Outcome.REFUSED}

    def told() -> dict[str, GcStatus]:
        statuses = {host: session.fleet.garbage.get(GcTopic(host)) for host in asked}
        return {host: one for host, one in statuses.items() if one is not None and one.event == asked[host]}

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await session.until(lambda: told().keys() == asked.keys())
    return told()
