"""``kvmctl credential add | list | show | revoke | sync``: what hosts show to servers, and which servers they believe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from pydantic import SecretStr
from rich.console import Group

from controller import views as sent_views
from controller.commands.invocation import (
    Invocation,
    Parsers,
    add_hosts,
    add_parser,
    add_waiting,
    build,
    name,
    no_host,
    pair,
)
from controller.credentials import views
from controller.credentials.desk import Desk, no_fleet, unknown_credential
from controller.credentials.known import known_credentials
from controller.credentials.material import Given, Material, check_origins, read_material
from controller.credentials.record import Recipient, Record
from controller.credentials.standing import standings
from controller.credentials.store import CredentialStore
from controller.errors import UsageError
from controller.keys.keyring import FleetKeys
from controller.outcome import Standing, credential_standing, exit_of
from controller.output import Output
from controller.publish import Sent, now_utc
from controller.registry import Registry
from controller.session import Session, open_session
from controller.waiting import detaching, wait_settled
from kvmwire.codes import Exit
from kvmwire.trust import ROOT


def add(parsers: Parsers) -> None:
    """Add the parser of the group and those of its commands."""
    summary = "what hosts show to servers, and which CAs they believe: sealed to each host, never in clear"
    group: argparse.ArgumentParser = parsers.add_parser("credential", help=summary, description=summary)
    commands = group.add_subparsers(dest="credential", required=True, metavar="COMMAND")
    _add_add(commands)
    parser = add_parser(commands, "list", list_, "what is installed, refused, missing or revoked on which host")
    parser = add_parser(commands, "show", show, "all about one credential but its secret")
    parser.add_argument("name", type=_name, metavar="NAME", help="the credential's name")
    parser = add_parser(commands, "revoke", revoke, "take it from the hosts, for good; what is kept of it is deleted")
    parser.add_argument("name", type=_name, metavar="NAME", help="the credential's name")
    add_hosts(parser, help_text="only from this host; may be repeated")
    add_waiting(parser, "the hosts have dropped it")
    add_parser(
        commands, "sync", sync, "hand out what hosts that were enrolled later lack; `kvmctl serve` does it by itself"
    )


def _add_add(commands: Parsers) -> None:
    parser = add_parser(
        commands, "add", add_, "hand it out, or a new one of the same name: what is in use stays until then"
    )
    parser.add_argument("name", type=_name, metavar="NAME", help="the credential's name")
    parser.add_argument(
        "--for", dest="origins", nargs="+", required=True, metavar="ORIGIN",
        help="servers that it is for: https://HOST[:PORT], HOST may be *.DOMAIN",
    )  # fmt: skip
    parser.add_argument(
        "--header", action="append", type=SecretStr, default=[], metavar="'N: V'",
        help="with this HTTP header; 'N' asks for its value, 'N: @FILE' and 'N: -' read it",
    )  # fmt: skip
    parser.add_argument("--header-file", type=Path, metavar="FILE", help="with the headers of this file, one a line")
    parser.add_argument(
        "--basic", type=_user, metavar="USER", help="with user name and password; asks for the password"
    )
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="with --basic: instead of asking")
    parser.add_argument("--bearer", action="store_true", help="with a token; asks for it")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="with --bearer: instead of asking")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="CA certificates (PEM) to believe these servers by")
    parser.add_argument("--client-cert", type=Path, metavar="FILE", help="client certificate (PEM), its chain after it")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its key (PEM)")
    parser.add_argument(
        "--allow-http", action="store_true", help="also show headers to http servers, readable on the way"
    )
    add_hosts(parser, help_text="to this host; may be repeated")
    parser.add_argument(
        "--label", action="append", type=pair, default=[], metavar="K=V", help="to hosts enrolled with it"
    )
    parser.add_argument("--all", action="store_true", help="to all hosts, also those that join later: the default")
    add_waiting(parser, "the hosts have installed or refused it")


async def add_(invocation: Invocation) -> Exit:
    """Check, keep, publish; with --wait until the hosts have answered."""
    args, output = invocation.arguments, invocation.output
    if sum([bool(args.host), bool(args.label), args.all]) > 1:
        raise UsageError(
            "credential add: --host, --label and --all are not of use together; nothing was published.",
            hint="Give one of them, or none for all hosts.",
        )
    material = read_material(_given(args), now=now_utc())
    warnings = (*material.warnings, *check_origins(args.origins, material, allow_http=args.allow_http))
    draft = _draft(args, material)
    if material.secret is not None and FleetKeys.find(invocation.settings.fleet) is None:
        raise no_fleet()
    for warning in warnings:
        output.say(warning)
    async with _open(invocation, args.name) as session:
        desk = await Desk.open(session)
        with detaching(output, f"kvmctl credential show {args.name}"):
            record, sent = await desk.hand_out(draft, material.secret)
            _tell_strangers(output, record, desk.recipients)
            return await _finish(invocation, session, sent, if_none="nothing was published yet")


async def revoke(invocation: Invocation) -> Exit:
    """Publish what takes it away; with --wait until it is gone."""
    args = invocation.arguments
    async with _open(invocation, args.name) as session:
        desk = await Desk.open(session)
        with detaching(invocation.output, f"kvmctl credential show {args.name}"):
            sent = await desk.revoke(args.name, list(dict.fromkeys(args.host)))
            return await _finish(invocation, session, sent, if_none="nothing was published: it was taken back already")


async def sync(invocation: Invocation) -> Exit:
    """Publish what is missing."""
    async with _open(invocation) as session:
        synced = await (await Desk.open(session)).sync()
    if synced.sent or not synced.failures:
        _show_sent(invocation.output, synced.sent, if_none="nothing was published: no enrolled host lacks anything")
    for failure in synced.failures:
        invocation.output.fail(failure)
    return Exit.DONE if not synced.failures else synced.failures[0].exit


async def list_(invocation: Invocation) -> Exit:
    """Show every credential on every host."""
    async with _open(invocation) as session:
        invocation.output.show(*await _table(session, None))
    return Exit.DONE


async def show(invocation: Invocation) -> Exit:
    """Show one: what is kept of it, and where it stands."""
    wanted: str = invocation.arguments.name
    async with _open(invocation, wanted) as session:
        record = CredentialStore(invocation.settings.state_dir).read(wanted)
        rows, sheet = await _table(session, wanted)
    if not rows:
        raise unknown_credential(wanted)
    if record is not None:
        own_rows, own = views.kept(record, now=now_utc())
        invocation.output.show([*own_rows, *(row for row in rows if row["kind"] != "kept")], Group(own, "", sheet))
    else:
        invocation.output.show(rows, sheet)
    return Exit.DONE


async def _table(session: Session, wanted: str | None) -> sent_views.Rows:
    store, keys = CredentialStore(session.settings.state_dir), FleetKeys.find(session.settings.fleet)
    records = {one.name: one for one in store.all() if wanted in {None, one.name}}
    known = known_credentials(session.fleet, await session.archive.call(Registry.retained))
    names = sorted(one for one in records.keys() | known.keys() if wanted in {None, one})
    recipients = Recipient.of(keys.hosts()) if keys is not None else ()
    found = [one for n in names for one in standings(n, records.get(n), recipients, known[n], session.fleet)]
    return views.credentials(found, records.values(), now=now_utc())


def _show_sent(output: Output, sent: Sequence[Sent], *, if_none: str) -> None:
    if sent:
        output.show(*sent_views.sent(sent))
    else:
        output.say(if_none)


async def _finish(invocation: Invocation, session: Session, sent: Sequence[Sent], *, if_none: str) -> Exit:
    args, output = invocation.arguments, invocation.output
    if not args.wait:
        _show_sent(output, sent, if_none=if_none)
        return Exit.DONE
    if not sent:  # nobody is there who could have it, or all is done already; the table tells which
        output.show(*await _table(session, args.name))
        return Exit.DONE
    # Of several events for one host the newest is what it has to answer.
    newest = {host: one for one in sorted(sent, key=lambda one: one.event.generation or 0) for host in one.hosts}
    if not newest:
        raise no_host()

    def now_standing() -> list[Standing]:
        return [
            credential_standing(
                host, newest[host].event, session.fleet, session.receipts.get(newest[host].event.id, {})
            )
            for host in sorted(newest)
        ]

    how = f"kvmctl credential show {args.name}"
    found = await wait_settled(session, output, standings=now_standing, timeout_s=args.timeout, how_to_watch=how)
    output.show(*await _table(session, args.name))
    return exit_of(found)


def _open(invocation: Invocation, wanted: str = "+") -> AbstractAsyncContextManager[Session]:
    topics = invocation.settings.mqtt.topics
    filters = topics.host_filters() + topics.credential_filters(wanted) + topics.receipt_filters()
    return open_session(invocation.settings, filters)


def _draft(args: argparse.Namespace, material: Material) -> Record:
    hosts = {"labels": dict(args.label)} if args.label else list(dict.fromkeys(args.host)) or "all"
    return build(
        Record,
        {
            "name": args.name,
            "generation": 0,
            "hosts": hosts,
            "origins": args.origins,
            "anchors": material.anchors,
            "holds": material.holds,
            "fingerprint": material.fingerprint,
            "expires": material.expires,
        },
    )


def _given(args: argparse.Namespace) -> Given:
    if (args.password_file and args.basic is None) or (args.token_file and not args.bearer):
        raise UsageError(
            "credential add: --password-file goes with --basic USER, --token-file with --bearer; nothing was published.",
            hint="Add what is missing.",
        )
    return Given(
        headers=args.header,
        header_file=args.header_file,
        basic=args.basic,
        password_file=args.password_file,
        is_bearer=args.bearer,
        token_file=args.token_file,
        ca=args.ca,
        client_cert=args.client_cert,
        key=args.key,
    )


def _tell_strangers(output: Output, record: Record, recipients: Sequence[Recipient]) -> None:
    enrolled = {one.name for one in recipients}
    strangers = [host for host in record.hosts if host not in enrolled] if isinstance(record.hosts, tuple) else []
    if strangers and record.sealed is not None:
        output.say(
            f"not enrolled: {', '.join(strangers)}; it is sealed to them when they are: kvmctl enroll {strangers[0]}"
        )
    if not record.is_public and not record.targets(recipients):
        output.say("no host that it is for is enrolled: it is kept, and `kvmctl serve` hands it out when one is")
    if record.excluded:
        output.say(
            f"not for {', '.join(record.excluded)}, where it was revoked; to hand it out there, name them with --host"
        )


def _name(text: str) -> str:
    if text == ROOT:
        raise argparse.ArgumentTypeError(f"{ROOT} is how the list of signing keys travels; see kvmctl keys")
    return name(text)


def _user(text: str) -> str:
    user, _, password = text.partition(":")
    if password:
        raise argparse.ArgumentTypeError(
            "a password does not belong on the command line; it is asked for, or use --password-file"
        )
    if not user or not user.isprintable():
        raise argparse.ArgumentTypeError("expected a user name")
    return user
