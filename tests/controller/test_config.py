"""Settings: file, environment, command line; what is wrong is named with file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.config import load
from controller.errors import UsageError


def write(folder: Path, text: str) -> Path:
    path = folder / "kvmctl.toml"
    path.write_text(text)
    return path


def test_without_anything_the_broker_is_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = load(None, {})
    assert (settings.mqtt.host, settings.mqtt.port, settings.mqtt.is_tls) == ("127.0.0.1", 1883, False)
    assert settings.mqtt.topics.prefix == "kvmd/v1"


def test_the_environment_is_over_the_file_and_the_option_over_both(tmp_path: Path) -> None:
    path = write(tmp_path, 'state_dir = "/s"\n[mqtt]\nurl = "mqtt://file:1"\nusername = "file"\nversion = "5"\n')
    env = {"KVMCTL_CONFIG": str(path), "KVMCTL_MQTT_URL": "mqtts://env", "KVMCTL_MQTT_USERNAME": "env"}
    settings = load(None, env)
    assert (settings.mqtt.host, settings.mqtt.port, settings.mqtt.is_tls) == ("env", 8883, True)
    assert (settings.mqtt.username, settings.mqtt.version, settings.state_dir) == ("env", "5", Path("/s"))
    assert load(path, env, url="mqtt://option").mqtt.host == "option"


def test_the_users_own_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".config/kvmd").mkdir(parents=True)
    write(tmp_path / ".config/kvmd", '[mqtt]\nurl = "mqtt://mine"\n')
    assert load(None, {}).mqtt.host == "mine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[mqtt]\nurll = 'mqtt://x'\n", "mqtt.urll: there is no such setting. Is mqtt.url meant?"),
        ("[mqtt]\nurl = 'http://x'\n", "mqtt.url: expected mqtt://host:port"),
        ("[mqtt]\nurl = 'mqtt://x:99999'\n", "mqtt.url: expected mqtt://host:port"),
        ("[mqtt]\nurl = 'mqtt://user:secret@x'\n", "no user name belongs into the URL"),
        ("[mqtt]\nprefix = 'a/#'\n", "mqtt.prefix: topic prefix"),
        ("[mqtt]\ncert = '/c'\n", "only of use together"),
        ("[mqtt]\nversion = '4'\n", "mqtt.version"),
        ("mqtt = 3\n", "mqtt"),
        ("[mqtt\n", "at line 1"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load(path, {})
    assert said in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.exit == 2


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load(tmp_path / "nothing.toml", {})


def test_a_variable_that_sets_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match=r"KVMCTL_MQTT_ULR: there is no such setting\. Is KVMCTL_MQTT_URL meant"):
        load(None, {"KVMCTL_MQTT_ULR": "mqtt://x"})
    with pytest.raises(UsageError, match=r"environment KVMCTL_MQTT_URL: mqtt\.url"):
        load(None, {"KVMCTL_MQTT_URL": "x"})


def test_the_password_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    settings = load(None, {"KVMCTL_MQTT_PASSWORD_FILE": str(tmp_path / "password")})
    password = settings.mqtt.read_password()
    assert password is not None
    assert password.get_secret_value() == "secret"
    assert "secret" not in repr(settings)
    missing = load(None, {"KVMCTL_MQTT_PASSWORD_FILE": str(tmp_path / "nothing")})
    with pytest.raises(UsageError, match="password_file"):
        missing.mqtt.read_password()
