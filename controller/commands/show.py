"""``kvmctl templates | hosts | replicas | status | explain``: one look at what is retained."""

from __future__ import annotations

from rich.console import Group

from controller import views
from controller.commands.invocation import Invocation, Parsers, add_parser, name
from controller.credentials.standing import missing
from controller.credentials.views import credentials
from controller.errors import ControlError
from controller.explain import explain as tell
from controller.explain import receipts_of
from controller.fleet import Fleet
from controller.publish import now_utc
from controller.session import open_session
from controller.sheet import Sheet
from kvmwire.codes import Exit, FailureCode


def add(parsers: Parsers) -> None:
    """Add the five parsers."""
    add_parser(parsers, "templates", templates, "what is registered")
    add_parser(parsers, "hosts", hosts, "who is there")
    parser = add_parser(parsers, "replicas", replicas, "what is where")
    parser.add_argument("name", type=name, nargs="?", metavar="NAME", help="only of this template")
    parser.add_argument("--host", type=name, help="only on this host")
    parser = add_parser(parsers, "status", status, "all about one template")
    parser.add_argument("name", type=name, metavar="NAME", help="the template's name")
    parser = add_parser(parsers, "explain", explain, "why a template is, or is not, ready on a host")
    parser.add_argument("name", type=name, metavar="NAME", help="the template's name")
    parser.add_argument("host", type=name, metavar="HOST", help="the host's name")


async def templates(invocation: Invocation) -> Exit:
    """List templates."""
    invocation.output.show(*views.templates(await _look(invocation)))
    return Exit.DONE


async def hosts(invocation: Invocation) -> Exit:
    """List hosts."""
    invocation.output.show(*views.hosts(await _look(invocation)))
    return Exit.DONE


async def replicas(invocation: Invocation) -> Exit:
    """List replicas."""
    args = invocation.arguments
    invocation.output.show(*views.replicas(await _look(invocation), template=args.name, host=args.host))
    return Exit.DONE


async def status(invocation: Invocation) -> Exit:
    """Show one template: its record, what hosts found at its sources, its replicas, the machines made from it."""
    template: str = invocation.arguments.name
    fleet = await _look(invocation)
    parts = (
        views.templates(fleet, [template]),
        views.probes(fleet, template=template),
        views.replicas(fleet, template=template),
        views.machines(fleet, template=template),
        _lacking(fleet, template),
    )
    if not any(rows for rows, _ in parts):
        raise ControlError(
            f"template {template}: nothing is retained about it at the broker.",
            hint="See what is registered with: kvmctl templates",
            code=FailureCode.TEMPLATE_UNKNOWN,
        )
    found = [part for part in parts if part[0]]
    sheets = (part for _, sheet in found for part in (sheet, ""))
    invocation.output.show([row for rows, _ in found for row in rows], Group(*list(sheets)[:-1]))
    return Exit.DONE


async def explain(invocation: Invocation) -> Exit:
    """Tell in sentences why a replica is where it is."""
    args = invocation.arguments
    topics = invocation.settings.mqtt.topics
    filters = topics.retained_filters() + topics.credential_status_filters()
    async with open_session(invocation.settings, filters) as session:
        ids = [d.event.id for d in session.fleet.deployments(args.name)]
        answers = await session.archive.call(lambda registry: {one: registry.receipts(one) for one in ids})
        sentences = tell(session.fleet, args.name, args.host, receipts_of(args.host, answers))
    shown = Sheet(f"{args.name} on {args.host}", "about", wide=("",))
    for sentence in sentences:
        shown.add_row(sentence.about, sentence.text)
    invocation.output.show([{"kind": "sentence", "about": s.about, "text": s.text} for s in sentences], shown)
    return Exit.DONE


async def _look(invocation: Invocation) -> Fleet:
    topics = invocation.settings.mqtt.topics
    filters = (*topics.retained_filters(), *topics.machine_filters(), *topics.credential_status_filters())
    async with open_session(invocation.settings, filters) as session:
        return session.fleet


def _lacking(fleet: Fleet, template: str) -> views.Rows:
    """Show the template's credentials that are not installed on hosts that have to do with it."""
    record = fleet.template(template)
    told = {one.host for one in fleet.probes if one.template == template}
    hosts = told.union(*(fleet.audience(one.event) for one in fleet.deployments(template)))
    lacking = missing(fleet, record.credentials if record else (), sorted(hosts))
    return credentials(lacking, (), now=now_utc())
