"""A client of the NBD protocol (its reference: doc/proto.md), as far as one disk needs it: blocking, one request at a time."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from typing import Self

TIMEOUT_S = 60.0
"""A server that answers nothing for so long is given up."""
MAX_REQUEST = 4 << 20
_MAGIC, _OPTION_MAGIC = b"NBDMAGIC", b"IHAVEOPT"
_REPLY_MAGIC, _REQUEST, _ANSWER = 0x3E889045565A9, 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_GO, _ACK, _EXPORT, _ERROR = 7, 1, 3, 1 << 31
_READ, _WRITE, _DISCONNECT, _FLUSH, _WRITE_ZEROES = 0, 1, 2, 3, 6
_CAN_FLUSH, _CAN_ZERO = 1 << 2, 1 << 6
_NO_HOLE = 1 << 1
_MAX_OPTION = 64 * 1024


class NbdDevice:
    """Implements ``Device`` on the only export of a server that the socket is connected to. A server that goes away raises ENODEV."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._socket.settimeout(TIMEOUT_S)
        self._count = 0
        try:
            self._size, self._flags = self._negotiate()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        """See the protocol."""
        return self

    def __exit__(self, *_: object) -> None:
        """See the protocol."""
        with suppress(OSError), self._socket:
            self._send(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))

    @property
    def size(self) -> int:
        """See the protocol."""
        return self._size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See the protocol."""
        while buffer:
            part = buffer[:MAX_REQUEST]
            self._ask(_READ, offset, len(part))
            self._receive_into(part)
            buffer, offset = buffer[len(part) :], offset + len(part)

    def write(self, data: memoryview, offset: int) -> None:
        """See the protocol."""
        while data:
            part = data[:MAX_REQUEST]
            self._ask(_WRITE, offset, len(part), part)
            data, offset = data[len(part) :], offset + len(part)

    def zero(self, offset: int, length: int, *, is_sparse: bool) -> None:
        """See the protocol."""
        if self._flags & _CAN_ZERO:
            self._ask(_WRITE_ZEROES, offset, length, flags=0 if is_sparse else _NO_HOLE)
            return
        while length:
            count = min(length, MAX_REQUEST)
            self.write(memoryview(bytes(count)), offset)
            offset, length = offset + count, length - count

    def sync(self) -> None:
        """See the protocol."""
        if self._flags & _CAN_FLUSH:
            self._ask(_FLUSH, 0, 0)

    def _negotiate(self) -> tuple[int, int]:
        """Agree on the export with the empty name, and give its size and flags."""
        greeting = self._receive(18)
        if greeting[:16] != _MAGIC + _OPTION_MAGIC:
            raise OSError(errno.EPROTO, "what answers is no NBD server")
        flags = struct.unpack(">H", greeting[16:])[0] & (_FIXED_NEWSTYLE | _NO_ZEROES)
        self._send(struct.pack(">I", flags) + _OPTION_MAGIC + struct.pack(">IIIH", _GO, 6, 0, 0))
        export: tuple[int, int] | None = None
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._receive(20))
            if magic != _REPLY_MAGIC or length > _MAX_OPTION:
                raise OSError(errno.EPROTO, "the NBD server breaks the protocol")
            content = self._receive(length)
            if kind & _ERROR:
                raise OSError(errno.ENODEV, f"the NBD server refuses: {content.decode(errors='replace')}")
            if kind == _EXPORT and content[:2] == b"\0\0":
                export = struct.unpack(">QH", content[2:12])
            if kind == _ACK and export is not None:
                return export

    def _ask(self, command: int, offset: int, length: int, data: memoryview | None = None, *, flags: int = 0) -> None:
        """Send a request, and receive the answer's head. Raises OSError with what the server says."""
        self._count += 1
        self._send(struct.pack(">IHHQQI", _REQUEST, flags, command, self._count, offset, length))
        if data is not None:
            self._send(data)
        magic, error, cookie = struct.unpack(">IIQ", self._receive(16))
        if (magic, cookie) != (_ANSWER, self._count):
            raise OSError(errno.EPROTO, "the NBD server answers something else than was asked")
        if error:
            raise OSError(
                errno.EIO if error == errno.ESHUTDOWN else error, f"the volume's server tells of error {error}"
            )

    def _send(self, data: bytes | memoryview) -> None:
        try:
            self._socket.sendall(data)
        except (TimeoutError, ConnectionError) as exc:
            raise _gone(exc) from exc

    def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        self._receive_into(memoryview(data))
        return bytes(data)

    def _receive_into(self, buffer: memoryview) -> None:
        while buffer:
            try:
                count = self._socket.recv_into(buffer)
            except (TimeoutError, ConnectionError) as exc:
                raise _gone(exc) from exc
            if count == 0:
                raise _gone("it closed the connection")
            buffer = buffer[count:]


def _gone(why: object) -> OSError:
    """Give the error for a volume that cannot be reached any more: what was to be put there is as good as before."""
    return OSError(errno.ENODEV, f"the volume's server does not answer ({why})")
