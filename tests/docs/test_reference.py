from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvmwire.codes import FailureCode

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"


def check(*, folder: Path = REFERENCE, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check", "--folder", folder],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "env",
    [{}, {"COLUMNS": "30", "LC_ALL": "C", "HOME": "/nonexistent", "USER": "somebody", "XDG_STATE_HOME": "/elsewhere"}],
    ids=["as here", "as somebody else"],
)
def test_the_reference_is_up_to_date_whoever_asks(env: dict[str, str]) -> None:
    done = check(env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_each_stale_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    shutil.copytree(REFERENCE, folder)
    (folder / "codes.md").write_text("by hand")
    (folder / "topics.md").unlink()
    (folder / "schemas" / "Gone.json").write_text("{}")
    done = check(folder=folder)
    named = [line.split(" is stale")[0] for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert named == [str(folder / name) for name in ("codes.md", "schemas/Gone.json", "topics.md")]


def test_every_code_has_its_line() -> None:
    page = (REFERENCE / "codes.md").read_text()
    assert all(f"\n| `{code}` |" in page for code in FailureCode)


@pytest.mark.parametrize("page", ["topics.md", "codes.md"])
def test_links_lead_to_files(page: str) -> None:
    links = [part.partition(")")[0].partition("#")[0] for part in (REFERENCE / page).read_text().split("](")[1:]]
    assert [link for link in links if not (REFERENCE / link).is_file()] == []


def test_no_page_knows_where_it_was_made() -> None:
    for path in REFERENCE.rglob("*.*"):
        assert str(ROOT) not in path.read_text(), path


def test_every_schema_has_the_title_of_its_file() -> None:
    titles = {path.stem: json.loads(path.read_text())["title"] for path in (REFERENCE / "schemas").iterdir()}
    assert titles
    assert all(name == title for name, title in titles.items())
