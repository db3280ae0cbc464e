"""The end of what a machine wrote on its serial console, as text that harms no terminal."""

from __future__ import annotations

import re

TAIL = 4096
"""Bytes of a console that are read and announced."""
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")


def readable(raw: bytes) -> str:
    """Give the last ``TAIL`` bytes without escape sequences and control characters; empty lines are left out."""
    text = _ESCAPE.sub("", raw[-TAIL:].decode(errors="replace")).replace("\r\n", "\n").replace("\r", "\n")
    lines = ("".join(c if c.isprintable() else " " if c == "\t" else "" for c in line) for line in text.split("\n"))
    kept = "\n".join(line.rstrip() for line in lines if line.strip())
    return kept.encode()[-TAIL:].decode(errors="ignore")
