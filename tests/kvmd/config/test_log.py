from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from kvmd.config import LogSettings
from kvmd.log import JsonFormatter, TextFormatter, configure, get_logger
from kvmwire.codes import FailureCode

log = get_logger("kvmd.test")


@pytest.fixture
def restored_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def stream(tmp_path: Path, restored_root: None) -> Iterator[TextIO]:  # noqa: ARG001 - configure changes the root logger
    with (tmp_path / "log").open("w+") as file:
        yield file


def _lines(stream: TextIO) -> list[str]:
    stream.flush()
    return Path(stream.name).read_text().splitlines()


def _journal(stream: TextIO) -> dict[str, str]:
    status = os.fstat(stream.fileno())
    return {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}


def _json(stream: TextIO) -> dict[str, Any]:
    (line,) = _lines(stream)
    fields: dict[str, Any] = json.loads(line)
    return fields


def _caught(error: Exception) -> Exception:
    """Give the error with a traceback."""
    try:
        raise error
    except type(error) as exc:
        return exc


def test_text_has_time_level_message_and_fields(stream: TextIO) -> None:
    configure(LogSettings(format="text"), stream=stream, environ={})
    log.info("segment stored", session="s1", offset=5, name="a b", note='say "x"', empty="", ok=True, none=None)
    (line,) = _lines(stream)
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO    segment stored ", line)
    assert line.endswith('segment stored session=s1 offset=5 name="a b" note="say \\"x\\"" empty="" ok=true none=null')


def test_the_journal_gets_a_priority_and_no_time(stream: TextIO) -> None:
    configure(LogSettings(format="auto", level="debug"), stream=stream, environ=_journal(stream))
    log.debug("a")
    log.info("b", x=1)
    log.warning("c")
    log.error("d")
    assert _lines(stream) == ["<7>a", "<6>b x=1", "<4>c", "<3>d"]


def test_the_journal_of_another_stream_is_none_of_ours(stream: TextIO) -> None:
    configure(LogSettings(format="text"), stream=stream, environ={"JOURNAL_STREAM": "8:1"})
    log.info("hello")
    assert not _lines(stream)[0].startswith("<")


def test_auto_is_json_where_neither_a_person_nor_the_journal_reads(stream: TextIO) -> None:
    configure(LogSettings(format="auto"), stream=stream, environ={})
    log.warning("disk full", pool="default", message="m", free=[1, 2.5], code=FailureCode.NO_SPACE, path=Path("/x"))
    fields = _json(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*Z", fields.pop("time"))
    assert fields == {
        "level": "warning",
        "logger": "kvmd.test",
        "message": "disk full",
        "pool": "default",
        "field_message": "m",
        "free": [1, 2.5],
        "code": "NO_SPACE",
        "path": "/x",
    }


def test_less_than_the_level_is_not_logged(stream: TextIO) -> None:
    configure(LogSettings(level="warning"), stream=stream)
    log.info("hidden")
    assert _lines(stream) == []


def test_a_second_configuration_replaces_the_first(stream: TextIO, tmp_path: Path) -> None:
    configure(LogSettings(), stream=stream)
    with (tmp_path / "second").open("w") as second:
        configure(LogSettings(), stream=second)
        log.info("once")
        assert len(_lines(second)) == 1
    assert _lines(stream) == []


@pytest.mark.parametrize("level", ["info", "debug"])
def test_an_expected_error_has_its_traceback_only_at_debug(stream: TextIO, level: Any) -> None:
    configure(LogSettings(format="json", level=level), stream=stream)
    log.warning("lost", exc=_caught(ConnectionResetError("gone")))
    fields = _json(stream)
    assert fields["error"] == "ConnectionResetError: gone"
    assert ("traceback" in fields) == (level == "debug")


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_unexpected_error_is_one_line_with_its_traceback(stream: TextIO, form: Any) -> None:
    configure(LogSettings(format=form, level="error"), stream=stream)
    log.unexpected("session failed", _caught(KeyError("k")), session="s")
    (line,) = _lines(stream)
    assert "KeyError: 'k'" in line
    assert "Traceback (most recent call last)" in line


def test_errors_of_libraries_are_one_line_too(stream: TextIO) -> None:
    configure(LogSettings(format="text"), stream=stream, environ={})
    logging.getLogger("asyncio").error("task %s failed", "t", exc_info=_caught(KeyError("k")))
    (line,) = _lines(stream)
    assert 'task t failed error="KeyError: ' in line
    assert "Traceback" in line


def test_arguments_that_do_not_fit_do_not_lose_the_message() -> None:
    record = logging.LogRecord("library", logging.INFO, __file__, 1, "%d things", ("no number",), None)
    assert TextFormatter(is_journal=True).format(record) == "<6>%d things"


@pytest.mark.parametrize("form", ["json", "text"])
def test_secrets_are_not_written(stream: TextIO, form: Any) -> None:
    configure(LogSettings(format=form, level="debug"), stream=stream)
    url = "https://joe:hunter2@host/image.qcow2?X-Amz-Signature=hunter2#hunter2"
    message = f"cannot get {url}"
    log.error(
        message,
        exc=_caught(ValueError(message)),
        url=url,
        urls=[url, {"u": url}],
        password="hunter2",
        held=SecretStr("hunter2"),
        headers={"Authorization": "hunter2", "Accept": "*/*"},
    )
    (line,) = _lines(stream)
    assert "hunter2" not in line
    assert "https://host/image.qcow2" in line
    assert "*/*" in line


def _record(message: str, fields: dict[str, Any]) -> logging.LogRecord:
    record = logging.LogRecord("kvmd", logging.INFO, __file__, 1, "%s", (message,), None)
    record.kvmd_fields = fields
    return record


_names = st.text("abcdefghij_", min_size=1)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.text(st.characters()), st.dictionaries(_names, _values))
@pytest.mark.parametrize(
    "formatter", [TextFormatter(is_journal=True), TextFormatter(is_journal=False), JsonFormatter()]
)
def test_whatever_is_logged_is_one_line_that_can_be_written(
    formatter: logging.Formatter, message: str, fields: dict[str, Any]
) -> None:
    line = formatter.format(_record(message, fields))
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    line.encode()


@given(st.text(st.characters()), st.dictionaries(_names, _values))
def test_whatever_is_logged_is_standard_json(message: str, fields: dict[str, Any]) -> None:
    line = json.loads(JsonFormatter().format(_record(message, fields)), parse_constant=_refuse)
    assert line.keys() >= {"time", "level", "logger", "message"}


def _refuse(constant: str) -> None:
    raise AssertionError(constant)


def test_standard_error_is_the_default() -> None:
    script = (
        "from kvmd.config import LogSettings; from kvmd.log import configure, get_logger;"
        "configure(LogSettings(format='text')); get_logger('x').info('hello', a=1)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=15)
    assert done.stdout == ""
    assert done.stderr.endswith("INFO    hello a=1\n")


@pytest.mark.parametrize(("end", "code"), [("", 120), ("kvmd.log.give_up()", 0)], ids=["as it is", "given up"])
def test_what_a_full_disk_keeps_of_the_log_does_not_change_the_exit_code(end: str, code: int) -> None:
    script = f"import sys, kvmd.log; sys.stdout.write('kept in the buffer'); {end}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=full, stderr=full, env=environment, check=False, timeout=15
        )
    assert done.returncode == code
