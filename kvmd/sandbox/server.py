"""The inspector: takes an open volume, works on it with qemu-img, answers, ends. It trusts neither the volume nor qemu-img."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import socket
import subprocess
from contextlib import suppress

from kvmd.sandbox.limits import Limits, confine
from kvmd.sandbox.patience import Patience
from kvmd.sandbox.protocol import MAX_OUTPUT, MAX_REQUEST, Answer, Request, Run, Task

FORMATS = ("qcow2", "vmdk", "vhdx")
_RECEIVE_TIMEOUT_S = 10.0
_READ_SIZE = 65536


def serve(descriptor: int) -> None:
    """Serve the one request that comes over this socket."""
    with socket.socket(fileno=descriptor) as connection:
        connection.settimeout(_RECEIVE_TIMEOUT_S)
        text, descriptors, _, _ = socket.recv_fds(connection, MAX_REQUEST, 2)
        try:
            request = Request.decode(text)
        except ValueError as exc:
            answer = Answer(problem=f"the request cannot be read: {exc}")
        else:
            answer = _answer(request, descriptors, connection)
        for fd in descriptors:  # whoever reads the answer may look whether anybody has the target open for writing
            os.close(fd)
        with suppress(ConnectionError):  # nobody waits for it any more
            connection.sendall(answer.encode())


def _answer(request: Request, descriptors: list[int], connection: socket.socket) -> Answer:
    program = shutil.which("qemu-img")
    if program is None:
        return Answer(is_missing=True)
    if request.format not in FORMATS or len(descriptors) != 1 + (request.task is Task.CONVERT):
        return Answer(problem="expected the open files of the task and one of the formats " + ", ".join(FORMATS))
    target = descriptors[1] if request.task is Task.CONVERT else None
    size = request.size if request.task is Task.CONVERT else 0
    limits = Limits(request.longest_s, request.memory, size, confine(descriptors[0], target, program))
    runs: list[Run] = []
    for words in _commands(request, *descriptors):
        patience = Patience(request.timeout_s, request.longest_s, target)
        try:
            run = _run([program, *words], descriptors, limits, patience, connection)
        except OSError as exc:
            return Answer(problem=f"qemu-img cannot be run: {exc.strerror or exc}")
        runs.append(run)
        if run.exit_code or run.ended_for:
            break
    return Answer(tuple(runs))


def _commands(request: Request, volume: int, target: int = -1) -> list[list[str]]:
    """Give the words after ``qemu-img`` of each run. The format is always named: nothing is probed."""
    json, source = ["--force-share", "--output=json", "-f", request.format], f"/proc/self/fd/{volume}"
    match request.task:
        case Task.LOOK:
            return [["info", *json, source], ["check", *json, source]]
        case Task.MEASURE:
            return [["measure", *json, "-O", "qcow2", source]]  # as raw it would count zeros, too
        case Task.CONVERT:
            zeros = ["-S", "0"] if request.writes_zeros else []
            words = ["convert", "--force-share", "-p", "-n", "--target-is-zero", *zeros, "-f", request.format]
            return [[*words, "-O", "raw", source, f"/proc/self/fd/{target}"]]


def _run(
    words: list[str], descriptors: list[int], limits: Limits, patience: Patience, connection: socket.socket
) -> Run:
    """Run qemu-img within its limits; whatever it started is gone afterwards."""
    process = subprocess.Popen(  # noqa: S603 - the words are ours
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=descriptors,
        env={"LC_ALL": "C", "MALLOC_ARENA_MAX": "1"},
        cwd="/",
        process_group=0,
        preexec_fn=limits.apply,  # noqa: PLW1509 - this process has one thread
    )
    with process:
        ended = os.pidfd_open(process.pid)
        try:
            ended_for, told, said = _listen(process, ended, connection, patience)
        finally:
            os.close(ended)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # not reaped yet: the number is still its own
        return Run(process.wait(), told.decode(errors="replace"), said.decode(errors="replace"), ended_for)


def _listen(
    process: subprocess.Popen[bytes], ended: int, connection: socket.socket, patience: Patience
) -> tuple[str, bytes, bytes]:
    """Collect what it writes until it ends, or give the limit that it broke. Raises ConnectionError where nobody waits any more."""
    written = {pipe.fileno(): bytearray() for pipe in (process.stdout, process.stderr) if pipe}
    told, said = written.values()
    with selectors.DefaultSelector() as selector:
        for fd in written:
            os.set_blocking(fd, False)
            selector.register(fd, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        selector.register(connection, selectors.EVENT_READ)
        has_ended = False
        while not has_ended:
            pause_s = patience.pause_s(len(told))
            if pause_s <= 0:
                return "time", bytes(told), bytes(said)
            ready = {key.fd for key, _ in selector.select(pause_s)}
            if connection.fileno() in ready:
                raise ConnectionAbortedError("kvmd went away")
            has_ended = ended in ready
            for fd in written if has_ended else written.keys() & ready:
                if not _drain(fd, written[fd]):
                    with suppress(KeyError):
                        selector.unregister(fd)
            if len(told) + len(said) > MAX_OUTPUT:
                return "output", bytes(told[:MAX_OUTPUT]), bytes(said[:MAX_OUTPUT])
    return "", bytes(told), bytes(said)


def _drain(fd: int, text: bytearray) -> bool:
    """Read what is there, up to the limit; False at the end."""
    while len(text) <= MAX_OUTPUT:
        try:
            block = os.read(fd, _READ_SIZE)
        except BlockingIOError:
            return True
        if not block:
            return False
        text += block
    return True
