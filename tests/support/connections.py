"""The connections of a server that lives in the test's event loop: one task each, and none stays open after the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[object, object, None]]

# What asyncio has accepted is a connection, and what was aborted is closed, this many turns of the loop later.
_TURNS = 5


async def stop_listening(server: asyncio.Server) -> None:
    """Close the server's sockets: new connections are refused, those that stand go on.

    ``Server.close`` alone leaves the transport of a connection open that was just accepted (Python 3.11): nothing is
    accepted any more here before it is called.
    """
    for listener in server.sockets:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    await _turns()
    server.close()


class Connections:
    """``accept`` is given to ``asyncio.start_server``; ``serve`` runs in a task of its own for each connection.

    A task that is cancelled before its first step never enters its coroutine, so the writers are closed here.
    """

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._writers = dict[asyncio.Task[None], asyncio.StreamWriter]()

    def __len__(self) -> int:
        return len(self._writers)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        # A task of our own: Python 3.11 logs an error for each cancelled one that asyncio made for a coroutine.
        task = asyncio.create_task(self._serve(reader, writer))
        self._writers[task] = writer
        task.add_done_callback(self._close)

    async def end(self, server: asyncio.Server | None) -> None:
        """Stop the server if it listens, cancel what is served, and wait until every connection is closed."""
        if server is not None:
            await stop_listening(server)
        writers = list(self._writers.values())
        for task in list(self._writers):
            task.cancel()
        if self._writers:
            await asyncio.wait(list(self._writers))
        for writer in writers:
            writer.transport.abort()
        await _turns()

    def _close(self, task: asyncio.Task[None]) -> None:
        self._writers.pop(task).close()


async def _turns() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)
