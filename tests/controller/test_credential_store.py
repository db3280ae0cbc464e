"""What the controller keeps: sealed, for its owner alone, replaced whole, changed by one process at a time."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import SecretStr

from controller.credentials.record import Record, opened
from controller.credentials.store import CredentialStore
from controller.errors import ControlError, UnreachableError
from kvmwire.codes import FailureCode, WireError
from kvmwire.seal import Secret

KEY = X25519PrivateKey.generate()
SECRET = Secret(headers={"X-Token": SecretStr("correct-horse")})
RECORD = Record(name="images", generation=7, origins=("https://images.example.org:443",), holds=("headers",))


def test_what_is_kept_comes_back_and_only_with_the_key(tmp_path: Path) -> None:
    store = CredentialStore(tmp_path / "state")
    store.write(RECORD.keeping(SECRET, KEY.public_key()))
    record = store.read("images")
    assert record is not None
    assert opened(record, KEY) == SECRET.encode()
    with pytest.raises(WireError) as refused:
        opened(record, X25519PrivateKey.generate())
    assert refused.value.code is FailureCode.SECRET
    with pytest.raises(WireError):
        opened(record.model_copy(update={"generation": 8}), KEY)


def test_files_are_for_their_owner_alone_and_hold_nothing_in_clear(tmp_path: Path) -> None:
    store = CredentialStore(tmp_path / "state")
    store.write(RECORD.keeping(SECRET, KEY.public_key()))
    [path] = store.folder.iterdir()
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(store.folder.stat().st_mode)) == (0o600, 0o700)
    assert b"correct-horse" not in path.read_bytes()


def test_a_damaged_file_is_named_and_no_other_credential_suffers(tmp_path: Path) -> None:
    store = CredentialStore(tmp_path / "state")
    store.write(RECORD)
    (store.folder / "other.json").write_text("{")
    assert store.names() == ("images", "other")
    with pytest.raises(ControlError, match=r"other\.json"):
        store.read("other")
    assert store.read("images") == RECORD
    assert store.read("unknown") is None


def test_the_version_changes_with_every_write(tmp_path: Path) -> None:
    store = CredentialStore(tmp_path / "state")
    versions = [store.version()]
    for generation in (1, 2):
        store.write(RECORD.model_copy(update={"generation": generation}))
        versions.append(store.version())
    assert len(set(versions)) == 3


async def test_one_at_a_time(tmp_path: Path) -> None:
    first, second = CredentialStore(tmp_path / "state"), CredentialStore(tmp_path / "state")
    async with first.changing(patience_s=1):
        with pytest.raises(UnreachableError, match="another kvmctl"):
            async with second.changing(patience_s=0.1):
                pass
    async with second.changing(patience_s=0.1):
        pass
