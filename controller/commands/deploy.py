"""``kvmctl deploy`` and ``kvmctl remove``."""

from __future__ import annotations

import argparse
import asyncio
import json
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from controller import views
from controller.commands.invocation import (
    Invocation,
    Parsers,
    add_hosts,
    add_parser,
    add_waiting,
    build,
    byte_count,
    deadline,
    name,
    no_host,
    pair,
)
from controller.errors import ControlError, UsageError
from controller.fleet import Fleet
from controller.machines import OF_THE_HOST, candidates, is_hopeless, machine_deployment, withdrawals
from controller.outcome import Phase, Standing, Wish, exit_of, standing_of
from controller.publish import (
    Sent,
    default_deployment,
    deploy_events,
    known_generation,
    known_template,
    now_utc,
    publish,
    removals,
)
from controller.session import Session, open_session
from controller.waiting import detaching, wait_settled
from kvmwire.codes import Exit, FailureCode
from kvmwire.events import DeployData, Machine
from kvmwire.topics import DeployTopic


def add(parsers: Parsers) -> None:
    """Add the two parsers."""
    parser = add_parser(parsers, "deploy", deploy, "put a template's replica into a pool of the selected hosts")
    parser.add_argument("name", type=name, metavar="NAME", help="the template's name")
    add_hosts(parser, help_text="this host; may be repeated")
    parser.add_argument(
        "--label", action="append", type=pair, default=[], metavar="K=V", help="hosts with all these labels"
    )
    parser.add_argument("--all", action="store_true", help="all hosts, also those that join later")
    parser.add_argument("--pool", type=name, default="default", help="the hosts' pool; default: default")
    parser.add_argument(
        "--deployment", type=name, help="default: the template's name, with the pool's if it is another"
    )
    parser.add_argument(
        "--name", dest="volume", type=name, metavar="VOLUME", help="the volume's name; default: the template's"
    )
    parser.add_argument("--priority", type=int, help="-1000 to 1000, the higher goes first")
    parser.add_argument("--rate-limit", type=byte_count, metavar="BYTES", help="a second, such as 10M")
    parser.add_argument("--deadline", type=deadline, metavar="TIME", help="give up then: 2h, or 2030-01-31T18:00:00Z")
    parser.add_argument(
        "--machine", type=Path, metavar="FILE", help="start this virtual machine from it (TOML or JSON)"
    )
    parser.add_argument(
        "--try",
        dest="tries",
        type=_try_count,
        metavar="N",
        help="with --machine: to one of the matching hosts; where it cannot, to the next, N at most. Waits",
    )
    add_waiting(parser, "every host is ready, or runs the machine, or has failed")
    parser = add_parser(parsers, "remove", remove, "take a template's replicas from the hosts")
    parser.add_argument("name", type=name, metavar="NAME", help="the template's name")
    add_hosts(parser, help_text="only from this host; may be repeated")
    parser.add_argument("--pool", type=name, help="only from this pool")
    add_waiting(parser, "it is gone from every host")


async def deploy(invocation: Invocation) -> Exit:
    """Publish one deploy event, or one a named host; with --wait until all are settled."""
    args, settings = invocation.arguments, invocation.settings
    if sum([bool(args.host), bool(args.label), args.all]) != 1:
        raise UsageError(
            "deploy: exactly one of --host, --label and --all says where it goes; nothing was published.",
            hint="Add --all, or --host HOST, or --label KEY=VALUE.",
        )
    if args.tries is not None and args.machine is None:
        raise UsageError(
            "deploy: --try is for a --machine, which goes to one host; nothing was published.",
            hint="Add --machine FILE, or leave --try out: a template goes to all the hosts that match.",
        )
    machine = await asyncio.to_thread(_read_machine, args.machine) if args.machine else None
    async with open_session(settings, _filters(settings.mqtt, args.name)) as session:
        record = known_template(session.fleet, args.name)
        values: dict[str, Any] = {
            "deployment": args.deployment or _deployment(args, machine),
            "template": record.model_dump(mode="json", exclude_defaults=True),
            "pool": args.pool,
            "hosts": {"labels": dict(args.label)} if args.label else None,
            "name": args.volume,
            "priority": args.priority,
            "rate_limit": args.rate_limit,
            "deadline": args.deadline,
            "machine": machine,
        }
        data = build(DeployData, values)
        if args.tries is not None:
            return await _try_hosts(invocation, session, data)
        topics = [DeployTopic(data.deployment, host) for host in dict.fromkeys(args.host)] or [
            DeployTopic(data.deployment)
        ]
        return await publish_and_wait(invocation, session, [(topic, data) for topic in topics])


async def _try_hosts(invocation: Invocation, session: Session, data: DeployData) -> Exit:
    """Ask one host after the other, each once, until one runs the machine; what the others were asked for is taken back."""
    args, output = invocation.arguments, invocation.output
    hosts = candidates(session.fleet, data, hosts=args.host)[: args.tries]
    if not hosts:
        raise no_host()
    tried: list[Standing] = []
    with detaching(output, how_to_watch := f"kvmctl watch {args.name}"):
        for host in hosts:
            (wish,) = _wishes(await _publish(session, [(DeployTopic(data.deployment, host), data)]))

            def standings(wish: Wish = wish) -> list[Standing]:
                now = standing_of(wish, session.fleet, session.receipts.get(wish.event_id, {}))
                return [replace(now, phase=Phase.FAILED) if is_hopeless(now) else now]

            (found,) = await wait_settled(
                session, output, standings=standings, timeout_s=args.timeout, how_to_watch=how_to_watch
            )
            tried.append(found)
            if found.phase is not Phase.FAILED or found.code not in OF_THE_HOST | {None}:
                break
            await _publish(session, withdrawals(session.fleet, data, host))
            output.say(f"{host} cannot: {found.code.value if found.code else found.state}: {found.message}")
    output.show(*views.outcome(tried, title=f"{args.command} {args.name}"))
    return exit_of(tried[-1:])


async def remove(invocation: Invocation) -> Exit:
    """Publish the opposite of what deploys the template; with --wait until it is gone."""
    args, settings = invocation.arguments, invocation.settings
    async with open_session(settings, _filters(settings.mqtt, args.name)) as session:
        wanted = removals(session.fleet, args.name, hosts=dict.fromkeys(args.host), pool=args.pool)
        _check_unused(session.fleet, wanted)
        if not wanted:
            where = f" in pool {args.pool}" if args.pool else ""
            raise ControlError(
                f"remove {args.name}{where}: no deploy event and no replica of it is known; nothing was published.",
                hint="See what there is with: kvmctl replicas",
                code=FailureCode.TEMPLATE_UNKNOWN,
            )
        return await publish_and_wait(invocation, session, wanted)


def _filters(mqtt: Any, template: str) -> tuple[str, ...]:
    topics = mqtt.topics
    return (
        *topics.host_filters(),
        *topics.wanted_filters(template),
        *topics.outcome_filters(template),
        *topics.progress_filters(template),
        *topics.machine_filters(),
        *topics.receipt_filters(),
    )


async def _publish(session: Session, wanted: Sequence[tuple[DeployTopic, DeployData]]) -> list[Sent]:
    known = await known_generation(session, [topic for topic, _ in wanted])
    return await publish(session, deploy_events(session.fleet, wanted, known=known, now=now_utc()))


async def publish_and_wait(
    invocation: Invocation, session: Session, wanted: Sequence[tuple[DeployTopic, DeployData]]
) -> Exit:
    """Publish deploy events; with --wait until every host is where they want it."""
    args, output = invocation.arguments, invocation.output
    if not args.wait:
        output.show(*views.sent(await _publish(session, wanted)))
        return Exit.DONE
    how_to_watch = f"kvmctl watch {args.name}"
    with detaching(output, how_to_watch):
        wishes = _wishes(await _publish(session, wanted))
        if not wishes:
            raise no_host()

        def standings() -> list[Standing]:
            return [standing_of(wish, session.fleet, session.receipts.get(wish.event_id, {})) for wish in wishes]

        found = await wait_settled(
            session, output, standings=standings, timeout_s=args.timeout, how_to_watch=how_to_watch
        )
    output.show(*views.outcome(found, title=f"{args.command} {args.name}"))
    return exit_of(found)


def _wishes(sent: Sequence[Sent]) -> list[Wish]:
    """Say what is asked of each host; of several events about one replica the last made holds."""
    wishes = dict[tuple[str, str, str], Wish]()
    for one in sent:
        data = one.event.data
        if not isinstance(data, DeployData):
            continue
        for host in one.hosts:
            generation = one.event.generation or 0
            subject = host, data.pool, data.machine.name if data.machine else ""
            wishes[subject] = Wish(
                host, data.pool, data.template_name, generation, one.event.id, data.ensure, data.machine
            )
    return [wishes[key] for key in sorted(wishes)]


def _deployment(args: argparse.Namespace, machine: Machine | None) -> str:
    if machine is None:
        return default_deployment(args.name, args.pool)
    return machine_deployment(args.name, args.pool, machine.name)


def _try_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:80]!a}: expected a number of hosts, 1 at least")
    return int(text)


def _check_unused(fleet: Fleet, wanted: Sequence[tuple[DeployTopic, DeployData]]) -> None:
    """Raise ControlError where a machine stands on a replica that is to go: the hosts would refuse it, too."""
    found: list[str] = []
    for topic, data in wanted:
        selected = (host for host, status in fleet.hosts.items() if data.selects(host, status.labels))
        for host in [topic.host] if topic.host else selected:
            names = fleet.machines_on(host, template=data.template_name, pool=data.pool)
            found += [f"{name} on {host}" for name in names]
    if found:
        raise ControlError(
            f"remove: machines stand on it: {', '.join(sorted(set(found)))}; nothing was published.",
            hint="Remove them first: kvmctl machine remove NAME --wait",
            code=FailureCode.IN_USE,
        )


def _read_machine(path: Path) -> Machine:
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as exc:
        raise UsageError(f"--machine {path}: {exc}.", hint="Give a TOML or JSON file with at least `name`.") from exc
    return build(Machine, values)
