"""KVM's failures are told from others by QEMU's own words, as libvirt passed them on."""

from __future__ import annotations

import pytest

from kvmd.core.acceleration import kvm_failure

AT = "2026-11-26T14:07:34.774452Z qemu-system-x86_64:"
ENDED = "internal error: process exited while connecting to monitor:"
CLOSED = "internal error: qemu unexpectedly closed the monitor:"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            (
                f"{ENDED} {AT} error: failed to set MSR 0x10a to 0x69\n"
                "qemu-system-x86_64: ../../target/i386/kvm/kvm.c:3183: kvm_buf_set_msrs: Assertion "
                "`ret == cpu->kvm_msr_buf->nmsrs' failed."
            ),
            "failed to set MSR 0x10a to 0x69",
        ),
        (
            "qemu-system-x86_64: /build/target/i386/kvm.c:1799: kvm_put_msrs: Assertion `ret == cpu->kvm_msr_buf->nmsrs' failed.",
            "/build/target/i386/kvm.c:1799: kvm_put_msrs: Assertion `ret == cpu->kvm_msr_buf->nmsrs' failed",
        ),
        (
            f"{CLOSED} kvm version too old\n{AT} -accel kvm: failed to initialize kvm: Inappropriate ioctl for device",
            "kvm version too old",
        ),
        (
            (
                f"{CLOSED} Could not access KVM kernel module: Permission denied\n"
                f"{AT} -accel kvm: failed to initialize kvm: Permission denied"
            ),
            "Could not access KVM kernel module: Permission denied",
        ),
        (
            (
                f"{CLOSED} ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy\n"
                f"{AT} -accel kvm: failed to initialize kvm: Device or resource busy"
            ),
            "ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy",
        ),
        (
            f"Interner Fehler: QEMU wurde beendet: {AT} -accel kvm: failed to initialize kvm: No such file or directory",
            "failed to initialize kvm: No such file or directory",
        ),
    ],
)
def test_a_failure_of_kvm_is_given_in_qemus_words(message: str, reason: str) -> None:
    assert kvm_failure(message) == reason


@pytest.mark.parametrize(
    "message",
    [
        f"{ENDED} {AT} cannot set up guest memory 'pc.ram': Cannot allocate memory",
        f'{ENDED} {AT} -blockdev {{"filename":"/srv/kvm/vm1"}}: Could not open \'/srv/kvm/vm1\': Permission denied',
        f"{ENDED} {AT} -device virtio-net-pci: vhost initialization failed: requires kvm",
        f'{ENDED} {AT} -blockdev: Failed to get "write" lock\nIs another process using the image [/kvm/kvm.c]?',
        "Cannot access storage file '/srv/kvm/failed to initialize kvm: it' (as uid:64055): No such file or directory",
        "unsupported configuration: Emulator '/usr/bin/qemu-system-x86_64' does not support virt type 'kvm'",
        (
            f"{CLOSED} ioctl(KVM_CREATE_VM) failed: 12 Cannot allocate memory\n"
            f"{AT} -accel kvm: failed to initialize kvm: Cannot allocate memory"
        ),
        "",
    ],
)
def test_other_failures_and_those_that_pass_are_none_of_kvm(message: str) -> None:
    assert kvm_failure(message) == ""
