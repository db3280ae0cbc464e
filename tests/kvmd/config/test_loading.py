from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmd.config import DirectoryPool, describe, load
from kvmd.config.loading import Loaded
from kvmd.errors import ConfigError
from kvmwire.names import is_name


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _load(tmp_path: Path, text: str = "", environ: dict[str, str] | None = None) -> Loaded:
    return load(_write(tmp_path / "kvmd.toml", text), environ or {})


def _refusal(tmp_path: Path, text: str = "", environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text, environ)
    assert caught.value.hint
    return caught.value.message


def test_defaults_stand_where_nothing_is_set(tmp_path: Path) -> None:
    loaded = _load(tmp_path)
    settings = loaded.settings
    assert settings.mqtt.url == "mqtt://127.0.0.1:1883"
    assert settings.state_dir == Path("/var/lib/kvmd")
    assert settings.pools == {"default": DirectoryPool(path=Path("/var/lib/libvirt/images"))}
    assert settings.transfer.sessions == 4
    assert settings.policy.allow_http
    assert is_name(settings.host)
    assert set(loaded.origins.values()) == {"default"}


def test_each_value_knows_its_origin(tmp_path: Path) -> None:
    text = '[transfer]\nsessions = 2\nconnections = 3\nrate_limit = 5\n[pools.fast]\npath = "/srv/fast"\n'
    file = _write(tmp_path / "kvmd.toml", text)
    early = _write(tmp_path / "kvmd.toml.d/10-a.toml", "[transfer]\nconnections = 4\nrate_limit = 6\n")
    late = _write(tmp_path / "kvmd.toml.d/20-b.toml", '[transfer]\nrate_limit = "1MiB"\n')
    _write(tmp_path / "kvmd.toml.d/.hidden.toml", "rubbish")
    _write(tmp_path / "kvmd.toml.d/notes.txt", "rubbish")
    loaded = load(file, {"KVMD_TRANSFER_STALL_TIMEOUT_S": "2.5", "PATH": "/bin"})
    transfer = loaded.settings.transfer
    assert (transfer.sessions, transfer.connections, transfer.rate_limit, transfer.stall_timeout_s) == (
        2,
        4,
        1 << 20,
        2.5,
    )
    assert loaded.origins["transfer.sessions"] == str(file)
    assert loaded.origins["transfer.connections"] == str(early)
    assert loaded.origins["transfer.rate_limit"] == str(late)
    assert loaded.origins["transfer.stall_timeout_s"] == "environment KVMD_TRANSFER_STALL_TIMEOUT_S"
    assert loaded.origins["pools.fast.path"] == str(file)
    assert loaded.origins["pools.fast.allocation"] == "default"
    assert set(loaded.settings.pools) == {"fast"}


def test_labels_of_several_files_are_merged(tmp_path: Path) -> None:
    _write(tmp_path / "kvmd.toml.d/a.toml", '[labels]\nrack = "7"\nzone = "b"\n')
    loaded = _load(tmp_path, 'labels = { zone = "a", kind = "edge" }\n', {"KVMD_LABELS": '{"kind": "lab"}'})
    assert loaded.settings.labels == {"zone": "b", "kind": "lab", "rack": "7"}


def test_a_missing_file_is_an_error_only_when_it_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "none.toml", {})
    assert f"{tmp_path}/none.toml: cannot be read" in caught.value.message


def test_drop_ins_that_cannot_be_listed_are_an_error(tmp_path: Path) -> None:
    _write(tmp_path / "kvmd.toml.d", "a file")
    assert f"{tmp_path}/kvmd.toml.d: cannot be listed: Not a directory" in _refusal(tmp_path)


def test_a_drop_in_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kvmd.toml.d/a.toml").mkdir(parents=True)
    assert f"{tmp_path}/kvmd.toml.d/a.toml: cannot be read: Is a directory" in _refusal(tmp_path)


def test_a_file_that_is_not_toml_is_named_with_the_line(tmp_path: Path) -> None:
    message = _refusal(tmp_path, "host = \n")
    assert f"{tmp_path}/kvmd.toml" in message
    assert "line 1" in message


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "kvmd.toml"
    file.write_bytes(b'host = "\xff"\n')
    with pytest.raises(ConfigError, match="expected UTF-8 text"):
        load(file, {})


def test_all_errors_are_told_at_once_with_file_and_key(tmp_path: Path) -> None:
    drop_in = _write(tmp_path / "kvmd.toml.d/x.toml", '[transfer]\nsession = 3\nconnections = "8"\n')
    message = _refusal(
        tmp_path, 'host = "a/b"\n[mqtt]\nurl = "http://broker"\n[foo]\n', {"KVMD_TRANSFER_SESSIONS": "65"}
    )
    lines = message.splitlines()
    assert lines[0] == "6 settings cannot be used:"
    assert f"  {drop_in}: transfer.session: unknown key; did you mean transfer.sessions?" in lines
    assert f'  {drop_in}: transfer.connections: expected a whole number, got "8".' in lines
    assert any(line.startswith(f"  {tmp_path}/kvmd.toml: host: expected a name") for line in lines)
    assert any(line.startswith(f"  {tmp_path}/kvmd.toml: mqtt.url: expected mqtt://") for line in lines)
    assert f"  {tmp_path}/kvmd.toml: foo: unknown key." in lines
    assert any("environment KVMD_TRANSFER_SESSIONS: transfer.sessions: expected" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sessions = 3", "did you mean transfer.sessions?"),
        ('[mqtt]\nca_file = "/x"', "mqtt.ca_file: unknown key"),
        ('[mqtt]\npasword_file = "/x"', "did you mean mqtt.password_file?"),
        ('[pools.a]\npat = "/x"', "did you mean pools.a.path?"),
        ("[pools.a]\nallocation = 'dense'", "pools.a.path: is missing"),
        ("[pools]", "pools: Dictionary should have at least 1 item"),
        ('[pools."a/b"]\npath = "/x"', "pools.a/b: expected a name"),
        ('[pools.a]\npath = "x"', "expected an absolute path"),
        ('[pools.a]\npath = "/x/../etc"', "expected an absolute path"),
        ('[pools.a]\npath = "/x"\n[pools.b]\npath = "/x"', "pools.a and pools.b have the same path /x"),
        ('[pools.a]\ntype = "nfs"\npath = "/x"', "pools.a: expected type = 'directory' or type = 'libvirt'"),
        ('[pools.a]\npath = "/x"\nuri = "x"', "pools.a.uri: unknown key; a pool of this type has none"),
        ('[pools.a]\ntype = "libvirt"', "pools.a.pool: is missing"),
        ('[pools.a]\ntype = "libvirt"\npool = "a"\npath = "/x"', "pools.a.path: unknown key"),
        (
            '[pools.a]\ntype = "libvirt"\npool = "a"\n[pools.b]\ntype = "libvirt"\npool = "a"',
            "have the same pool a at qemu:///system",
        ),
        ("[policy]\nrequire_signature = true", "policy.require_signature = true, and no trust.keys"),
        ('[policy]\nallowed_networks = ["10.0.0.1/8"]', "such as '10.0.0.0/8', got \"10.0.0.1/8\""),
        ('[policy]\nallowed_networks = "10.0.0.0/8"', "policy.allowed_networks: expected a list"),
        ('[policy]\nmax_size = "10 potatoes"', "'10GiB'"),
        ("[policy]\nmax_size = -1", "greater than or equal to 0, got -1"),
        ("[policy]\nallow_http = 1", "expected true or false, got 1"),
        ("[transfer]\nsessions = true", "expected a whole number, got true"),
        ("[transfer]\nstall_timeout_s = nan", "transfer.stall_timeout_s"),
        ("[transfer]\nstall_timeout_s = 0", "greater than 0, got 0"),
        ("[transfer]\nsessions = 2026-01-01", "expected a whole number"),
        ("transfer = 3", "transfer: "),
        ('[mqtt]\ncert = "/c"', "cert and key are only of use together"),
        ('[mqtt]\nca = "/c"', "only used with an mqtts:// url"),
        ('[mqtt]\npassword_file = "/c"', "only used with a username"),
        ('[mqtt]\nurl = "mqtt://broker:70000"', "expected a port from 1 to 65535"),
        ('[mqtt]\nprefix = "kvmd/+"', "expected names separated by single slashes"),
        ('[mqtt]\nversion = "4"', "expected 'auto', '5' or '3.1.1', got \"4\""),
        ('[metrics]\nlisten = "9100"', "expected host:port"),
        ('[labels]\n"a b" = "c"', "expected a name"),
        ("[labels]\na = 3", "labels.a: expected text, got 3"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_key(tmp_path: Path, text: str, told: str) -> None:
    message = _refusal(tmp_path, text)
    assert told in message
    assert str(tmp_path / "kvmd.toml") in message


def test_user_and_password_in_the_url_are_refused_and_not_repeated(tmp_path: Path) -> None:
    message = _refusal(tmp_path, '[mqtt]\nurl = "mqtt://joe:hunter2@broker:1883"\n')
    assert "mqtt.username" in message
    assert "hunter2" not in message


def test_the_value_of_an_unknown_key_is_not_repeated(tmp_path: Path) -> None:
    assert "hunter2" not in _refusal(tmp_path, '[mqtt]\npassword = "hunter2"\n')


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("KVMD_HOST", "kvm01", "host", '"kvm01"'),
        ("KVMD_STATE_DIR", "/x", "state_dir", '"/x"'),
        ("KVMD_MQTT_URL", "mqtts://b", "mqtt.url", '"mqtts://b"'),
        ("KVMD_MQTT__PASSWORD_FILE", "", "mqtt.password_file", '""'),
        ("KVMD_TRANSFER__SESSIONS", "9", "transfer.sessions", "9"),
        ("KVMD_TRANSFER_STALL_TIMEOUT_S", "4", "transfer.stall_timeout_s", "4.0"),
        ("KVMD_POLICY_ALLOW_HTTP", "no", "policy.allow_http", "false"),
        ("KVMD_POLICY_MAX_SIZE", "10GiB", "policy.max_size", str(10 << 30)),
        (
            "KVMD_POLICY_ALLOWED_NETWORKS",
            "127.0.0.0/8, ::1/128",
            "policy.allowed_networks",
            '["127.0.0.0/8", "::1/128"]',
        ),
        ("KVMD_POLICY_DENIED_NETWORKS", "[]", "policy.denied_networks", "[]"),
        ("KVMD_POLICY_ALLOWED_PROTOCOLS", '["https"]', "policy.allowed_protocols", '["https"]'),
        ("KVMD_POOLS_DEFAULT_PATH", "/p", "pools.default.path", '"/p"'),
        ("KVMD_POOLS_default_PATH", "/p", "pools.default.path", '"/p"'),
        ("KVMD_POOLS__FAST__ALLOCATION", "full", "pools.fast.allocation", '"full"'),
        ("KVMD_POOLS_SSD_1_PATH", "/p", "pools.ssd-1.path", '"/p"'),
        ("KVMD_POOLS", '{"x": {"path": "/x"}}', "pools.x.path", '"/x"'),
        ("KVMD_LABELS_ZONE", "lab", "labels.zone", '"lab"'),
        ("KVMD_LABELS", '{"zone": "lab"}', "labels.zone", '"lab"'),
        ("KVMD_LOG_FORMAT", "json", "log.format", '"json"'),
    ],
)
def test_a_variable_sets_its_key(tmp_path: Path, name: str, text: str, key: str, value: str) -> None:
    file = '[pools.fast]\npath = "/fast"\n[pools.ssd-1]\npath = "/ssd"\n'
    loaded = _load(tmp_path, file, {name: text})
    shown = {row.key: (row.value, row.origin) for row in describe(loaded)}
    assert shown[key] == (value, f"environment {name}")


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"KVMD_TRANSFER_SESION": "1"}, "KVMD_TRANSFER_SESION: unknown variable; did you mean KVMD_TRANSFER_SESSIONS?"),
        ({"KVMD_POOLS_A_SIZE": "1"}, "environment KVMD_POOLS_A_SIZE: unknown variable"),
        ({"KVMD_LABELS_": "1"}, "environment KVMD_LABELS_: unknown variable"),
        ({"KVMD_": "1"}, "environment KVMD_: unknown variable"),
        ({"KVMD_TRANSFER_SESSIONS": "1", "KVMD_TRANSFER__SESSIONS": "2"}, "sets the same as"),
        ({"KVMD_TRANSFER_SESSIONS": "four"}, 'expected a whole number, got "four"'),
        ({"KVMD_TRANSFER_SESSIONS": ""}, 'expected a whole number, got ""'),
        ({"KVMD_POLICY_ALLOW_HTTP": "maybe"}, 'expected true or false, got "maybe"'),
        ({"KVMD_LABELS": "zone"}, "labels: expected a table"),
        ({"KVMD_POLICY_ALLOWED_NETWORKS": "[1"}, "expected a list"),
        ({"KVMD_HOST": "\udcff"}, "expected printable UTF-8 text"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(tmp_path: Path, environ: dict[str, str], told: str) -> None:
    assert told in _refusal(tmp_path, environ=environ)


def test_everything_that_is_described_can_be_written_back(tmp_path: Path) -> None:
    loaded = _load(tmp_path, 'host = "kvm01"\n[labels]\nzone = "lab"\n')
    text = "".join(f"{row.key} = {row.value}\n" for row in describe(loaded))
    again = load(_write(tmp_path / "again.toml", text), {})
    assert again.settings == loaded.settings
    assert all(json.loads(row.value) is not None for row in describe(loaded))


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(_load(tmp_path).settings, "host", "other")  # noqa: B010 - the point is that it fails
