"""``kvmd fetch`` beside peers: whole processes, interleaved rounds, medians, every file compared with the served one."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from bench.origin import make_image, origin
from bench.outcome import Outcome
from bench.processes import compiled
from bench.report import RESULTS, Circumstances, show, write
from bench.rounds import Stage
from bench.scenarios import SCENARIOS


def main() -> int:
    """Run the scenarios, print each one's table as it ends, and write the results where all were run or a folder is given."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _interrupt)
    outcomes: dict[str, Outcome] = {}
    try:
        with _stage(arguments) as stage:
            for name in arguments.only:
                outcomes[name] = SCENARIOS[name](stage)
                show(name, outcomes[name])
    except KeyboardInterrupt:
        print("interrupted; nothing is written", file=sys.stderr)
        return 130
    results = arguments.results or (RESULTS if outcomes.keys() == SCENARIOS.keys() else None)
    if results is not None:
        write(outcomes, Circumstances(arguments.mib, arguments.rounds, _filesystem(arguments.disk)), results)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.transfer", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="scenarios (default: all)"
    )
    mib = int(os.environ.get("BENCH_MIB", "4096"))
    parser.add_argument("--mib", type=int, default=mib, help="size of the image in MiB (default: $BENCH_MIB, or 4096)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median counts (default: 3)")
    memory = Path("/dev/shm")  # noqa: S108 - a tmpfs, used through TemporaryDirectory
    parser.add_argument("--memory", type=Path, default=memory, help=f"folder on a tmpfs (default: {memory})")
    disk = Path(tempfile.gettempdir())
    parser.add_argument("--disk", type=Path, default=disk, help=f"folder on a disk (default: {disk})")
    text = "folder for transfer.json and transfer.svg (default: bench/results where all scenarios are run, else none)"
    parser.add_argument("--results", type=Path, help=text)
    return parser.parse_args()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Let SIGTERM clean up as Ctrl-C does."""
    raise KeyboardInterrupt


@contextmanager
def _stage(arguments: argparse.Namespace) -> Generator[Stage]:
    """Serve a new image from memory; everything is removed and ended when the context is left."""
    with (
        tempfile.TemporaryDirectory(prefix="kvmd-bench-", dir=arguments.memory) as memory,
        tempfile.TemporaryDirectory(prefix="kvmd-bench-", dir=arguments.disk) as disk,
    ):
        Path(memory).chmod(0o755)
        served = Path(memory, "served")
        served.mkdir()
        programs = compiled("reference", Path(disk)), compiled("shaped", Path(disk))
        digest = make_image(served / "image.raw", arguments.mib << 20)
        with origin(served) as nginx:
            image = served / "image.raw"
            yield Stage(nginx, image, digest, Path(memory), Path(disk), *programs, rounds=arguments.rounds)


def _filesystem(folder: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
