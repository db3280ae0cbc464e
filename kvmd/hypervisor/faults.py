"""What libvirt's errors mean for us."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from kvmd.errors import (
    ExistsError,
    InUseError,
    KvmdError,
    NoSpaceError,
    PoolMissingError,
    PoolReadonlyError,
    StoreIoError,
)
from kvmd.hypervisor.library import load_libvirt

if TYPE_CHECKING:
    from libvirt import libvirtError

_FULL = (
    "No space left",
    "no large enough free extent",
    "not enough free space",
    "not enough unallocated space",
    "quota exceeded",
)
"""Programs that libvirt runs (parted, lvcreate) tell only in words that there is no space."""


def is_lost(error: libvirtError) -> bool:
    """Whether it is the connection that failed, and not what was asked for."""
    libvirt = load_libvirt()
    code, domain = error.get_error_code(), error.get_error_domain()
    return code in {libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN, libvirt.VIR_ERR_RPC} or (
        domain == libvirt.VIR_FROM_RPC and code in {libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_INTERNAL_ERROR}
    )


def translate(error: libvirtError, what: str, otherwise: type[KvmdError] = StoreIoError) -> KvmdError:
    """Give our error; one of ``otherwise`` where libvirt's code says nothing that we have a class for."""
    return (_kind(error) or otherwise)(f"{what}: libvirt says: {error}.")


def _kind(error: libvirtError) -> type[KvmdError] | None:
    libvirt = load_libvirt()
    code, text = error.get_error_code(), str(error)
    if code == libvirt.VIR_ERR_NO_STORAGE_POOL or (
        code == libvirt.VIR_ERR_OPERATION_INVALID and error.get_error_domain() == libvirt.VIR_FROM_STORAGE
    ):
        return PoolMissingError
    if code == libvirt.VIR_ERR_STORAGE_VOL_EXIST:
        return ExistsError
    if any(words.lower() in text.lower() for words in _FULL):
        return NoSpaceError
    if code == libvirt.VIR_ERR_SYSTEM_ERROR:
        return _by_errno(error.get_int1())
    if code in {libvirt.VIR_ERR_ACCESS_DENIED, libvirt.VIR_ERR_OPERATION_DENIED}:
        return PoolReadonlyError
    return None


def _by_errno(number: int | None) -> type[KvmdError] | None:
    match number:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return NoSpaceError
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return PoolReadonlyError
        case errno.EBUSY:
            return InUseError
        case _:
            return None
