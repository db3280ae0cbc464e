"""``kvmctl machine``: what there is, started, stopped, removed, and what it said on its console."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from controller import views
from controller.commands.deploy import publish_and_wait
from controller.commands.invocation import Invocation, Parsers, add_common, add_hosts, add_waiting, name
from controller.errors import ControlError
from controller.machines import Wanted, removed, statuses, switched
from controller.session import Session, open_session
from controller.sheet import plain
from kvmwire.codes import Exit, FailureCode

_SUMMARY = "virtual machines: list, start, stop, remove, read their consoles"


def add(parsers: Parsers) -> None:
    """Add the parser and its subcommands."""
    parser: argparse.ArgumentParser = parsers.add_parser("machine", help=_SUMMARY, description=_SUMMARY)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="what runs where", description="what runs where")
    listing.set_defaults(run=show)
    listing.add_argument("--host", type=name, help="only on this host")
    add_common(listing)
    for verb, run, summary, waited in (
        ("start", start, "start a machine that was stopped", "it runs"),
        ("stop", stop, "let the guest shut down, and pull the plug of one that does not", "it is off"),
        ("remove", remove, "take a machine away with its own disk; the template's replica stays", "it is gone"),
    ):
        one = verbs.add_parser(verb, help=summary, description=summary)
        one.set_defaults(run=run)
        one.add_argument("name", type=name, metavar="NAME", help="the machine's name")
        add_hosts(one, help_text="only on this host; may be repeated")
        add_waiting(one, waited)
        add_common(one)
    console = verbs.add_parser(
        "console-log",
        help="the last 4 KiB of its serial console",
        description="the last 4 KiB of its serial console, as its host has announced it",
    )
    console.set_defaults(run=console_log)
    console.add_argument("name", type=name, metavar="NAME", help="the machine's name")
    add_hosts(console, help_text="only on this host; may be repeated")
    add_common(console)


async def show(invocation: Invocation) -> Exit:
    """List machines."""
    topics = invocation.settings.mqtt.topics
    async with open_session(invocation.settings, topics.host_filters() + topics.machine_filters()) as session:
        invocation.output.show(*views.machines(session.fleet, host=invocation.arguments.host))
    return Exit.DONE


async def start(invocation: Invocation) -> Exit:
    """Publish the machine's event again, with ``start`` true."""
    return await _switch(invocation, is_on=True)


async def stop(invocation: Invocation) -> Exit:
    """Publish the machine's event again, with ``start`` false."""
    return await _switch(invocation, is_on=False)


async def remove(invocation: Invocation) -> Exit:
    """Publish that the machine is to be absent."""
    args = invocation.arguments
    async with open_session(invocation.settings, _filters(invocation)) as session:
        return await _act(invocation, session, removed(session.fleet, args.name, hosts=args.host))


async def console_log(invocation: Invocation) -> Exit:
    """Show the end of a machine's console, from every host that has one of that name."""
    args, output = invocation.arguments, invocation.output
    topics = invocation.settings.mqtt.topics
    async with open_session(invocation.settings, topics.host_filters() + topics.machine_filters(args.name)) as session:
        found = {
            t.host: s for t, s in statuses(session.fleet, args.name).items() if t.host in args.host or not args.host
        }
    if not found:
        raise _unknown(invocation)
    for host, status in sorted(found.items()):
        if output.is_json:
            output.rows([{"kind": "console", "host": host, "machine": args.name, "console": status.console}])
            continue
        if len(found) > 1:
            output.line(f"----- {host}")
        for line in status.console.splitlines():
            output.line(plain(line))
    return Exit.DONE


async def _switch(invocation: Invocation, *, is_on: bool) -> Exit:
    args = invocation.arguments
    async with open_session(invocation.settings, _filters(invocation)) as session:
        return await _act(invocation, session, switched(session.fleet, args.name, hosts=args.host, is_on=is_on))


async def _act(invocation: Invocation, session: Session, wanted: Sequence[Wanted]) -> Exit:
    if not wanted:
        raise _unknown(invocation)
    return await publish_and_wait(invocation, session, wanted)


def _filters(invocation: Invocation) -> tuple[str, ...]:
    topics = invocation.settings.mqtt.topics
    return (
        *topics.host_filters(),
        *topics.wanted_filters(),
        *topics.outcome_filters(),
        *topics.machine_filters(invocation.arguments.name),
        *topics.receipt_filters(),
    )


def _unknown(invocation: Invocation) -> ControlError:
    args = invocation.arguments
    where = f" on {', '.join(args.host)}" if args.host else ""
    return ControlError(
        f"machine {args.name}{where}: no event that is retained and no host tells of it; nothing was published.",
        hint="See what there is with: kvmctl machine list",
        code=FailureCode.MACHINE,
    )
