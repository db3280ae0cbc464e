"""``kvmctl lab``."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import shutil
import signal
import tempfile
from pathlib import Path

from controller.commands.invocation import Invocation, Parsers, add_parser
from controller.errors import UsageError
from controller.lab.brokers import BROKERS
from controller.lab.cluster import Lab
from controller.output import Output
from controller.supervise import beside
from kvmwire.codes import Exit

_MAX_HOSTS = 64


def add(parsers: Parsers) -> None:
    """Add the parser."""
    parser = add_parser(parsers, "lab", lab, "a whole cluster on this machine: broker, controller and hosts")
    parser.add_argument("--hosts", type=_host_count, default=3, metavar="N", help="so many hosts; 3")
    parser.add_argument("--dir", type=Path, help="where everything is put; a temporary folder")
    parser.add_argument("--broker", choices=("auto", *BROKERS), default="auto", help="auto: nats, else mosquitto")
    parser.add_argument("--keep", action="store_true", help="leave the temporary folder behind")


def _host_count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_HOSTS:
        raise argparse.ArgumentTypeError(f"{text[:80]!a}: expected 1 to {_MAX_HOSTS}")
    return int(text)


class _StoppedError(Exception):
    """Somebody wants the lab to end."""


async def lab(invocation: Invocation) -> Exit:
    """Run the cluster until Ctrl-C, SIGTERM or the terminal's end; a part that dies ends it."""
    args = invocation.arguments
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    folder = await asyncio.to_thread(_folder, args.dir)
    try:
        async with beside(_stopped(stop)):  # it may come while the cluster is still being started
            await _run(invocation.output, folder, hosts=args.hosts, broker=args.broker)
    except _StoppedError:
        return Exit.DONE
    finally:
        if args.dir is None and not args.keep:
            shutil.rmtree(folder)
    return Exit.DONE


def _folder(chosen: Path | None) -> Path:
    if chosen is None:
        return Path(tempfile.mkdtemp(prefix="kvmd-lab-"))
    try:
        chosen.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UsageError(
            f"--dir {chosen}: it cannot be made: {exc.strerror}.", hint="Name a folder that can be written to."
        ) from exc
    return chosen


async def _stopped(stop: asyncio.Event) -> None:
    await stop.wait()
    raise _StoppedError


async def _run(output: Output, folder: Path, *, hosts: int, broker: str) -> None:
    async with Lab(folder, hosts=hosts, broker=broker) as cluster:
        if output.is_json:
            output.rows([{"kind": "lab", "broker": cluster.url, "config": str(cluster.config), "dir": str(folder)}])
        else:
            output.say(how_to_talk(cluster))
        await cluster.broken()


def how_to_talk(lab: Lab) -> str:
    """Tell a person what to type into another terminal."""
    return f"""
The lab runs: broker {lab.url}, kvmctl serve, and {", ".join(lab.hosts)}. Everything is in {lab.folder}

In another terminal:
  export KVMCTL_CONFIG={shlex.quote(str(lab.config))}
  kvmctl hosts
  kvmctl register deb12 https://.../debian-12.qcow2 --checksum '{{SHA-512}}...' --wait
  kvmctl deploy deb12 --all --wait
  kvmctl watch

Ctrl-C ends it."""
