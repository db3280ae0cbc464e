"""What goes wrong between TLS and us, in words: whom we do not believe, and who wants to see a certificate of ours."""

from __future__ import annotations

import errno
import ssl
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import aiohttp

from kvmd.errors import SourceError, TlsClientCertError, TlsVerifyError
from kvmwire.origins import OriginPattern
from kvmwire.source import SourceUrl

_NAMES = frozenset({62, 63, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, _EMAIL_MISMATCH, _IP_ADDRESS_MISMATCH
_TIMES = frozenset({9, 10, 13, 14})  # X509_V_ERR_CERT_NOT_YET_VALID, _CERT_HAS_EXPIRED, and errors in these fields
_WEAK = frozenset({66, 67, 68})  # X509_V_ERR_EE_KEY_TOO_SMALL, _CA_KEY_TOO_SMALL, _CA_MD_TOO_WEAK
_OURS_REFUSED = (
    "CERTIFICATE_REQUIRED",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_UNSUPPORTED_CERTIFICATE",
    "ALERT_CERTIFICATE_REVOKED",
    "ALERT_CERTIFICATE_EXPIRED",
    "ALERT_CERTIFICATE_UNKNOWN",
    "ALERT_UNKNOWN_CA",
    "ALERT_ACCESS_DENIED",
)
_OLD = ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW", "NO_PROTOCOLS_AVAILABLE")
_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
_HANDSHAKE, _CERTIFICATE_REQUEST = 22, 13  # content and message type (RFC 8446, 5.1 and 4)


class Handshake:
    """What the server asked for while the connection of one request was made."""

    def __init__(self) -> None:
        self.asked_for_certificate = False


_current: ContextVar[Handshake | None] = ContextVar("handshake", default=None)


class HandshakeWatch:
    """Notes what servers ask for in handshakes.

    The ssl module tells it through a callback alone, which is called for each record, too: a download would be slowed by it.
    """

    def __init__(self) -> None:
        self._users = Counter[ssl.SSLContext]()

    @contextmanager
    def noting(self, context: ssl.SSLContext, handshake: Handshake) -> Generator[None]:
        """Note there what is asked for while a request's connection is made: its handshake is read in the request's context."""
        self._users[context] += 1
        _set_callback(context, _note)
        token = _current.set(handshake)
        try:
            yield
        finally:
            _current.reset(token)
            self._users[context] -= 1
            if not self._users[context]:
                del self._users[context]
                _set_callback(context, None)


def _set_callback(context: ssl.SSLContext, callback: object) -> None:
    context._msg_callback = callback  # type: ignore[attr-defined] # noqa: SLF001 # pyright: ignore - since Python 3.8, without a public name


def _note(_: object, direction: str, __: object, content: int, message: int, ___: bytes) -> None:
    handshake = _current.get()
    if handshake is not None and (direction, content, message) == ("read", _HANDSHAKE, _CERTIFICATE_REQUEST):
        handshake.asked_for_certificate = True


def client_certificate_error(url: SourceUrl, shown: str | None) -> SourceError:
    """Give the error for a server that wants a client certificate; ``shown`` says whose it was shown, None: no one's."""
    origin = OriginPattern(url.origin.scheme, url.origin.host, url.origin.port)
    if shown is None:
        return TlsClientCertError(
            f"source {url}: the server wants a client certificate, and none was shown: nothing that the template names has one "
            f"for {origin}.",
            hint=f"Hand one out, `kvmctl credential add NAME --for {origin} --client-cert FILE --key FILE`, and name it in the "
            "template's `credentials`; with `kvmd fetch` give --cert and --key.",
        )
    return TlsClientCertError(
        f"source {url}: the server does not accept the client certificate of {shown}.",
        hint="Ask whoever runs the server which CA's certificates it accepts, and whether this one has expired or was revoked.",
    )


def tls_error(url: SourceUrl, exc: BaseException, shown: str | None) -> SourceError:
    """Give the error for what the TLS library says: about the server's certificate, or, in an alert, about ours."""
    error = _ssl_error(exc)
    if isinstance(error, ssl.SSLCertVerificationError):
        return _not_trusted(url, error)
    reason = (error.reason if error is not None else None) or _text(exc)
    if any(one in reason.upper() for one in _OURS_REFUSED):
        return client_certificate_error(url, shown)
    return TlsVerifyError(
        f"source {url}: TLS failed: {reason.replace('_', ' ').lower()}.", hint=_hint_for(reason.upper())
    )


def _not_trusted(url: SourceUrl, error: ssl.SSLCertVerificationError) -> SourceError:
    origin = OriginPattern(url.origin.scheme, url.origin.host, url.origin.port)
    said = f"source {url}: TLS failed: the server's certificate is not trusted, {error.verify_message}".rstrip(".")
    if error.verify_code in _NAMES:
        hint = "The server shows a certificate of another name: correct the URL, or have the server's certificate corrected."
    elif error.verify_code in _TIMES:
        hint = "Renew the server's certificate; check the clock of this host, too."
    elif error.verify_code in _WEAK:
        hint = "Have the server's certificate issued anew, with a longer key and SHA-256."
    else:
        hint = (
            f"If its CA is a private one, hand that out: `kvmctl credential add NAME --for {origin} --ca FILE`; with `kvmd fetch` "
            "give --ca FILE. For an origin with a CA of its own no other is believed."
        )
    return TlsVerifyError(f"{said}.", hint=hint)


def _hint_for(reason: str) -> str | None:
    if any(one in reason for one in _OLD):
        return "The server speaks no TLS 1.2 or newer: have it updated. Older versions are not used, whatever is configured."
    if any(one in reason for one in _NOT_TLS):
        return "The port does not speak TLS: check the URL's scheme and port."
    return None


def is_silence(error: SourceError) -> bool:
    """Whether the server broke off without a word, or with one that may mean anything."""
    cause = error.__cause__
    if isinstance(cause, aiohttp.ServerDisconnectedError | ConnectionResetError):
        return True
    said = _ssl_error(cause) if cause is not None else None
    if said is not None:
        return "HANDSHAKE_FAILURE" in (said.reason or "")
    return isinstance(cause, aiohttp.ClientOSError) and cause.errno in {errno.ECONNRESET, errno.EPIPE}


def _ssl_error(exc: BaseException) -> ssl.SSLError | None:
    """Give what the TLS library said, out of what aiohttp wraps around it."""
    inner: BaseException = exc
    match exc:
        case aiohttp.ClientConnectorCertificateError():
            inner = exc.certificate_error
        case aiohttp.ClientConnectorError():
            inner = exc.os_error
        case BaseException(__cause__=ssl.SSLError() as cause):
            inner = cause
        case _:
            pass
    return inner if isinstance(inner, ssl.SSLError) else None


def _text(exc: BaseException) -> str:
    return (str(exc) or type(exc).__name__).encode("ascii", "replace").decode()[:300].rstrip(".")
