"""A real S3-compatible store: SeaweedFS on loopback. It checks signatures, preconditions and rights; only the ports are free ones."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.support.ports import accepts, free_port
from tests.support.processes import ChildProcess
from tests.support.programs import require_program
from tests.support.waiting import eventually_blocking

ACCESS_KEY, SECRET_KEY = "AKOWNER", "a-made-up-secret"
STRANGERS_KEY, STRANGERS_SECRET = "AKSTRANGER", "another-made-up-secret"
REGION = "us-east-1"
_START_S = 30.0


class Seaweed:
    """One server with all its files in a folder. The owner may do everything, the stranger may read no bucket that there is.

    The methods block.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.log = folder / "weed.log"
        files = folder / "files"
        files.mkdir(parents=True)
        identities = folder / "identities.json"
        identities.write_text(json.dumps({"identities": _IDENTITIES}))
        options = {
            "dir": files,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 64,
            "s3.config": identities,
            "s3.port": self.port,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "volume.max": 8,
        }
        for server in ("master", "volume", "filer"):
            options[f"{server}.port"] = free_port()
        for server in ("master", "volume", "filer", "s3"):
            options[f"{server}.port.grpc"] = free_port()
        command = [require_program("weed"), "server", "-filer", "-s3", *(f"-{k}={v}" for k, v in options.items())]
        self.process = ChildProcess(command, log=self.log)

    def __enter__(self) -> Self:
        self.process.__enter__()
        try:
            eventually_blocking(
                self._is_up, timeout_s=_START_S, what=f"the store is up; log: {self.process.log_text()}"
            )
        except BaseException:
            self.process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.__exit__(kind, error, trace)

    @property
    def endpoint(self) -> str:
        """Plain URL of the store."""
        return f"http://127.0.0.1:{self.port}"

    def put(self, bucket: str, key: str = "", content: bytes = b"", **headers: str) -> None:
        """Write an object as the owner, or make the bucket."""
        status, body = self._request("PUT", f"/{bucket}/{quote(key)}".rstrip("/"), content, headers)
        assert status == http.HTTPStatus.OK, (status, body)

    def _is_up(self) -> bool:
        return accepts(self.port) and self._request("GET", "/")[0] == http.HTTPStatus.OK

    def _request(
        self, method: str, path: str, content: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        request = AWSRequest(method, f"{self.endpoint}{path}", data=content, headers=headers or {})
        S3SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", REGION).add_auth(request)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, content, dict(request.headers.items()))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def _identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, object]:
    return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}


_IDENTITIES = [
    _identity("owner", ACCESS_KEY, SECRET_KEY, ["Admin", "Read", "List", "Write"]),
    _identity("stranger", STRANGERS_KEY, STRANGERS_SECRET, ["Read:elsewhere"]),
]
