"""What an image is said to be. Apart from the events, so that it can be read without their models."""

from __future__ import annotations

from enum import StrEnum


class ImageFormat(StrEnum):
    """What a template's content is; ``auto`` leaves it to the host to find out."""

    AUTO = "auto"
    QCOW2 = "qcow2"
    RAW = "raw"
    ISO = "iso"
    VMDK = "vmdk"
    VHDX = "vhdx"


class ChecksumOf(StrEnum):
    """What a checksum is of: the file as it is served, or the content of a compressed one."""

    SERVED = "served"
    CONTENT = "content"
