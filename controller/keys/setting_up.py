"""The settings with which kvmctl uses a fleet that was just made."""

from __future__ import annotations

from pathlib import Path

import tomli_w

from controller.config import Settings
from controller.keys import files
from controller.keys.keyring import CA, CONTROLLER, FleetKeys

SETTINGS = "kvmctl.toml"
MQTTS_PORT = 8883


def broker_url(name: str) -> str:
    """Give the URL of a broker that listens on the usual port."""
    return f"mqtts://[{name}]:{MQTTS_PORT}" if ":" in name else f"mqtts://{name}:{MQTTS_PORT}"


def write_settings(keys: FleetKeys, settings: Settings) -> Path:
    """Write ``kvmctl.toml`` into the fleet's folder, and give its path."""
    folder = keys.folder.absolute()
    url = settings.mqtt.url if settings.mqtt.is_tls else broker_url(keys.register.broker_names[0])
    values = {
        "state_dir": str(settings.state_dir.absolute()),
        "fleet_dir": str(folder),
        "mqtt": {
            "url": url,
            "prefix": settings.mqtt.prefix,
            "ca": str(folder / CA),
            "cert": str(folder / f"{CONTROLLER}.pem"),
            "key": str(folder / f"{CONTROLLER}.key"),
        },
    }
    path = folder / SETTINGS
    files.write(path, tomli_w.dumps(values).encode(), mode=files.PUBLIC)
    return path
