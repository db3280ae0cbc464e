"""Whether it was KVM that kept QEMU from starting a machine, as QEMU's own words tell."""

from __future__ import annotations

import re

_KVM = re.compile(
    r"""(?:^|:\ )                                                       # what QEMU says begins a line, or follows who says it
    (
      failed\ to\ [sg]et\ MSR\ 0x[^\n]*
    | (?:[^\s:]*/)?kvm(?:-all)?\.c:\d+:\ \w+:\ Assertion\ [^\n]*
    | failed\ to\ initialize\ kvm:[^\n]*
    | Could\ not\ access\ KVM\ kernel\ module:[^\n]*
    | ioctl\(KVM_\w+\)\ failed[^\n]*
    | KVM_\w+\ failed[^\n]*
    | kvm\ version\ [^\n]*
    | kvm\ does\ not\ support\ [^\n]*
    | kvm_init_vcpu:[^\n]*
    | kvm:\ error:?\ [^\n]*
    | invalid\ accelerator\ kvm[^\n]*
    )""",
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
_PASSING = re.compile(
    r"Cannot allocate memory|Too many open files|Resource temporarily unavailable|Interrupted system call"
)
"""The host lacks something just now: KVM itself may work."""


def kvm_failure(message: str) -> str:
    """Give what QEMU, ended at its start, says about KVM not working here; empty where it ended for another reason.

    QEMU's words are never translated, while those of libvirt around them may be. The names of files that contain "kvm" tell nothing.
    """
    found = [match[1] for match in _KVM.finditer(message)]
    if not found or any(map(_PASSING.search, found)):
        return ""
    return found[0].rstrip(" .")
