"""``kvmctl events``: what this controller published, and what hosts answered."""

from __future__ import annotations

from controller import views
from controller.archive import open_archive
from controller.commands.invocation import Invocation, Parsers, add_parser
from controller.commands.watch import follow
from controller.registry import Registry, Stored
from controller.session import open_session
from kvmwire.codes import Exit
from kvmwire.status import Receipt

_DEFAULT_LIMIT = 50


def add(parsers: Parsers) -> None:
    """Add the parser."""
    parser = add_parser(parsers, "events", events, "what was published from here, and the receipts")
    parser.add_argument("--limit", type=int, default=_DEFAULT_LIMIT, help=f"the newest so many; {_DEFAULT_LIMIT}")
    parser.add_argument("--follow", action="store_true", help="then every event, receipt and state as it comes")


async def events(invocation: Invocation) -> Exit:
    """Show the outbox; with --follow everything that happens, until Ctrl-C."""
    args, settings, output = invocation.arguments, invocation.settings, invocation.output
    async with open_archive(settings.state_dir) as archive:
        found = await archive.call(lambda registry: _history(registry, args.limit))
    output.show(*views.history(found))
    if args.follow:
        topics = settings.mqtt.topics
        wanted = topics.retained_filters() + topics.receipt_filters()
        async with open_session(settings, wanted) as session:
            await follow(session, output, template=None)
    return Exit.DONE


def _history(registry: Registry, limit: int) -> list[tuple[Stored, set[str], list[Receipt]]]:
    return [(one, registry.audience(one.id), registry.receipts(one.id)) for one in registry.history(limit=limit)]
