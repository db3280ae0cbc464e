"""Structured logs on the standard library: a message that names the fact, and fields that hold the particulars.

Text is for people and the journal, JSON (one object a line, times in UTC) for programs. In both, URLs lose their user
information and query, and secrets are never written.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, TextIO, cast

from pydantic import SecretBytes, SecretStr

from kvmd.config.settings import LogSettings
from kvmwire.source import redact

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}://\S+")
_PLAIN = re.compile(r"[^\s\"=\\]+")
_SECRET_FIELDS = frozenset({"authorization", "cookie", "password", "secret", "token"})
_HIDDEN = "**********"
_FIELDS = "kvmd_fields"
_RESERVED = frozenset({"time", "level", "logger", "message"})
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))  # syslog(3)
_DEBUG_PRIORITY = 7


@dataclass(frozen=True, slots=True)
class Logger:
    """Logs facts: ``log.info("segment stored", session=..., offset=...)``.

    ``exc`` adds the error's type and text, and its traceback only where debug messages are logged.
    """

    logger: logging.Logger

    def debug(self, message: str, /, *, exc: BaseException | None = None, **fields: object) -> None:
        """Log what only a developer wants to know."""
        self._log(logging.DEBUG, message, exc, fields)

    def info(self, message: str, /, *, exc: BaseException | None = None, **fields: object) -> None:
        """Log what an operator acts on."""
        self._log(logging.INFO, message, exc, fields)

    def warning(self, message: str, /, *, exc: BaseException | None = None, **fields: object) -> None:
        """Log what may need somebody's attention."""
        self._log(logging.WARNING, message, exc, fields)

    def error(self, message: str, /, *, exc: BaseException | None = None, **fields: object) -> None:
        """Log what failed."""
        self._log(logging.ERROR, message, exc, fields)

    def unexpected(self, message: str, exc: BaseException, /, **fields: object) -> None:
        """Log an exception that nobody foresaw, as an error, always with its traceback as one field."""
        self._emit(logging.ERROR, message, {**fields, "error": _describe(exc), "traceback": _traceback(exc)})

    def _log(self, level: int, message: str, exc: BaseException | None, fields: dict[str, object]) -> None:
        if not self.logger.isEnabledFor(level):
            return
        if exc is not None:
            fields["error"] = _describe(exc)
            if self.logger.isEnabledFor(logging.DEBUG):
                fields["traceback"] = _traceback(exc)
        self._emit(level, message, fields)

    def _emit(self, level: int, message: str, fields: dict[str, object]) -> None:
        self.logger.log(level, "%s", message, extra={_FIELDS: fields})


def get_logger(name: str) -> Logger:
    """Give the logger of a module; call it with ``__name__``."""
    return Logger(logging.getLogger(name))


def configure(settings: LogSettings, *, stream: TextIO | None = None, environ: Mapping[str, str] | None = None) -> None:
    """Send all logs of the process to ``stream`` (standard error); a second call replaces the first."""
    target: TextIO = sys.stderr if stream is None else stream
    is_journal = _is_journal(target, os.environ if environ is None else environ)
    is_json = settings.format == "json" or (settings.format == "auto" and not is_journal and not target.isatty())
    handler = _Handler(target)
    handler.setFormatter(JsonFormatter() if is_json else TextFormatter(is_journal=is_journal))
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.level.upper())


def give_up() -> None:
    """Drop what a full disk or a closed pipe keeps of the log: Python would end with 120 for it, whatever else happened."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


class TextFormatter(logging.Formatter):
    """``message key=value ...``: for the journal after a priority like ``<6>``, else after time and level."""

    def __init__(self, *, is_journal: bool) -> None:
        super().__init__()
        self._is_journal = is_journal

    def format(self, record: logging.LogRecord) -> str:
        """Give one line, whatever the message and the fields hold."""
        fields = [f"{key}={_text(value)}" for key, value in _fields(record).items()]
        line = " ".join([_one_line(_message(record)), *fields])
        if self._is_journal:
            return f"<{_priority(record.levelno)}>{line}"
        return f"{_time(record)} {record.levelname:<7} {line}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time level logger message``, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Give one line of ASCII; a field named like one of the four gets ``field_`` before its name."""
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        line |= {f"field_{key}" if key in _RESERVED else key: value for key, value in _fields(record).items()}
        return json.dumps(line)


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, so that ``configure`` replaces no other."""


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = dict[str, object](getattr(record, _FIELDS, {}))
    if record.exc_info is not None and record.exc_info[1] is not None:  # from a library
        exc = record.exc_info[1]
        fields |= {"error": _describe(exc), "traceback": _traceback(exc)}
    return {key: _HIDDEN if key.lower() in _SECRET_FIELDS else _safe(value) for key, value in fields.items()}


def _message(record: logging.LogRecord) -> str:
    try:
        return _redacted(record.getMessage())
    except (TypeError, ValueError):  # a library's arguments do not fit its format
        return _redacted(str(record.msg))


def _safe(value: object) -> Any:
    """Turn a value into what JSON has, without secrets."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case SecretStr() | SecretBytes():
            return _HIDDEN
        case Enum():
            return _safe(value.value)
        case Mapping():
            items = cast("Mapping[object, object]", value).items()
            return {str(key): _HIDDEN if str(key).lower() in _SECRET_FIELDS else _safe(inner) for key, inner in items}
        case list() | tuple() | set() | frozenset():
            return [_safe(one) for one in cast("Iterable[object]", value)]
        case _:
            return _redacted(str(value))


def _redacted(text: str) -> str:
    return _URL.sub(lambda url: redact(url[0]), text) if "://" in text else text


def _describe(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"


def _traceback(exc: BaseException) -> str:
    return "".join(traceback.format_exception(exc))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return (
            value
            if _PLAIN.fullmatch(value) and value.isprintable()
            else _one_line(json.dumps(value, ensure_ascii=False))
        )
    return _one_line(json.dumps(value, ensure_ascii=False))


def _one_line(text: str) -> str:
    """Escape what would end the line or cannot be written."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _priority(level: int) -> int:
    return next((priority for least, priority in _PRIORITIES if level >= least), _DEBUG_PRIORITY)


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether the stream itself goes to the journal; a redirected one does not (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
