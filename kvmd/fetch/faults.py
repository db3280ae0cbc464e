"""What aiohttp, ssl and the socket raise, turned into our errors."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import ssl
from collections.abc import Generator
from contextlib import contextmanager

import aiohttp

from kvmd.errors import (
    KvmdError,
    OpenFilesError,
    ProtocolError,
    SourceError,
    SourceStatusError,
    SourceUnreachableError,
    UrlForbiddenError,
)
from kvmd.fetch.connections import ForbiddenAddressError
from kvmd.fetch.tls import tls_error
from kvmwire.source import SourceUrl


@contextmanager
def translated(url: SourceUrl, shown: str | None = None) -> Generator[None]:
    """Turn what aiohttp, ssl and the socket raise into our errors; ``shown`` says whose client certificate was shown."""
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as exc:
        raise tls_error(url, exc, shown) from exc
    except aiohttp.ServerTimeoutError as exc:
        raise SourceUnreachableError(f"source {url}: no connection within the connect timeout.") from exc
    except (aiohttp.ClientOSError, ssl.SSLError) as exc:
        raise _os_error(url, exc, shown) from exc
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError) as exc:
        raise SourceUnreachableError(f"source {url}: the connection broke off ({_text(exc)}).") from exc
    except aiohttp.ClientHttpProxyError as exc:
        raise _proxy_error(url, exc) from exc
    except (aiohttp.ClientError, ValueError, asyncio.IncompleteReadError) as exc:
        raise ProtocolError(f"source {url}: not proper HTTP ({_text(exc)}); refused.") from exc


def _proxy_error(url: SourceUrl, exc: aiohttp.ClientHttpProxyError) -> SourceError:
    """Say what the proxy answered to CONNECT; a proxy that cannot reach the origin is asked again later."""
    proxy = exc.request_info.real_url.authority
    said = f"source {url}: its proxy {proxy} made no connection (HTTP {exc.status} {exc.message[:100]!a})"
    if exc.status >= 500:  # noqa: PLR2004 - the statuses of a server's own trouble
        return SourceUnreachableError(f"{said}; it is asked again later.", status=exc.status)
    return SourceStatusError(f"{said}; not asked again.", status=exc.status)


def _os_error(url: SourceUrl, exc: OSError, shown: str | None) -> KvmdError:
    cause = exc.os_error if isinstance(exc, aiohttp.ClientConnectorError) else exc
    if isinstance(cause, ForbiddenAddressError):
        return UrlForbiddenError(
            f"source {url}: its address {cause.address} is not allowed by this host's policy; not dialled."
        )
    if cause.errno in {errno.EMFILE, errno.ENFILE}:
        return OpenFilesError(f"source {url}", limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    if isinstance(exc, ssl.SSLError) or isinstance(exc.__cause__, ssl.SSLError):
        return tls_error(url, exc, shown)
    if isinstance(exc, aiohttp.ClientConnectorError):
        return SourceUnreachableError(
            f"source {url}: no connection to {exc.host}:{exc.port} ({_reason(exc.os_error)}).",
            is_throttle=cause.errno == errno.ECONNREFUSED,  # it may have as many connections as it wants
        )
    return SourceUnreachableError(f"source {url}: {_text(exc)}.")


def _reason(error: OSError) -> str:
    """Say why in the system's words: asyncio puts its own text into strerror, a resolver's error has none but its own."""
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else _text(error)


def _text(exc: BaseException) -> str:
    return (str(exc) or type(exc).__name__).encode("ascii", "replace").decode()[:300].rstrip(".")
