"""Who needs a volume to stay as it is: machines, domains that others defined, and disks in the pools."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from kvmd.core.backing import Dependents
from kvmd.core.desired import HostRecord
from kvmd.core.machine import is_own_file
from kvmd.errors import PoolMissingError, PoolUnsupportedError
from kvmd.ports import Domains, Keeper

LOOK_S = 60.0
"""So long a pool gets to be looked through."""
_HIDDEN = (
    "kvmd cannot read it: {why}; what it stands on is not known, so it counts: let kvmd's user read it, setfacl -m u:kvmd:r {path}, "
    "or have libvirt list its folder as a pool"
)


class Users:
    """Asks everybody anew each time. What cannot be asked may need the volume: then nobody knows, and that is an error."""

    def __init__(self, record: HostRecord, stores: Mapping[str, Keeper], domains: Domains) -> None:
        self._record = record
        self._stores = stores
        self._domains = domains

    async def of(self, path: str) -> Sequence[str]:
        """Name what needs the volume at ``path``. Raises PoolMissingError where a pool is away, or libvirt, that could.

        What comes most easily is asked last: domains may be defined while the pools are looked through, which takes longest.
        """
        disks = await self._disks(path)
        domains = await self._domains.using(path)
        machines = self._record.machines_on(path)
        return [
            *(f"machine {name}" for name in machines),
            *(
                f"the domain {name}{f' ({why})' if why else ''}"
                for name, why in domains.items()
                if name not in machines
            ),
            *(f"the disk {one}" for one in disks),
        ]

    async def _disks(self, path: str) -> Sequence[str]:
        """Name the disks in the pools that stand on the volume, and those of which nobody can tell, with what to do."""
        disks, unread = list[str](), dict[str, str]()
        for pool, store in self._stores.items():
            found = await _dependents(pool, store, path)
            disks += found.disks
            unread |= {one: why for one, why in found.unread.items() if not is_own_file(self._record, one)}
        if unread:
            for one, is_sure in sorted((await self._domains.standing(unread, path)).items()):
                disks.append(one if is_sure else f"{one} ({_HIDDEN.format(why=unread[one], path=one)})")
        return disks


async def _dependents(pool: str, store: Keeper, path: str) -> Dependents:
    limit = asyncio.timeout(LOOK_S)
    try:
        async with limit:
            return await store.dependents(path)
    except PoolUnsupportedError:
        return Dependents()  # kvmd puts nothing there, and can look at nothing
    except PoolMissingError as exc:
        raise _unknown(pool, path, exc.message.rstrip(".")) from exc
    except TimeoutError as exc:
        if not limit.expired():
            raise
        raise _unknown(pool, path, f"it did not answer within {LOOK_S:g} s") from exc


def _unknown(pool: str, path: str, why: str) -> PoolMissingError:
    return PoolMissingError(
        f"{path} may be needed by disks in pool {pool}, which cannot be looked at: {why}; it was left as it is.",
        hint=f"Bring pool {pool} back, and it goes on by itself; or take it out of the settings, if it is gone for good.",
    )
