"""``kvmctl cancel``, ``recheck``, ``repair`` and ``scrub``: commands that hosts answer, and that are not retained."""

from __future__ import annotations

from controller import views
from controller.commands.invocation import Invocation, Parsers, add_hosts, add_parser, duration_s, name, no_host
from controller.errors import ControlError
from controller.fleet import Fleet
from controller.outcome import receipt_exit
from controller.publish import commands, now_utc, publish
from controller.session import open_session
from controller.waiting import wait_answered
from kvmwire.codes import Exit, FailureCode
from kvmwire.events import CommandData
from kvmwire.topics import Verb

_DEFAULT_WAIT_S = 10.0


def add(parsers: Parsers) -> None:
    """Add the four parsers."""
    for verb, run, summary in (
        (Verb.CANCEL, cancel, "stop what hosts do for a template"),
        (Verb.RECHECK, recheck, "let hosts check sources again, and try again what waits or failed"),
        (Verb.REPAIR, repair, "let hosts replace what changed at rest by a new download, unless something uses it"),
        (Verb.SCRUB, scrub, "let hosts read ready volumes again, slowly, and tell of those that have changed"),
    ):
        parser = add_parser(parsers, verb.value, run, summary)
        if verb is Verb.SCRUB:
            parser.add_argument("name", type=name, metavar="NAME", nargs="?", help="the template's name; all, if none")
        else:
            parser.add_argument("name", type=name, metavar="NAME", help="the template's name")
        add_hosts(parser, help_text="only this host; may be repeated")
        parser.add_argument("--pool", type=name, help="only in this pool")
        parser.add_argument("--reason", default="", help="for the hosts' logs")
        parser.add_argument(
            "--timeout", type=duration_s, default=_DEFAULT_WAIT_S, metavar="TIME", help="wait so long for answers; 10s"
        )


async def cancel(invocation: Invocation) -> Exit:
    """Publish ``cancel``."""
    return await _command(invocation, Verb.CANCEL)


async def recheck(invocation: Invocation) -> Exit:
    """Publish ``recheck``."""
    return await _command(invocation, Verb.RECHECK)


async def repair(invocation: Invocation) -> Exit:
    """Publish ``repair``."""
    return await _command(invocation, Verb.REPAIR)


async def scrub(invocation: Invocation) -> Exit:
    """Publish ``scrub``."""
    return await _command(invocation, Verb.SCRUB)


async def _command(invocation: Invocation, verb: Verb) -> Exit:
    args, output = invocation.arguments, invocation.output
    topics = invocation.settings.mqtt.topics
    filters = topics.host_filters() + topics.wanted_filters(args.name or "+") + topics.outcome_filters(args.name or "+")
    async with open_session(invocation.settings, filters + topics.receipt_filters()) as session:
        if args.name is not None:
            _check_known(session.fleet, verb, args.name)
        data = CommandData(template=args.name, pool=args.pool, reason=args.reason)
        sent = await publish(session, commands(verb, data, hosts=dict.fromkeys(args.host), now=now_utc()))
        hosts = set[str]().union(*(one.hosts for one in sent))
        if not hosts:
            raise no_host()
        offline = sorted(host for host in hosts if not session.fleet.is_online(host))
        if offline:
            output.say(f"not listening now: {', '.join(offline)}; `kvmctl serve` sends it for an hour when they come")
        answers = await wait_answered(session, sent, timeout_s=args.timeout)
        output.show(*views.receipts(answers[host] for host in sorted(answers)))
        silent = sorted(hosts - answers.keys() - set(offline))
        if silent:
            output.say(f"no answer yet from: {', '.join(silent)}")
        return receipt_exit(hosts - set(offline) or hosts, answers)


def _check_known(fleet: Fleet, verb: Verb, template: str) -> None:
    """Refuse a name that no event and no host tells of: every host would accept the command, and do nothing."""
    if not fleet.is_known(template):
        raise ControlError(
            f"{verb.value} {template}: no event and no host tells of this template; nothing was published.",
            hint="See what there is with: kvmctl templates, kvmctl replicas",
            code=FailureCode.TEMPLATE_UNKNOWN,
        )
