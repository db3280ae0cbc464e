"""Image inspection under atheris: in half a minute and some hundred thousand inputs no error, no memory, no time is lost.

``python -m tests.system.test_image_fuzzing`` is the fuzzer itself; libFuzzer's options follow, such as -max_total_time=600.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kvmd.image import zoo
from tests.support import images

ROOT = Path(__file__).resolve().parents[2]
SEEDS = {
    "qcow2": images.qcow2()[:4096],
    "backed": zoo.backed()[:4096],
    "vmdk": zoo.vmdk()[:2048],
    "vhd": zoo.vhd(),
    "qed": zoo.qed(backing=True)[:256],
    "gpt": zoo.gpt()[:2048],
    "iso": images.iso()[:36864],
    "vdi": bytes(64) + b"\x7f\x10\xda\xbe" + bytes(500),
    "luks": b"LUKS\xba\xbe\0\1".ljust(200, b"\0"),
    "html": b"<!DOCTYPE html>",
}


@pytest.mark.system
@pytest.mark.timeout(180)
def test_no_input_breaks_the_inspection(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python or machine")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, seed in SEEDS.items():
        (corpus / name).write_bytes(seed)
    limits = ["-max_total_time=30", "-runs=500000", "-timeout=2", "-rss_limit_mb=1024", "-max_len=36864"]
    command = [
        *(
            "sh",
            "-c",
            '"$@"; exit $?',
            "sh",
        ),  # else the most memory that pytest ever had would count (getrusage(2), execve)
        sys.executable,
        "-m",
        "tests.system.test_image_fuzzing",
        *limits,
        f"-artifact_prefix={tmp_path}/",
        corpus,
    ]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done " in done.stderr


def fuzz() -> None:
    """Run libFuzzer on the inspection until its limits are reached."""
    import atheris  # noqa: PLC0415 - it changes the process, and is only wanted here

    with atheris.instrument_imports(include=["kvmd.core.image"]):
        from kvmd.core.image import ImagePolicy, inspect_file, inspect_head, judge  # noqa: PLC0415 - see above
    from kvmwire.events import ImageFormat  # noqa: PLC0415 - see above

    def one(content: bytes) -> None:
        found = inspect_file(lambda offset, length: content[offset : offset + length], size=len(content))
        judge(found, ImageFormat.AUTO, policy=ImagePolicy())
        for size in (None, len(content), 1 << 40):
            judge(inspect_head(content, size=size), ImageFormat.QCOW2, policy=ImagePolicy())

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    fuzz()
