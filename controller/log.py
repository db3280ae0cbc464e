"""Structured logs: a message and fields, as text for a person and the journal, or as JSON."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import Any, TextIO

from kvmwire.source import redact

_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class Log:
    """Logs with fields: ``log.info("event sent", topic=...)``."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, message: str, **fields: object) -> None:
        """Say what only the one who looks for a defect reads."""
        self._logger.debug(message, extra={"fields": fields})

    def info(self, message: str, **fields: object) -> None:
        """Say what an operator wants to read later."""
        self._logger.info(message, extra={"fields": fields})

    def warning(self, message: str, **fields: object) -> None:
        """Say what an operator should look at."""
        self._logger.warning(message, extra={"fields": fields})

    def error(self, message: str, **fields: object) -> None:
        """Say what an operator has to act on."""
        self._logger.error(message, extra={"fields": fields})


def get(name: str) -> Log:
    """Give the log of one part of the controller."""
    return Log(logging.getLogger(f"controller.{name}"))


def configure(*, level: str, is_json: bool, stream: TextIO = sys.stderr) -> None:
    """Send the controller's logs to the stream, once."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonFormatter() if is_json else _TextFormatter())
    logger = logging.getLogger("controller")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
    # aiomqtt's own words are about what we say better; without this Python prints them to stderr.
    logging.getLogger("mqtt").setLevel(logging.CRITICAL)


class _TextFormatter(logging.Formatter):
    """``message key=value ...``, with the journal's priority where it is read by systemd."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={_quoted(value)}" for name, value in _fields(record).items())
        is_journal = "JOURNAL_STREAM" in os.environ
        start = f"<{_PRIORITIES[record.levelno]}>" if is_journal else f"{record.levelname.lower()}: "
        return f"{start}{record.getMessage()}{' ' if fields else ''}{fields}"


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, time in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        start = {"time": record.created, "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(start | {"logger": record.name} | _fields(record), default=str)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, object] = getattr(record, "fields", {})
    return {name: _redacted(value) for name, value in fields.items()}


def _redacted(value: object) -> object:
    return _URL.sub(lambda found: redact(found[0]), value) if isinstance(value, str) else value


def _quoted(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text and text else json.dumps(text)
