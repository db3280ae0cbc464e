import asyncio
import gc
import socket
import warnings

import pytest

from tests.support.connections import Connections


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while received := await reader.read(100):
        writer.write(received)


async def _end_after(steps: int) -> None:
    connections = Connections(_serve)
    async with await asyncio.start_server(connections.accept, "127.0.0.1", 0) as server:
        with socket.create_connection(server.sockets[0].getsockname()):
            for _ in range(steps):
                await asyncio.sleep(0)
            await connections.end(server)
    assert len(connections) == 0


@pytest.mark.parametrize("steps", range(8))
def test_whenever_the_server_ends_no_connection_stays_open(steps: int) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        asyncio.run(_end_after(steps))
        gc.collect()
    assert [str(warning.message) for warning in told] == []


async def test_what_was_sent_before_the_end_of_a_connection_arrives() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 1_000_000)

    connections = Connections(greet)
    async with await asyncio.start_server(connections.accept, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert len(await reader.read()) == 1_000_000
        writer.close()
        await writer.wait_closed()
        await connections.end(server)
