"""Every error of kvmd, in one tree.

KvmdError
  ConfigError            a setting cannot be used
  SourceError            one source cannot give the bytes; another source may
    (one class a code, from UrlInvalidError to EmptySourceError)
    TransferError        no source is left
  ContentError           the bytes are there and are not what was promised
    MetalinkInvalidError, MetalinkAmbiguousError, ChecksumMismatchError, ChecksumWeakError, ChecksumFormatError,
    ChecksumConflictError, SignatureError, FormatMismatchError, FormatAmbiguousError, ImageUnsafeError,
    ImageInvalidError, ImageTruncatedError, ImagePolicyError, VirtualSizeError, DecompressError, ConvertError
  StoreError             the pool cannot take or keep the volume
    NoSpaceError, PoolMissingError, PoolReadonlyError, StoreIoError, ExistsError, InUseError
    KeptForOthersError, MadeElsewhereError
    HypervisorUnreachableError, PoolUnsupportedError
  MachineError           a virtual machine cannot be made, started or removed
  RefusedError           the request itself is refused: policy, cancelled, deadline, unknown template
    CredentialInvalidError, SecretError
  BrokerError            the MQTT broker cannot be used
  InternalError          something that should not happen
    InspectorError, OpenFilesError

Each carries a ``code`` (stable), a ``message`` (what, where, expected and got, what was done) and a ``hint`` (what a person
can do next; the code's usual one where nothing better is known).
"""

from __future__ import annotations

import errno
from typing import cast

from kvmwire.codes import CODES, FailureCode, WireError
from kvmwire.status import Failure


class KvmdError(Exception):
    """Root of kvmd's errors."""

    code: FailureCode = FailureCode.INTERNAL

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint if hint is not None else CODES[self.code].hint

    @property
    def failure(self) -> Failure:
        """The error as it is announced."""
        return Failure(code=self.code, message=self.message, hint=self.hint)


class ConfigError(KvmdError):
    """A setting, or a file it names, cannot be used."""

    code = FailureCode.POLICY


class SourceError(KvmdError):
    """One source cannot give the bytes. ``retry_after_s`` is what the server asked for, 0 where it did not.

    ``is_throttle`` tells that the server wants fewer requests; ``status`` is the HTTP status, where there was one.
    """

    code = FailureCode.PROTOCOL

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        retry_after_s: float = 0.0,
        is_throttle: bool = False,
        status: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s
        self.is_throttle = is_throttle
        self.status = status


class UrlInvalidError(SourceError):
    """The URL cannot be read."""

    code = FailureCode.URL_INVALID


class UrlForbiddenError(SourceError):
    """The policy does not allow the protocol, or the address that the URL leads to."""

    code = FailureCode.URL_FORBIDDEN


class ProtocolUnsupportedError(SourceError):
    """No plug-in that is installed serves the URL's protocol."""

    code = FailureCode.UNSUPPORTED


class HeaderForbiddenError(SourceError):
    """A header may not be sent."""

    code = FailureCode.HEADER_FORBIDDEN


class SourceUnreachableError(SourceError):
    """No connection, or a connection or answer that broke off; trying again may help."""

    code = FailureCode.SOURCE_UNREACHABLE


class SourceStatusError(SourceError):
    """The server answered with a status that trying again does not change."""

    code = FailureCode.SOURCE_STATUS


class SourceExpiredError(SourceError):
    """The source gave bytes before, and refuses now."""

    code = FailureCode.SOURCE_EXPIRED


class SourceStalledError(SourceError):
    """The source is too slow to be alive."""

    code = FailureCode.SOURCE_STALLED


class TlsVerifyError(SourceError):
    """The server's certificate or protocol version is not acceptable."""

    code = FailureCode.TLS_VERIFY


class TlsClientCertError(SourceError):
    """The server wants a client certificate."""

    code = FailureCode.TLS_CLIENT_CERT


class CredentialMissingError(SourceError):
    """A credential that the template names is not installed on this host, or not any more."""

    code = FailureCode.CREDENTIAL_INVALID

    def __init__(self, name: str) -> None:
        super().__init__(
            f"credential {name} is not installed on this host yet; it goes on as soon as it is.",
            hint=f"Hand it out with `kvmctl credential add {name}`; `kvmctl credential list` tells what each host has.",
        )


class RedirectLimitError(SourceError):
    """Too many redirects."""

    code = FailureCode.REDIRECT_LIMIT


class RedirectForbiddenError(SourceError):
    """A redirect leads where it may not."""

    code = FailureCode.REDIRECT_FORBIDDEN


class RangeMismatchError(SourceError):
    """The server sent another range than the one asked for."""

    code = FailureCode.RANGE_MISMATCH


class EntityChangedError(SourceError):
    """What the URL names is another file now."""

    code = FailureCode.ENTITY_CHANGED


class ContentEncodingError(SourceError):
    """The body is encoded although identity was asked for."""

    code = FailureCode.CONTENT_ENCODING


class ProtocolError(SourceError):
    """The server broke HTTP's rules."""

    code = FailureCode.PROTOCOL


class TooLargeError(SourceError):
    """More bytes than allowed."""

    code = FailureCode.TOO_LARGE


class EmptySourceError(SourceError):
    """The file has no bytes."""

    code = FailureCode.EMPTY


class TransferError(SourceError):
    """No source is left; carries the failure that stands for all of them."""

    def __init__(self, failure: Failure, *, retry_after_s: float = 0.0) -> None:
        super().__init__(failure.message, hint=failure.hint, retry_after_s=retry_after_s)
        self.code = failure.code


class ContentError(KvmdError):
    """The bytes are there and are not what was promised."""

    code = FailureCode.IMAGE_INVALID


class MetalinkInvalidError(ContentError):
    """The Metalink document cannot be read, or names nothing that can be downloaded."""

    code = FailureCode.METALINK_INVALID


class MetalinkAmbiguousError(ContentError):
    """The Metalink document describes several files, and nothing tells which of them is meant."""

    code = FailureCode.METALINK_AMBIGUOUS


class ChecksumMismatchError(ContentError):
    """The stored bytes do not have the digest that was promised."""

    code = FailureCode.CHECKSUM_MISMATCH


class ChecksumWeakError(ContentError):
    """The checksum's algorithm is not good enough for the policy."""

    code = FailureCode.CHECKSUM_WEAK


class ChecksumFormatError(ContentError):
    """There is no checksum where one was said to be."""

    code = FailureCode.CHECKSUM_FORMAT


class ChecksumConflictError(ContentError):
    """Two statements about one file's checksum contradict each other."""

    code = FailureCode.CHECKSUM_CONFLICT


class SignatureError(ContentError):
    """A signature was not made by a key that is known, or not of these bytes."""

    code = FailureCode.EVENT_SIGNATURE


class FormatMismatchError(ContentError):
    """The content is of another format than expected."""

    code = FailureCode.FORMAT_MISMATCH


class FormatAmbiguousError(ContentError):
    """The content is of several formats at once."""

    code = FailureCode.FORMAT_AMBIGUOUS


class ImageUnsafeError(ContentError):
    """The image refers to something outside of itself, or wants features that are not known."""

    code = FailureCode.IMAGE_UNSAFE


class ImageInvalidError(ContentError):
    """The image contradicts its own format."""

    code = FailureCode.IMAGE_INVALID


class ImageTruncatedError(ContentError):
    """The image's structures lead beyond the end of its file."""

    code = FailureCode.IMAGE_TRUNCATED


class ImagePolicyError(ContentError):
    """The image is sound, and of a kind that the host's policy does not allow."""

    code = FailureCode.POLICY


class VirtualSizeError(ContentError):
    """The image's virtual size is over the limit."""

    code = FailureCode.VIRTUAL_SIZE


class DecompressError(ContentError):
    """The compressed file is damaged, or not one that can be unpacked on the way."""

    code = FailureCode.DECOMPRESS


class ConvertError(ContentError):
    """The image cannot be made into the format that the pool takes."""

    code = FailureCode.CONVERT


class StoreError(KvmdError):
    """The pool cannot take or keep the volume."""

    code = FailureCode.IO


class NoSpaceError(StoreError):
    """The pool has not enough free space."""

    code = FailureCode.NO_SPACE


class PoolMissingError(StoreError):
    """The pool is not configured, or its folder is not there."""

    code = FailureCode.POOL_MISSING


class HypervisorUnreachableError(PoolMissingError):
    """libvirt does not answer; what was asked of it may have been done or not."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            hint="Start libvirtd on the host, and let kvmd talk to it (group libvirt); it is tried again by itself.",
        )


class PoolUnsupportedError(StoreError):
    """The pool is of a kind that this version puts no volumes into."""

    code = FailureCode.UNSUPPORTED


class PoolReadonlyError(StoreError):
    """The pool cannot be written to."""

    code = FailureCode.POOL_READONLY


class StoreIoError(StoreError):
    """Reading, writing or syncing failed; what was written is not trusted any more."""

    code = FailureCode.IO


class ExistsError(StoreError):
    """Another volume has the name."""

    code = FailureCode.EXISTS


class InUseError(StoreError):
    """The volume, or its partial file, is in use by somebody else."""

    code = FailureCode.IN_USE


class MadeElsewhereError(InUseError):
    """Another host of a shared pool makes the volume right now; ``host`` is empty where it cannot be told which."""

    def __init__(self, volume: str, *, host: str) -> None:
        who = f"host {host}" if host else "another host"
        super().__init__(
            f"volume {volume}: {who} downloads it into the shared pool; it is used as soon as it is there.",
            hint="Nothing is to be done. Should that host fail or end, this one goes on with what is stored.",
        )


class KeptForOthersError(InUseError):
    """The volume stays, because other hosts of a shared pool need it; this one does not any more."""


class MachineError(KvmdError):
    """A virtual machine cannot be made, started or removed."""

    code = FailureCode.MACHINE


class RefusedError(KvmdError):
    """The request is refused."""

    code = FailureCode.POLICY


class DeadlineError(RefusedError):
    """The deadline passed."""

    code = FailureCode.DEADLINE


class CancelledByUserError(RefusedError):
    """Somebody cancelled it."""

    code = FailureCode.CANCELLED


class TemplateUnknownError(RefusedError):
    """No register event for the template has been seen."""

    code = FailureCode.TEMPLATE_UNKNOWN


class CredentialInvalidError(RefusedError):
    """A credential is missing on this host, or cannot be used."""

    code = FailureCode.CREDENTIAL_INVALID


class SecretError(RefusedError):
    """A sealed secret cannot be opened here, or a secret stands where everybody can read it."""

    code = FailureCode.SECRET


class BrokerError(KvmdError):
    """The MQTT broker cannot be used."""

    code = FailureCode.SOURCE_UNREACHABLE


class InternalError(KvmdError):
    """Something that should not happen."""

    code = FailureCode.INTERNAL


class InspectorError(InternalError):
    """The inspector's unit cannot be reached."""


class OpenFilesError(InternalError):
    """This process may open no more files."""

    def __init__(self, what: str, *, limit: int) -> None:
        super().__init__(
            f"{what}: this process may have no more than {limit} files open at once.",
            hint="Raise the limit of open files (LimitNOFILE in systemd).",
        )


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """Give the errors in a group and in the groups inside of it."""
    found: list[BaseException] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found += leaves(cast("BaseExceptionGroup[BaseException]", error))
        else:
            found.append(error)
    return found


def source_error(error: WireError) -> SourceError:
    """Give the SourceError for what kvmwire says about a URL or a header."""
    kind = HeaderForbiddenError if error.code is FailureCode.HEADER_FORBIDDEN else UrlInvalidError
    return kind(error.message, hint=error.hint)


def store_error(what: str, error: OSError) -> StoreError:
    """Give the error for what the system says of a pool's file or folder. ``what`` begins the message: what was done, to what."""
    return _store_error_class(error.errno)(f"{what}: {error.strerror or error}.")


def _store_error_class(number: int | None) -> type[StoreError]:
    match number:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return NoSpaceError
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return PoolReadonlyError
        case errno.ENOENT | errno.ENOTDIR | errno.ELOOP | errno.ENODEV | errno.ESTALE:
            return PoolMissingError
        case errno.EWOULDBLOCK | errno.EBUSY:
            return InUseError
        case _:
            return StoreIoError
