"""The rules in the dialect of mosquitto: a configuration for ``conf.d``, and the access list that it names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from controller.brokerconfig.access import Access
from controller.brokerconfig.site import Site, check_path

CONF, ACL = "kvmd.conf", "kvmd.acl"
_WRITTEN = '# Written by "kvmctl broker-config mosquitto". Changes are lost when it is written again.\n'


def configuration(site: Site, *, acl: PurePosixPath, crl: PurePosixPath | None = None) -> str:
    """Give the text of the configuration, which names the access list and, where there is one, the revocation list."""
    for path in (acl, *([crl] if crl else [])):
        check_path(path)
    return f"""{_WRITTEN}listener {site.listener.port} {site.listener.address}
cafile {site.ca}
certfile {site.cert}
keyfile {site.key}
{f"crlfile {crl}" if crl else "# crlfile: none was given"}
# Who one is, is the common name of one's certificate. Who is not in the access list may do nothing.
require_certificate true
use_identity_as_username true
allow_anonymous false
acl_file {acl}

persistence true
autosave_interval 30
# mosquitto drops silently what is beyond these, so they are set far above the number of templates and hosts:
max_queued_messages 100000
max_inflight_messages 20
"""


def access_list(accesses: Iterable[Access]) -> str:
    """Give the text of the access list: a section for each identity, and no pattern."""
    return _WRITTEN + "".join(f"\n{_section(access)}" for access in accesses)


def _section(access: Access) -> str:
    lines = [
        f"user {access.name}",
        *(f"topic write {one}" for one in access.publishes),
        *(f"topic read {one}" for one in access.reads),
    ]
    return "\n".join(lines) + "\n"
