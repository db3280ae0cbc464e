"""What a command of the controller can fail with: one line for the person, one exit code for the program.

ControlError
├── UsageError          2: options, settings or files that the person gave
├── UnreachableError    4: the broker, or a host that was waited for
└── RegistryError       1: the outbox cannot be used
"""

from __future__ import annotations

from kvmwire.codes import CODES, Exit, FailureCode, WireError


class ControlError(Exception):
    """A command cannot go on. ``message`` says what and where, ``hint`` what the person can do next."""

    exit = Exit.FAILED

    def __init__(self, message: str, *, hint: str, code: FailureCode | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        if code is not None:
            self.exit = CODES[code].exit

    @classmethod
    def of(cls, error: WireError) -> ControlError:
        """Carry over code, message and hint of what kvmwire refused."""
        return ControlError(error.message, hint=error.hint, code=error.code)


class UsageError(ControlError):
    """Something that the person gave cannot be understood."""

    exit = Exit.USAGE


class UnreachableError(ControlError):
    """The broker or a host did not answer in time."""

    exit = Exit.UNREACHABLE


class RegistryError(ControlError):
    """The file of the outbox cannot be opened or written."""
