"""``kvmctl keys``: the fleet's keys, made, shown, replaced and taken back."""

from __future__ import annotations

import argparse
import asyncio
import re
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controller import views
from controller.archive import open_archive
from controller.commands.invocation import Invocation, Parsers, add_parser, duration, name
from controller.credentials.clearing import clear_revoked
from controller.errors import ControlError
from controller.keys import listing
from controller.keys.distribution import distribute, not_told
from controller.keys.enrolling import add_publisher as admitted
from controller.keys.handing import prepared
from controller.keys.keyring import FleetKeys
from controller.keys.register import FleetRegister
from controller.keys.rotation import rotated, with_host_revoked, with_key_revoked
from controller.keys.setting_up import write_settings
from controller.outcome import receipt_exit
from controller.session import open_session
from controller.waiting import wait_answered
from kvmwire.codes import Exit
from kvmwire.trust import PUBLISHER_ROLES, Role

_OVERLAP = "7d"
_ANSWERS_S = 10.0  # not for long: the list is retained
_HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_PATTERN = re.compile(r"[A-Za-z0-9.*?_:\[\]-]{1,253}")


def add(parsers: Parsers) -> None:
    """Add the parser with its subcommands."""
    group = parsers.add_parser("keys", help="the fleet's keys", description="the keys and certificates of the fleet")
    group.set_defaults(run=show)
    inner = group.add_subparsers(dest="keys_command", required=True, metavar="COMMAND")
    made = add_parser(inner, "init", init, "make the fleet's CA and the controller's keys")
    _add_broker_names(made, "a host name or address at which hosts reach the broker; repeat it; this machine's")
    add_parser(inner, "list", show, "keys, certificates, hosts and publishers, and until when they are good")
    turned = add_parser(inner, "rotate", rotate, "sign with a new key from now on, and tell all hosts")
    turned.add_argument(
        "--overlap", type=duration, default=_OVERLAP, metavar="TIME", help=f"believe the old key so long; {_OVERLAP}"
    )
    taken = add_parser(inner, "revoke", revoke, "refuse a key or a host from now on")
    which = taken.add_mutually_exclusive_group(required=True)
    which.add_argument("name", nargs="?", help="a key or publisher, by the name or id that keys list shows")
    which.add_argument("--host", type=name, metavar="HOST", help="a host that was stolen, sold or broken into")
    _add_publisher_options(add_parser(inner, "add-publisher", add_publisher, "let somebody publish under own keys"))
    again = add_parser(inner, "renew", renew, "new certificates for the broker and the controller")
    _add_broker_names(again, "as with init; the names so far")
    add_parser(inner, "publish", publish, "tell all hosts again which keys count")


def _add_broker_names(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--broker-name", action="append", type=_broker_name, metavar="NAME", help=help_text)


def _add_publisher_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", type=name, metavar="NAME", help="the publisher's name")
    parser.add_argument("--role", action="append", choices=[role.value for role in Role if role is not Role.TRUST],
                        help="what it may sign; repeat it; register and deploy")  # fmt: skip
    parser.add_argument("--pool", action="append", type=_pattern, default=[], help="pools it may use, a pattern; all")
    parser.add_argument(
        "--url-host", action="append", type=_pattern, default=[], metavar="PATTERN", help="hosts of its URLs; all"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="a .tar file, or a folder to make; NAME.tar")


def _broker_name(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        if _HOST_NAME.fullmatch(text) is None:
            raise argparse.ArgumentTypeError(f"{text[:80]!a}: expected a host name or an IP address") from None
    return text


def _pattern(text: str) -> str:
    if _PATTERN.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text[:80]!a}: expected a pattern such as *.example.org")
    return text


async def init(invocation: Invocation) -> Exit:
    """Make the fleet, and settings to use it with."""
    settings, output = invocation.settings, invocation.output
    names = tuple(dict.fromkeys(invocation.arguments.broker_name or _own_names()))

    def make() -> tuple[FleetKeys, Path]:
        FleetKeys.create(settings.fleet, broker_names=names, now=datetime.now(UTC))
        with FleetKeys.changing(settings.fleet) as keys:
            return keys, write_settings(keys, settings)

    keys, path = await asyncio.to_thread(make)
    output.show(*listing.listed(keys, datetime.now(UTC)))
    if not output.is_json:
        folder = keys.folder
        output.say(
            f"\nThe fleet's keys are in {folder}: keep a copy of it in a safe place, and nobody else near it. Next:"
        )
        output.say(f"  export KVMCTL_CONFIG={path}     # or copy it to ~/.config/kvmd/kvmctl.toml")
        output.say(f"  # to the broker's machine: {folder}/ca.pem, broker.pem, broker.key, crl.pem")
        output.say("  kvmctl enroll HOST               # each host of the fleet")
        output.say("  kvmctl broker-config mosquitto   # or nats: who may do what at the broker")
    return Exit.DONE


async def show(invocation: Invocation) -> Exit:
    """Show everything but the keys themselves."""
    now, output = datetime.now(UTC), invocation.output
    keys = await asyncio.to_thread(FleetKeys.open, invocation.settings.fleet)
    output.show(*await asyncio.to_thread(listing.listed, keys, now))
    for warning in await asyncio.to_thread(listing.warnings, keys, now):
        output.say(warning)
    return Exit.DONE


async def rotate(invocation: Invocation) -> Exit:
    """Make a new signing key, tell the hosts, and sign anew what is retained."""
    settings, overlap = invocation.settings, invocation.arguments.overlap

    def change() -> FleetKeys:
        with FleetKeys.changing(settings.fleet) as keys:
            key = Ed25519PrivateKey.generate()
            register = rotated(keys.register, key, overlap=overlap, now=datetime.now(UTC))
            keys.write_signing_key(key)
            keys.save(register)
            return keys

    return await _tell(invocation, await asyncio.to_thread(change))


async def revoke(invocation: Invocation) -> Exit:
    """Take a key or a host out of use."""
    args, settings = invocation.arguments, invocation.settings
    if args.host is not None:
        return await _revoke_host(invocation, args.host)
    keys = await asyncio.to_thread(
        _changed, settings.fleet, lambda register: with_key_revoked(register, args.name, datetime.now(UTC))
    )
    if any(args.name in {one.name, one.keyid} for one in keys.publishers()):
        _say_about_broker(invocation, keys)
    return await _tell(invocation, keys)


async def _revoke_host(invocation: Invocation, host: str) -> Exit:
    settings, output = invocation.settings, invocation.output
    keys = await asyncio.to_thread(
        _changed, settings.fleet, lambda register: with_host_revoked(register, host, datetime.now(UTC))
    )
    secrets, cleared = await _secrets_of(invocation, host), await _cleared(invocation)
    row = {"kind": "revoked", "host": host, "credentials": secrets, "cleared": cleared}
    row["crl"] = str(keys.folder / "crl.pem")
    if output.is_json:
        output.rows([row])
        return Exit.DONE
    output.say(f"{host} is revoked: nothing will be sealed to it any more.")
    _say_about_broker(invocation, keys)
    if secrets:
        output.say(f"It knows these secrets; change them where they come from: {', '.join(secrets)}")
    return Exit.DONE


async def _cleared(invocation: Invocation) -> list[str]:
    """Clear what the broker keeps for revoked hosts, and give the topics; a host is revoked without the broker, too."""
    try:
        async with open_session(invocation.settings, invocation.settings.mqtt.topics.handed_out_filters()) as session:
            return list(await clear_revoked(session))
    except ControlError as exc:
        invocation.output.say(
            f"What is sealed to it stays at the broker for now: {exc.message} {exc.hint} "
            "Then clear it with: kvmctl keys publish; kvmctl serve does it by itself"
        )
        return []


async def _secrets_of(invocation: Invocation, host: str) -> list[str]:
    """Name the credentials that were ever sealed to a host, as far as this controller remembers."""
    start = f"{invocation.settings.mqtt.prefix}/credential/host/{host}/"
    async with open_archive(invocation.settings.state_dir) as archive:
        topics = await archive.call(lambda registry: registry.topics_under(start))
    return sorted(topic.removeprefix(start) for topic in topics)


async def add_publisher(invocation: Invocation) -> Exit:
    """Write a publisher's bundle, and let hosts believe its key."""
    args, output = invocation.arguments, invocation.output
    roles = tuple(Role(role) for role in dict.fromkeys(args.role or PUBLISHER_ROLES))
    out: Path = args.out or Path(f"{args.name}.tar")

    def change() -> FleetKeys:
        with FleetKeys.changing(invocation.settings.fleet) as keys:
            bounds = {"pools": tuple(args.pool), "url_hosts": tuple(args.url_host)}
            admission = admitted(keys, args.name, roles=roles, **bounds, now=datetime.now(UTC))
            with prepared(out, admission.files) as finish:
                keys.save(admission.register)
                finish()
            return keys

    keys = await asyncio.to_thread(change)
    if output.is_json:
        output.rows([{"kind": "publisher", "publisher": args.name, "roles": roles, "bundle": str(out)}])
    else:
        output.say(
            f"{out}: certificate, TLS key and signing key of {args.name}. Remove it when it is where it belongs."
        )
        output.say("Let it in at the broker, too: kvmctl broker-config")
    return await _tell(invocation, keys)


async def renew(invocation: Invocation) -> Exit:
    """Issue the certificates anew."""
    names = tuple(dict.fromkeys(invocation.arguments.broker_name or ()))
    now = datetime.now(UTC)

    def change() -> FleetKeys:
        with FleetKeys.changing(invocation.settings.fleet) as keys:
            keys.renew_certificates(broker_names=names or keys.register.broker_names, now=now)
            return keys

    keys = await asyncio.to_thread(change)
    invocation.output.show(*listing.listed(keys, now))
    if not invocation.output.is_json:
        invocation.output.say(f"Next: {keys.folder / 'broker.pem'} to the broker's machine, and reload the broker.")
    return Exit.DONE


async def publish(invocation: Invocation) -> Exit:
    """Publish the list of keys as it is."""
    keys = await asyncio.to_thread(FleetKeys.open, invocation.settings.fleet)
    return await _tell(invocation, keys, is_changed=False)


async def _tell(invocation: Invocation, keys: FleetKeys, *, is_changed: bool = True) -> Exit:
    """Publish the list, and show who has taken it. Raises ControlError that says how to go on."""
    topics, output = invocation.settings.mqtt.topics, invocation.output
    filters = topics.host_filters() + topics.wanted_filters() + topics.handed_out_filters() + topics.receipt_filters()
    try:
        async with open_session(invocation.settings, filters) as session:
            done = await distribute(session, keys)
            answers = await wait_answered(session, [done.sent], timeout_s=_ANSWERS_S)
    except ControlError as exc:
        raise not_told(exc, is_changed=is_changed) from exc
    online = {host for host in done.sent.hosts if session.fleet.is_online(host)}
    if output.is_json:
        row = {"generation": keys.trust.generation, "signed_anew": done.signed_anew, "not_signed_anew": done.left}
        row["cleared"] = done.cleared
        output.rows([{"kind": "keys", **row}])
    else:
        output.say(f"published: the list of {len(keys.trust.keys)} keys, generation {keys.trust.generation}")
        for topic in done.cleared:
            output.say(f"cleared, as its host was revoked: {topic}")
        for topic in done.signed_anew:
            output.say(f"signed anew: {topic}")
        for topic in done.left:
            output.say(f"NOT signed anew, as it was not published from here: {topic}; publish it again if it is right")
    output.show(*views.receipts(answers[host] for host in sorted(answers)))
    silent = sorted(done.sent.hosts - answers.keys())
    if silent:
        output.say(f"no answer yet from: {', '.join(silent)}; the list is retained, they get it when they come")
    return receipt_exit(online & answers.keys(), answers)


def _changed(folder: Path, change: Callable[[FleetRegister], FleetRegister]) -> FleetKeys:
    with FleetKeys.changing(folder) as keys:
        keys.save(change(keys.register))
        return keys


def _own_names() -> list[str]:
    own = socket.gethostname()
    return [*([own] if _HOST_NAME.fullmatch(own) else []), "localhost", "127.0.0.1"]


def _say_about_broker(invocation: Invocation, keys: FleetKeys) -> None:
    if not invocation.output.is_json:
        invocation.output.say(
            f"At the broker: copy {keys.folder / 'crl.pem'} there, write its access list again with kvmctl broker-config, "
            "and reload it; until then it lets the old certificate in."
        )
