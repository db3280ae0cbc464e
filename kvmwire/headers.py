"""Which HTTP headers users may set."""

from __future__ import annotations

import re

from kvmwire.codes import FailureCode, WireError

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE = re.compile(r"[!-~\x80-\xff](?:[ -~\t\x80-\xff]*[!-~\x80-\xff])?|")
_MAX_VALUE_LENGTH = 4096
_SECRET = re.compile(r"authorization|cookie|token|secret|passw|credential|api-?key|signature", re.IGNORECASE)
_FORBIDDEN = frozenset(
    {"accept-encoding", "connection", "content-encoding", "content-length", "expect", "host", "if-match"}
    | {"if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "keep-alive", "proxy-authorization"}
    | {"proxy-connection", "range", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings"}
    | {"x-http-method", "x-http-method-override", "x-method-override"}  # would make a DELETE of our GET
)


def check_header_name(name: str) -> str:
    """Give the name back, or raise WireError with HEADER_FORBIDDEN: not a token (RFC 9110, 5.1), or ours to set."""
    if not _NAME.fullmatch(name):
        raise WireError(FailureCode.HEADER_FORBIDDEN, f"header name {name[:40]!a} is not a token as of RFC 9110.")
    if name.lower() in _FORBIDDEN:
        raise WireError(FailureCode.HEADER_FORBIDDEN, f"header {name}: the transfer sets this one itself.")
    return name


def is_likely_secret(name: str) -> bool:
    """Whether a header of this name usually carries what others must not read."""
    return _SECRET.search(name) is not None


def check_header_value(value: str) -> str:
    """Give the value back, or raise WireError with HEADER_FORBIDDEN; the message never shows the value."""
    if len(value) > _MAX_VALUE_LENGTH or not _VALUE.fullmatch(value):
        raise WireError(
            FailureCode.HEADER_FORBIDDEN,
            f"a header's value has a control character, outer space or more than {_MAX_VALUE_LENGTH} characters.",
        )
    return value
