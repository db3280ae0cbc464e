"""``kvmctl deploy`` and ``kvmctl remove``."""

from __future__ import annotations

import asyncio
import json
import tomllib
from collections.abc import Sequence
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
from controller.outcome import Standing, Wish, exit_of, replica_standing
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
    add_waiting(parser, "every host is ready, or has failed")
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
    machine = await asyncio.to_thread(_read_machine, args.machine) if args.machine else None
    async with open_session(settings, _filters(settings.mqtt, args.name)) as session:
        record = known_template(session.fleet, args.name)
        values: dict[str, Any] = {
            "deployment": args.deployment or default_deployment(args.name, args.pool),
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
        topics = [DeployTopic(data.deployment, host) for host in dict.fromkeys(args.host)] or [
            DeployTopic(data.deployment)
        ]
        return await _publish_and_wait(invocation, session, [(topic, data) for topic in topics])


async def remove(invocation: Invocation) -> Exit:
    """Publish the opposite of what deploys the template; with --wait until it is gone."""
    args, settings = invocation.arguments, invocation.settings
    async with open_session(settings, _filters(settings.mqtt, args.name)) as session:
        wanted = removals(session.fleet, args.name, hosts=dict.fromkeys(args.host), pool=args.pool)
        if not wanted:
            where = f" in pool {args.pool}" if args.pool else ""
            raise ControlError(
                f"remove {args.name}{where}: no deploy event and no replica of it is known; nothing was published.",
                hint="See what there is with: kvmctl replicas",
                code=FailureCode.TEMPLATE_UNKNOWN,
            )
        return await _publish_and_wait(invocation, session, wanted)


def _filters(mqtt: Any, template: str) -> tuple[str, ...]:
    topics = mqtt.topics
    return (
        *topics.host_filters(),
        *topics.wanted_filters(template),
        *topics.outcome_filters(template),
        *topics.progress_filters(template),
        *topics.receipt_filters(),
    )


async def _publish(session: Session, wanted: Sequence[tuple[DeployTopic, DeployData]]) -> list[Sent]:
    known = await known_generation(session, [topic for topic, _ in wanted])
    return await publish(session, deploy_events(session.fleet, wanted, known=known, now=now_utc()))


async def _publish_and_wait(
    invocation: Invocation, session: Session, wanted: Sequence[tuple[DeployTopic, DeployData]]
) -> Exit:
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
            return [replica_standing(wish, session.fleet, session.receipts.get(wish.event_id, {})) for wish in wishes]

        found = await wait_settled(
            session, output, standings=standings, timeout_s=args.timeout, how_to_watch=how_to_watch
        )
    output.show(*views.outcome(found, title=f"{args.command} {args.name}"))
    return exit_of(found)


def _wishes(sent: Sequence[Sent]) -> list[Wish]:
    """Say what is asked of each host; of several events about one replica the last made holds."""
    wishes = dict[tuple[str, str], Wish]()
    for one in sent:
        data = one.event.data
        if not isinstance(data, DeployData):
            continue
        for host in one.hosts:
            generation = one.event.generation or 0
            wishes[host, data.pool] = Wish(host, data.pool, data.template_name, generation, one.event.id, data.ensure)
    return [wishes[key] for key in sorted(wishes)]


def _read_machine(path: Path) -> Machine:
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as exc:
        raise UsageError(f"--machine {path}: {exc}.", hint="Give a TOML or JSON file with at least `name`.") from exc
    return build(Machine, values)
