"""The rules in the dialect of nats-server: one file.

MQTT topics are subjects there: levels end at dots, wildcards are ``*`` and ``>``, and a dot within a level is written ``//``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import PurePosixPath

from controller.brokerconfig.access import Access
from controller.brokerconfig.site import Site, check_path

CONF = "nats-server.conf"
_DELIVERIES = "$MQTT.sub.>"
"""Subjects on which the server hands QoS 1 messages to a client's own connection; no MQTT client can subscribe there itself."""
_WILDCARDS = {"+": "*", "#": ">"}


def configuration(site: Site, accesses: Iterable[Access], *, store: PurePosixPath) -> str:
    """Give the text of the configuration file; ``store`` is the folder in which messages are kept."""
    check_path(store)
    users = "\n".join(_user(access) for access in accesses)
    return f"""# Written by "kvmctl broker-config nats". Changes are lost when it is written again.
server_name: "kvmd"
# NATS's own protocol: nobody speaks it here, and no user may.
listen: "127.0.0.1:-1"
jetstream {{ store_dir: {_quoted(store)}, limits {{ default_max_consumers: -1 }} }}
mqtt {{
  listen: {_quoted(site.listener)}
  ack_wait: "5s"
  max_ack_pending: 200
  tls {{
    cert_file: {_quoted(site.cert)}
    key_file: {_quoted(site.key)}
    ca_file: {_quoted(site.ca)}
    verify_and_map: true
  }}
}}
# A user is the subject of a client certificate. Who is not here cannot connect.
authorization {{
  users: [
{users}
  ]
}}
"""


def subjects(topic_filter: str) -> list[str]:
    """Write an MQTT topic or filter as subjects. Levels are names or wildcards: none is empty.

    ``a/#`` is two, since it means ``a`` too.
    """
    text = ".".join(_WILDCARDS.get(level, level.replace(".", "//")) for level in topic_filter.split("/"))
    return [text.removesuffix(".>"), text] if text.endswith(".>") else [text]


def _user(access: Access) -> str:
    readable = dict.fromkeys((*access.reads, *access.subscriptions))
    may_read = f"allow: {_list(readable, _DELIVERIES)}" if readable else 'deny: [">"]'
    return f"""    {{
      user: {_quoted(f"CN={access.name}")}
      allowed_connection_types: ["MQTT"]
      permissions: {{
        publish: {{ allow: {_list(access.publishes)} }}
        subscribe: {{ {may_read} }}
      }}
    }}"""


def _list(filters: Iterable[str], *more: str) -> str:
    return json.dumps([*(subject for one in filters for subject in subjects(one)), *more])


def _quoted(value: object) -> str:
    return json.dumps(str(value), ensure_ascii=False)
