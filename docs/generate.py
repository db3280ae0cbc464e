"""Write ``docs/reference/`` from the code; ``--check`` tells which of its files are stale."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # what is described is this tree, not an installed kvmd

from docs.refgen.commands import commands_page  # noqa: E402 - after the path is set
from docs.refgen.pages import codes_page, topics_page  # noqa: E402 - as above
from docs.refgen.schemas import asyncapi, schema_files  # noqa: E402 - as above
from docs.refgen.settings import settings_page  # noqa: E402 - as above


def generate() -> dict[str, str]:
    """Give the text of every file of the reference, by its path below the folder."""
    return {
        "topics.md": topics_page(),
        "codes.md": codes_page(),
        "commands.md": commands_page(),
        "settings.md": settings_page(),
        "asyncapi.json": asyncapi(),
        **schema_files(),
    }


def stale_files(folder: Path, wanted: dict[str, str]) -> list[str]:
    """Name the files of the folder that are missing, differ, or are no longer generated."""
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    changed = {name for name in wanted.keys() & present if (folder / name).read_text(encoding="utf-8") != wanted[name]}
    return sorted(changed | (wanted.keys() ^ present))


def write_files(folder: Path, wanted: dict[str, str]) -> None:
    """Make the folder hold the wanted files and no others."""
    for name in stale_files(folder, wanted):
        path = folder / name
        if name not in wanted:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[name], encoding="utf-8")


def main() -> int:
    """Write or check; 1 where a file is stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; name what is stale, and exit with 1")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "reference", help="where the files are")
    options = parser.parse_args()
    wanted = generate()
    if not options.check:
        write_files(options.folder, wanted)
        return 0
    stale = stale_files(options.folder, wanted)
    for name in stale:
        print(f"{options.folder / name} is stale; run: python docs/generate.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
