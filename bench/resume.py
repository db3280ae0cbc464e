"""kvmd killed at a random moment and started again: how many bytes the server has sent for one file."""

from __future__ import annotations

import random
import subprocess
import time

from bench.origin import Origin
from bench.outcome import Figure, Outcome
from bench.peers import KVMD, Download, kvmd
from bench.processes import Run, ended, run
from bench.rounds import Stage, check, clean, prime

_EARLIEST, _LATEST = 0.1, 0.9  # of an undisturbed run's time
_QUIET_S = 0.5


def killed_and_resumed(stage: Stage) -> Outcome:
    """Onto the disk, where what was not synced is lost; the worst round counts."""
    download = stage.download(f"{stage.origin.http}/image.raw", folder=stage.disk)
    prime(stage.image, stage.disk)
    with clean(download.out.parent):
        whole = run(kvmd(download))
    shares: list[float] = []
    resumed: list[Run] = []
    while len(shares) < stage.rounds:
        before = stage.origin.body_bytes_sent()
        with clean(download.out.parent):
            if not _kill(download, whole.seconds * random.SystemRandom().uniform(_EARLIEST, _LATEST)):
                continue
            resumed.append(run(kvmd(download)))
            check(download.out, stage.image, "kvmd, resumed,")
        shares.append((_settled(stage.origin) - before) / stage.size)
    figure = Figure("bytes sent / size, worst", max(shares), target=1.02)
    runs = {KVMD: [whole], f"{KVMD}, the rest after SIGKILL": resumed}
    return Outcome("killed at a random moment, then resumed; http, disk", (figure,), runs)


def _kill(download: Download, moment_s: float) -> bool:
    """Start kvmd and SIGKILL it after ``moment_s`` seconds; give False where it had ended before."""
    (command,) = kvmd(download)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with ended(process):
        try:
            process.wait(moment_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return True
    return False


def _settled(origin: Origin) -> int:
    """Bytes sent, once no aborted request is written to the log any more."""
    last = -1
    while (sent := origin.body_bytes_sent()) != last:
        last = sent
        time.sleep(_QUIET_S)
    return sent
