"""Slow networks: bench/shaped.c serves the image at given rates or a round-trip time, and what it really lets through."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from contextlib import contextmanager

from bench.processes import free_port, serving
from bench.rounds import Stage


@contextmanager
def shaped(stage: Stage, *, connection_rate: int = 0, total_rate: int = 0, round_trip_ms: float = 0) -> Generator[str]:
    """Serve the image and give its URL; rates are bytes a second, of each connection and of all together, 0 for none."""
    port = free_port()
    options = ["-c", str(connection_rate), "-t", str(total_rate), "-r", str(round_trip_ms)]
    with serving([stage.shaped, *options, str(port), stage.image], port):
        yield f"http://127.0.0.1:{port}/image.raw"


def one_connection(url: str, size: int) -> tuple[float, float]:
    """Fetch ``size`` bytes with curl to nowhere; give the bytes a second and the seconds to the first byte."""
    command = [
        "curl",
        "-sS",
        "-r",
        f"0-{size - 1}",
        "-o",
        "/dev/null",
        "-w",
        "%{speed_download} %{time_starttransfer}",
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rate, first_byte_s = done.stdout.split()
    return float(rate), float(first_byte_s)
