"""Register an image, deploy it to some hosts and wait until they are ready: what any program can do that speaks MQTT.

Needs aiomqtt and nothing of kvmd:  publish.py deb12 https://example.org/deb12.qcow2 '{SHA-256}...' kvm01 kvm02
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiomqtt

PREFIX = "kvmd/v1"
FINAL = {"ready", "failed", "cancelled", "absent"}


def event(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """Make a CloudEvents envelope. Of two events about one subject the higher generation wins."""
    return {
        "specversion": "1.0",
        "id": str(uuid.uuid4()),
        "source": "publish.py",
        "type": f"io.kvmd.{kind}.v1",
        "generation": time.time_ns() // 1_000_000,
        "data": data,
    }


async def publish_all(
    client: aiomqtt.Client, register: dict[str, Any], deploy: dict[str, Any], hosts: list[str]
) -> None:
    """Publish the register event for all, and the deploy event for each of the hosts."""
    name = register["data"]["template"]
    await client.publish(f"{PREFIX}/register/{name}", json.dumps(register), qos=1, retain=True)
    for host in hosts:
        await client.publish(f"{PREFIX}/deploy/host/{host}/{name}", json.dumps(deploy), qos=1, retain=True)


async def statuses(client: aiomqtt.Client) -> AsyncIterator[tuple[str, list[str], dict[str, Any]]]:
    """Give host, kind (and what it is about) and content of every status that arrives."""
    async for message in client.messages:
        host, *about = str(message.topic).removeprefix(f"{PREFIX}/status/").split("/")
        if message.payload:
            yield host, about, json.loads(bytes(message.payload))


async def outcomes(client: aiomqtt.Client, events: list[dict[str, Any]], hosts: list[str]) -> dict[str, bool]:
    """Wait until every host has refused an event, or its replica has come to an end; tell which are ready."""
    receipts = [["receipt", one["id"]] for one in events]
    replica = ["replica", "default", events[0]["data"]["template"]]
    ended: dict[str, bool] = {}
    async for host, about, status in statuses(client):
        if host not in hosts or host in ended:
            continue
        if about in receipts and status["outcome"] in {"refused", "stale"}:
            ended[host] = False
            print(f"{host}: {status['outcome']}: {explanation(status)}")
        elif about == replica and status["generation"] >= events[-1]["generation"]:
            print(f"{host}: {status['state']} {status.get('path') or explanation(status)}".rstrip())
            if status["state"] in FINAL:
                ended[host] = status["state"] == "ready"
        if len(ended) == len(hosts):
            break
    return ended


def explanation(status: dict[str, Any]) -> str:
    """Say why: code, message and what to do."""
    return " ".join(status[key] for key in ("code", "message", "hint") if status.get(key))


async def run(options: argparse.Namespace) -> int:
    """Publish and wait; 0 when every host is ready, 1 otherwise."""
    record = {"template": options.name, "url": options.url, "checksum": options.checksum}
    register = event("register", record)
    deploy = event("deploy", {"deployment": options.name, "template": record})
    hosts = list(dict.fromkeys(options.host))
    broker, _, port = options.broker.rpartition(":")
    try:
        async with asyncio.timeout(options.timeout), aiomqtt.Client(broker, int(port)) as client:
            for kind in ("receipt/+", f"replica/default/{options.name}"):
                await client.subscribe(f"{PREFIX}/status/+/{kind}", qos=1)
            await publish_all(client, register, deploy, hosts)
            ended = await outcomes(client, [register, deploy], hosts)
    except TimeoutError:
        print(f"not every host was ready within {options.timeout:g} seconds", file=sys.stderr)
        return 1
    except aiomqtt.MqttError as exc:
        print(f"broker {options.broker}: {exc}", file=sys.stderr)
        return 1
    return 0 if all(ended.values()) else 1


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Register an image and deploy it to some hosts.")
    parser.add_argument("name", help="the template's name")
    parser.add_argument("url")
    parser.add_argument("checksum", help="{ALGORITHM}hex")
    parser.add_argument("host", nargs="+")
    parser.add_argument("--broker", default="127.0.0.1:1883", metavar="HOST:PORT")
    parser.add_argument("--timeout", type=float, default=3600, metavar="SECONDS")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
