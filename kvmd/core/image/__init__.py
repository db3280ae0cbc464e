"""What a file is, whether it is safe to use, and every reason why not; pure, over bytes that an edge gives."""

from kvmd.core.image.facts import Facts, Partition, Refusal
from kvmd.core.image.inspection import ImageHead, inspect_file, inspect_head
from kvmd.core.image.judgement import ImagePolicy, check, judge, warnings
from kvmd.core.image.signatures import PACKED, FoundFormat
from kvmd.core.image.window import HEAD_LIMIT, HEAD_SIZE, Read

__all__ = [
    "HEAD_LIMIT",
    "HEAD_SIZE",
    "PACKED",
    "Facts",
    "FoundFormat",
    "ImageHead",
    "ImagePolicy",
    "Partition",
    "Read",
    "Refusal",
    "check",
    "inspect_file",
    "inspect_head",
    "judge",
    "warnings",
]
