"""Failure codes, and the one table that says what each of them means.

A released code never changes its meaning: programs and exit codes depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class FailureCode(StrEnum):
    """Why something did not become ready; ``CODES`` holds the facts of each."""

    URL_INVALID = "URL_INVALID"
    URL_FORBIDDEN = "URL_FORBIDDEN"
    SOURCE_UNREACHABLE = "SOURCE_UNREACHABLE"
    SOURCE_STATUS = "SOURCE_STATUS"
    SOURCE_EXPIRED = "SOURCE_EXPIRED"
    SOURCE_STALLED = "SOURCE_STALLED"
    TLS_VERIFY = "TLS_VERIFY"
    TLS_CLIENT_CERT = "TLS_CLIENT_CERT"
    REDIRECT_LIMIT = "REDIRECT_LIMIT"
    REDIRECT_FORBIDDEN = "REDIRECT_FORBIDDEN"
    HEADER_FORBIDDEN = "HEADER_FORBIDDEN"
    RANGE_MISMATCH = "RANGE_MISMATCH"
    ENTITY_CHANGED = "ENTITY_CHANGED"
    CONTENT_ENCODING = "CONTENT_ENCODING"
    TOO_LARGE = "TOO_LARGE"
    EMPTY = "EMPTY"
    PROTOCOL = "PROTOCOL"
    METALINK_INVALID = "METALINK_INVALID"
    METALINK_AMBIGUOUS = "METALINK_AMBIGUOUS"
    CHECKSUM_FORMAT = "CHECKSUM_FORMAT"
    CHECKSUM_WEAK = "CHECKSUM_WEAK"
    CHECKSUM_CONFLICT = "CHECKSUM_CONFLICT"
    CHECKSUM_MISMATCH = "CHECKSUM_MISMATCH"
    FORMAT_MISMATCH = "FORMAT_MISMATCH"
    FORMAT_AMBIGUOUS = "FORMAT_AMBIGUOUS"
    IMAGE_UNSAFE = "IMAGE_UNSAFE"
    IMAGE_INVALID = "IMAGE_INVALID"
    IMAGE_TRUNCATED = "IMAGE_TRUNCATED"
    VIRTUAL_SIZE = "VIRTUAL_SIZE"
    DECOMPRESS = "DECOMPRESS"
    CONVERT = "CONVERT"
    NO_SPACE = "NO_SPACE"
    POOL_MISSING = "POOL_MISSING"
    POOL_READONLY = "POOL_READONLY"
    IO = "IO"
    EXISTS = "EXISTS"
    IN_USE = "IN_USE"
    TEMPLATE_UNKNOWN = "TEMPLATE_UNKNOWN"
    EVENT_SCHEMA = "EVENT_SCHEMA"
    EVENT_SIGNATURE = "EVENT_SIGNATURE"
    EVENT_EXPIRED = "EVENT_EXPIRED"
    EVENT_STALE = "EVENT_STALE"
    SECRET = "SECRET"  # noqa: S105 - a code's name, not a secret
    CREDENTIAL_INVALID = "CREDENTIAL_INVALID"
    UNSUPPORTED = "UNSUPPORTED"
    POLICY = "POLICY"
    CANCELLED = "CANCELLED"
    DEADLINE = "DEADLINE"
    MACHINE = "MACHINE"
    INTERNAL = "INTERNAL"


class Exit(IntEnum):
    """Exit codes of the commands."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    VERIFICATION = 3
    UNREACHABLE = 4
    POLICY = 5
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class CodeFacts:
    """What a code means, whether trying again can help, its exit code and the usual next step of a person."""

    meaning: str
    retryable: bool
    exit: Exit
    hint: str


def _final(exit_code: Exit, meaning: str, hint: str) -> CodeFacts:
    return CodeFacts(meaning, retryable=False, exit=exit_code, hint=hint)


def _retryable(exit_code: Exit, meaning: str, hint: str) -> CodeFacts:
    return CodeFacts(meaning, retryable=True, exit=exit_code, hint=hint)


CODES: dict[FailureCode, CodeFacts] = {
    FailureCode.URL_INVALID: _final(
        Exit.USAGE, "the URL cannot be parsed or is written in a misleading way", "Correct the URL and publish again."
    ),
    FailureCode.URL_FORBIDDEN: _final(
        Exit.POLICY,
        "the URL's protocol or the address it leads to is not allowed on this host",
        "Use another source, or allow its network in policy.allowed_networks on the host.",
    ),
    FailureCode.SOURCE_UNREACHABLE: _retryable(
        Exit.UNREACHABLE,
        "no connection, or the server failed again and again without progress",
        "Check that the host can reach the source; it is tried again by itself.",
    ),
    FailureCode.SOURCE_STATUS: _final(
        Exit.UNREACHABLE,
        "the server answered with a final HTTP status such as 401, 403, 404 or 410",
        "Check the URL and what the server needs to grant access, then publish again.",
    ),
    FailureCode.SOURCE_EXPIRED: _final(
        Exit.UNREACHABLE,
        "the source granted access at first and then refused it, as expired presigned URLs do",
        "Publish a new event with a fresh URL; what is stored is kept and the download goes on from there.",
    ),
    FailureCode.SOURCE_STALLED: _retryable(
        Exit.UNREACHABLE,
        "the source sent nothing, or next to nothing, for longer than the stall timeout",
        "Check the source's load and the link to it; it is tried again by itself.",
    ),
    FailureCode.TLS_VERIFY: _final(
        Exit.UNREACHABLE,
        "the server's certificate or TLS version was not accepted",
        "Give the host the CA that signed the certificate, or correct the server's certificate.",
    ),
    FailureCode.TLS_CLIENT_CERT: _final(
        Exit.UNREACHABLE, "the server wants a client certificate", "Hand out a client certificate for this origin."
    ),
    FailureCode.REDIRECT_LIMIT: _final(
        Exit.UNREACHABLE, "more than 5 redirects", "Use the URL at the end of the redirects."
    ),
    FailureCode.REDIRECT_FORBIDDEN: _final(
        Exit.POLICY,
        "a redirect led where the policy does not allow",
        "Use the final URL directly if it is to be trusted.",
    ),
    FailureCode.HEADER_FORBIDDEN: _final(
        Exit.POLICY, "a header that users may not set, or an unsafe one", "Remove the header from the event."
    ),
    FailureCode.RANGE_MISMATCH: _final(
        Exit.FAILED,
        "the server sent another range than the one asked for",
        "Use another source; this server is broken.",
    ),
    FailureCode.ENTITY_CHANGED: _final(
        Exit.VERIFICATION,
        "the file changed at its source during the download, twice",
        "Publish again when the publisher has finished changing the file.",
    ),
    FailureCode.CONTENT_ENCODING: _final(
        Exit.FAILED,
        "the server sent a content-encoded body although identity was asked for",
        "Switch off compression for this file at the server.",
    ),
    FailureCode.TOO_LARGE: _final(
        Exit.POLICY,
        "more bytes than the event or the policy allows",
        "Correct the event's size, or raise policy.max_size.",
    ),
    FailureCode.EMPTY: _final(Exit.FAILED, "the file has no bytes", "Check what was uploaded to the source."),
    FailureCode.PROTOCOL: _final(
        Exit.FAILED, "the server broke its protocol's rules", "Use another source, or correct the server."
    ),
    FailureCode.METALINK_INVALID: _final(Exit.FAILED, "the Metalink document is not usable", "Correct the document."),
    FailureCode.METALINK_AMBIGUOUS: _final(
        Exit.FAILED, "the Metalink document describes several files", "Name one of the files in the event."
    ),
    FailureCode.CHECKSUM_FORMAT: _final(
        Exit.USAGE,
        "the checksum is not of the form {ALGORITHM}hex",
        "Write it like {SHA-256}<64 hexadecimal digits>.",
    ),
    FailureCode.CHECKSUM_WEAK: _final(
        Exit.POLICY,
        "the checksum's algorithm is too weak for this host's policy",
        "Give a SHA-256 or stronger checksum, or set policy.weak_checksums on the host.",
    ),
    FailureCode.CHECKSUM_CONFLICT: _final(
        Exit.VERIFICATION, "two given checksums contradict each other", "Ask the publisher which one is right."
    ),
    FailureCode.CHECKSUM_MISMATCH: _final(
        Exit.VERIFICATION,
        "the downloaded bytes do not have the promised checksum",
        "Compare the event's checksum with the publisher's; if it is right, the source serves a wrong file.",
    ),
    FailureCode.FORMAT_MISMATCH: _final(
        Exit.VERIFICATION, "the content is of another format than the event says", "Correct the format or the URL."
    ),
    FailureCode.FORMAT_AMBIGUOUS: _final(
        Exit.VERIFICATION, "the content is of several formats at once", "Do not use this file."
    ),
    FailureCode.IMAGE_UNSAFE: _final(
        Exit.VERIFICATION, "the image refers to files outside of itself or uses unknown features", "Flatten the image."
    ),
    FailureCode.IMAGE_INVALID: _final(Exit.VERIFICATION, "the image is damaged", "Build or download the image again."),
    FailureCode.IMAGE_TRUNCATED: _final(Exit.VERIFICATION, "the image lacks its end", "Upload the whole image."),
    FailureCode.VIRTUAL_SIZE: _final(
        Exit.POLICY,
        "the image's virtual size is over the limit",
        "Raise policy.max_virtual_size, or use another image.",
    ),
    FailureCode.DECOMPRESS: _final(Exit.FAILED, "the compressed file is damaged", "Upload the file again."),
    FailureCode.CONVERT: _final(
        Exit.FAILED, "the image could not be converted", "Publish it in the format the pool wants."
    ),
    FailureCode.NO_SPACE: _retryable(
        Exit.FAILED, "the pool has not enough free space", "Free space in the pool; it is tried again by itself."
    ),
    FailureCode.POOL_MISSING: _retryable(
        Exit.FAILED, "the pool is not configured or not there", "Add or mount the pool on the host."
    ),
    FailureCode.POOL_READONLY: _retryable(
        Exit.FAILED, "the pool cannot be written to", "Mount it writable, or give the daemon the right to write there."
    ),
    FailureCode.IO: _retryable(
        Exit.FAILED, "reading or writing the pool failed", "Check the disk and the kernel log of the host."
    ),
    FailureCode.EXISTS: _final(
        Exit.FAILED,
        "a volume with other content has that name",
        "Deploy under another `name`, or remove the volume that is there.",
    ),
    FailureCode.IN_USE: _retryable(
        Exit.FAILED, "the volume is in use", "Stop what uses it; it is tried again by itself."
    ),
    FailureCode.TEMPLATE_UNKNOWN: _retryable(
        Exit.FAILED, "no register event for this template has been seen", "Register the template."
    ),
    FailureCode.EVENT_SCHEMA: _final(Exit.USAGE, "the event is not of the agreed form", "Correct the event."),
    FailureCode.EVENT_SIGNATURE: _final(
        Exit.POLICY,
        "the event's signature is missing or wrong, or its key may not ask for this",
        "Publish with kvmctl, or sign with `kvmctl sign`; `kvmctl keys list` shows which key may sign what.",
    ),
    FailureCode.EVENT_EXPIRED: _final(Exit.FAILED, "the event's time had passed", "Publish a new event."),
    FailureCode.EVENT_STALE: _final(Exit.FAILED, "a newer event about the same subject is known", "Nothing to do."),
    FailureCode.SECRET: _final(
        Exit.POLICY,
        "a sealed secret cannot be opened, or a secret stands where everybody can read it",
        "Hand it out with `kvmctl credential add`, and change a secret that others have seen.",
    ),
    FailureCode.CREDENTIAL_INVALID: _retryable(
        Exit.FAILED,
        "a credential is missing or cannot be used",
        "Hand out a correct one with `kvmctl credential add`; what needs it goes on by itself.",
    ),
    FailureCode.UNSUPPORTED: _final(
        Exit.FAILED, "this version of kvmd cannot do that", "Leave it out, or update kvmd on the host."
    ),
    FailureCode.POLICY: _final(Exit.POLICY, "the host's policy forbids it", "Change the event or the host's policy."),
    FailureCode.CANCELLED: _final(Exit.FAILED, "somebody cancelled it", "Publish again, or send a recheck."),
    FailureCode.DEADLINE: _final(
        Exit.FAILED, "the deadline passed before it was done", "Publish with a later deadline."
    ),
    FailureCode.MACHINE: _final(Exit.FAILED, "the virtual machine could not be started", "See the machine's status."),
    FailureCode.INTERNAL: _retryable(
        Exit.FAILED, "kvmd failed in a way it did not expect", "See the host's log, and report the error."
    ),
}


class WireError(Exception):
    """Something that travels over MQTT, or a part of it, cannot be accepted.

    ``code`` is the failure code; ``hint`` says what the person can do next.
    """

    def __init__(self, code: FailureCode, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint if hint is not None else CODES[code].hint
