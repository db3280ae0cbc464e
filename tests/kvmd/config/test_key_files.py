"""Files with secrets: beside the settings file, or handed over by systemd."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmd.config import MqttSettings, load
from kvmd.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder of settings with two secrets."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "mqtt.key").write_text("a key")
    (tmp_path / "keys" / "mqtt.password").write_text("beside the settings\n")
    return tmp_path


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    """Give what LoadCredential=keys:... makes of the folder's key, but not of its password."""
    made = tmp_path / "run" / "credentials"
    made.mkdir(parents=True)
    (made / "keys_mqtt.key").write_text("a key")
    return made


def _load(folder: Path, *, key: str, password: str, **environ: str) -> MqttSettings:
    file = folder / "kvmd.toml"
    file.write_text(
        f'[mqtt]\nurl = "mqtts://b"\nusername = "u"\ncert = "/c.pem"\nkey = "{key}"\npassword_file = "{password}"\n'
    )
    return load(file, environ).settings.mqtt


def test_a_relative_path_is_beside_the_settings_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mqtt = _load(folder, key="keys/mqtt.key", password="keys/mqtt.password")
    assert mqtt.key == folder / "keys/mqtt.key"
    password = mqtt.read_password()
    assert password is not None
    assert password.get_secret_value() == "beside the settings"
    monkeypatch.chdir(folder)
    assert load(Path("kvmd.toml"), {}).settings.mqtt.key == folder / "keys/mqtt.key"


@pytest.mark.parametrize("is_whole", [False, True])
def test_what_systemd_hands_over_is_taken_instead(folder: Path, credentials: Path, is_whole: bool) -> None:  # noqa: FBT001 - pytest's
    prefix = f"{folder}/" if is_whole else ""
    mqtt = _load(
        folder,
        key=f"{prefix}keys/mqtt.key",
        password=f"{prefix}keys/mqtt.password",
        CREDENTIALS_DIRECTORY=str(credentials),
    )
    assert mqtt.key == credentials / "keys_mqtt.key"
    assert mqtt.password_file == folder / "keys/mqtt.password"


def test_a_path_elsewhere_stays_as_it_is(folder: Path, credentials: Path) -> None:
    mqtt = _load(folder, key="/srv/keys_mqtt.key", password="", CREDENTIALS_DIRECTORY=str(credentials))
    assert mqtt.key == Path("/srv/keys_mqtt.key")


def test_paths_with_dots_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="expected a path without"):
        _load(folder, key="../mqtt.key", password="")
