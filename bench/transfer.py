"""``kvmd fetch`` beside aria2c and curl: whole processes, interleaved rounds, medians, every digest checked."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.origin import make_image, origin

RESULTS = Path(__file__).parent / "results"
TARGET_RATIO = 0.8
"""kvmd's time over aria2c's that is to be reached."""


@dataclass(frozen=True)
class Result:
    """One folder's figures: seconds of every round, their medians, and kvmd's median over each peer's."""

    filesystem: str
    seconds: dict[str, list[float]]
    medians: dict[str, float]
    ratios: dict[str, float]


def main() -> int:
    """Measure in each folder, print tables, and write bench/results/transfer.json."""
    arguments = _arguments()
    results = {folder: _measure_in(folder, arguments) for folder in arguments.folder}
    for folder, result in results.items():
        _show(folder, arguments, result)
    _write(arguments, results)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the image in MiB (default: 1024)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median counts (default: 3)")
    folders = ["/dev/shm", tempfile.gettempdir()]  # noqa: S108 - a tmpfs
    parser.add_argument("--folder", nargs="+", default=folders, help=f"where everything lies (default: {folders})")
    return parser.parse_args()


def _measure_in(folder: str, arguments: argparse.Namespace) -> Result:
    with tempfile.TemporaryDirectory(dir=folder) as text:
        work = Path(text)
        work.chmod(0o755)
        served = work / "served"
        served.mkdir()
        digest = make_image(served / "image.raw", arguments.mib << 20)
        with origin(served) as url:
            seconds = _measure(f"{url}/image.raw", digest, work, arguments.rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {f"kvmd / {name}": medians["kvmd"] / value for name, value in medians.items() if name != "kvmd"}
    return Result(_filesystem(folder), seconds, medians, ratios)


def _filesystem(folder: str) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _measure(url: str, digest: str, folder: Path, rounds: int) -> dict[str, list[float]]:
    tools: dict[str, Callable[[Path], list[list[str]]]] = {
        "kvmd": lambda out: [
            [_beside_python("kvmd"), "fetch", url, str(out), "--checksum", f"{{SHA-256}}{digest}", "--json"]
        ],
        "aria2c -x16 -s16": lambda out: [
            ["aria2c", "-q", "-x16", "-s16", f"--checksum=sha-256={digest}", "-d", str(out.parent), "-o", out.name, url]
        ],
        "curl + openssl": lambda out: [
            ["curl", "-sS", "-o", str(out), url],
            ["openssl", "dgst", "-sha256", "-r", str(out)],
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    _prime(folder, folder / "served" / "image.raw")
    for _ in range(rounds):
        for name, commands in tools.items():
            out = folder / "out" / "image"
            shutil.rmtree(out.parent, ignore_errors=True)
            out.parent.mkdir()
            started = time.monotonic()
            outputs = [subprocess.run(one, capture_output=True, text=True, check=True) for one in commands(out)]
            seconds[name].append(time.monotonic() - started)
            _check(out, digest, outputs)
    return seconds


def _prime(folder: Path, image: Path) -> None:
    """Write and delete the output once: a virtual machine pays for fresh pages, and the first tool must not pay for all."""
    shutil.copyfile(image, folder / "prime")
    (folder / "prime").unlink()


def _check(out: Path, digest: str, outputs: list[subprocess.CompletedProcess[str]]) -> None:
    done = subprocess.run(["openssl", "dgst", "-sha256", "-r", out], capture_output=True, text=True, check=True)
    if done.stdout.split()[0] != digest:
        raise SystemExit(f"wrong digest after {outputs[0].args[0]}")


def _beside_python(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _show(folder: str, arguments: argparse.Namespace, result: Result) -> None:
    print(
        f"{arguments.mib} MiB over http from nginx on loopback, {folder} ({result.filesystem}), {arguments.rounds} rounds"
    )
    for name, median in result.medians.items():
        rounds = " ".join(f"{value:.2f}" for value in result.seconds[name])
        print(f"  {name:<18} median {median:5.2f} s   rounds {rounds}")
    for name, ratio in result.ratios.items():
        print(f"  {name:<25} {ratio:.2f}")
    reached = result.ratios["kvmd / aria2c -x16 -s16"] <= TARGET_RATIO
    print(f"  target {TARGET_RATIO}x of aria2c: {'reached' if reached else 'missed'}")


def _write(arguments: argparse.Namespace, results: dict[str, Result]) -> None:
    RESULTS.mkdir(exist_ok=True)
    document = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "mib": arguments.mib,
        "folders": [asdict(result) for result in results.values()],
    }
    (RESULTS / "transfer.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
