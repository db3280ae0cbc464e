"""kvmd's main job on this machine: an image goes from a web server into the pools of three hosts.

    python examples/demo/demo.py [--url URL --checksum '{SHA-256}...']

Exit: what kvmctl says; 0 only if every host is ready and its file has the promised digest.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

from aiohttp import web
from blake3 import blake3
from images import make_image

from controller.errors import ControlError
from controller.lab.cluster import Lab
from kvmwire.digest import Algorithm, Digest

TEMPLATE = "demo"


def main() -> int:
    """Run the demo and clean up."""
    parser = argparse.ArgumentParser(description="An image goes from a web server into the pools of three hosts.")
    parser.add_argument("--url", help="an image of your own; default: one made here")
    parser.add_argument("--checksum", help="such as {SHA-256}9f86d0...; default: that of the image made here")
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--broker", choices=("auto", "nats", "mosquitto"), default="auto")
    parser.add_argument("--keep", action="store_true", help="leave the folder behind")
    arguments = parser.parse_args()
    if arguments.url and not arguments.checksum:
        parser.error("--url needs --checksum: without it nobody can tell whether the content is right")
    folder = Path(tempfile.mkdtemp(prefix="kvmd-demo-"))
    try:
        return asyncio.run(demo(arguments, folder))
    except ControlError as exc:
        print(f"error: {exc.message}\n  {exc.hint}", file=sys.stderr)
        return exc.exit
    except KeyboardInterrupt:
        return 130
    finally:
        if arguments.keep:
            print(f"everything is kept in {folder}")
        else:
            shutil.rmtree(folder)


async def demo(arguments: argparse.Namespace, folder: Path) -> int:
    """Serve an image, start the lab, register, deploy, and look at what is in the pools."""
    async with contextlib.AsyncExitStack() as stack:
        url, checksum = arguments.url, arguments.checksum
        if url is None:
            url, digest = await stack.enter_async_context(origin(folder / "origin"))
            checksum = checksum or str(digest)
        print(f"starting a broker, the controller and {arguments.hosts} hosts", flush=True)
        lab = await stack.enter_async_context(Lab(folder / "lab", hosts=arguments.hosts, broker=arguments.broker))
        for words in (
            ["register", TEMPLATE, url, "--checksum", checksum, "--wait", "--timeout", "60s"],
            ["deploy", TEMPLATE, "--all", "--wait"],
        ):
            code = await kvmctl(lab, *words)
            if code:
                print(f"`kvmctl {words[0]}` ended with {code}: see above", file=sys.stderr)
                return code
        return await check_pools(lab, checksum)


async def kvmctl(lab: Lab, *words: str) -> int:
    """Run kvmctl as a person would, in sight."""
    print(f"\n$ kvmctl {shlex.join(words)}", flush=True)
    child = await start(lab, *words)
    return await child.wait()


async def start(lab: Lab, *words: str, stdout: int | None = None) -> asyncio.subprocess.Process:
    """Start kvmctl with the lab's settings."""
    env = {**os.environ, "KVMCTL_CONFIG": str(lab.config)}
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "controller", *words, env=env, stdout=stdout)


async def check_pools(lab: Lab, checksum: str) -> int:
    """Hash the files again, with no word of kvmd's believed, and print them."""
    child = await start(lab, "replicas", TEMPLATE, "--json", stdout=asyncio.subprocess.PIPE)
    output, _ = await child.communicate()
    replicas = [json.loads(line) for line in output.splitlines()]
    wanted = Digest.parse(checksum)
    print("\nwhat is in the pools, hashed again here:")
    right = 0
    for replica in replicas:
        actual = await asyncio.to_thread(digest_of, Path(replica["path"]), wanted.algorithm)
        right += actual == wanted
        print(f"  {replica['host']}  {replica['path']}  {actual}  {'ok' if actual == wanted else 'WRONG'}")
    if right != len(lab.hosts):
        print(f"{right} of {len(lab.hosts)} hosts have the right file", file=sys.stderr)
        return 1
    print(f"all {right} hosts are ready")
    return 0


@contextlib.asynccontextmanager
async def origin(folder: Path) -> AsyncGenerator[tuple[str, Digest], None]:
    """Make an image and serve it, ranges included; gives its URL and SHA-256."""
    image = await asyncio.to_thread(make_image, folder)

    async def send(_request: web.Request) -> web.FileResponse:
        return web.FileResponse(image)

    app = web.Application()
    app.router.add_get(f"/{image.name}", send)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=1)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/{image.name}", await asyncio.to_thread(digest_of, image, Algorithm.SHA_256)
    finally:
        await runner.cleanup()


def digest_of(path: Path, algorithm: Algorithm) -> Digest:
    """Hash a file."""
    name = algorithm.value.lower().replace("sha-", "sha").replace("sha3-", "sha3_")
    hasher = blake3() if algorithm is Algorithm.BLAKE3 else hashlib.new(name)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return Digest(algorithm, hasher.hexdigest())


if __name__ == "__main__":
    raise SystemExit(main())
