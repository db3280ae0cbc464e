"""What has to be published, by comparison of what is kept with what is out: whatever happened before, the end is the same."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from controller.credentials.handout import Part, due, taken_from, withdrawn
from controller.credentials.known import Known
from controller.credentials.record import Recipient, Record
from controller.publish import make_event
from kvmwire.events import CredentialData, Ensure, Event
from kvmwire.seal import Binding, seal, unseal
from kvmwire.topics import CredentialTopic
from kvmwire.trust import keyid_of

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
SECRET = b"what is sealed"
NAMES = ("kvm01", "kvm02", "kvm03")
ORIGINS = ("https://images.example.org:443",)
KEYS = {name: X25519PrivateKey.generate() for name in NAMES}
NEW_KEYS = {name: X25519PrivateKey.generate() for name in NAMES}
OWN = X25519PrivateKey.generate()


def newer(known: int) -> int:
    return known + 1


def recipients(names: Sequence[str], keys: Mapping[str, X25519PrivateKey] = KEYS) -> list[Recipient]:
    publics = {name: keys[name].public_key() for name in names}
    return [Recipient(name, {}, key, keyid_of(key.public_bytes_raw())) for name, key in publics.items()]


def kept(generation: int, *, hosts: object = "all", excluded: tuple[str, ...] = ()) -> Record:
    values = {"name": "images", "generation": generation, "hosts": hosts, "excluded": excluded, "origins": ORIGINS}
    record = Record.model_validate(values)
    return record.model_copy(update={"sealed": seal(SECRET, record.binding, {"+": OWN.public_key()})["+"]})


def public(generation: int, **fields: object) -> Record:
    return Record.model_validate(
        {"name": "images", "generation": generation, "origins": ORIGINS, "anchors": "PEM", **fields}
    )


class Wire:
    """What is retained, and what each host makes of it by the rule of generations."""

    def __init__(self) -> None:
        self.events: dict[CredentialTopic, Event] = {}

    @property
    def known(self) -> Known:
        return Known(self.events, {})

    def publish(self, parts: Sequence[Part]) -> None:
        for part in parts:
            self.events[part.topic] = make_event(part.topic, part.data, generation=part.generation, now=NOW)

    def held(self, host: str) -> tuple[int, CredentialData] | None:
        """Give the generation and the data that hold on a host; None where it has none."""
        mine = [e for t, e in self.events.items() if t.host in {None, host}]
        best = max(mine, key=lambda event: event.generation or 0, default=None)
        if best is None or not isinstance(best.data, CredentialData) or best.data.ensure is Ensure.ABSENT:
            return None
        return best.generation or 0, best.data

    def opened(self, host: str, keys: Mapping[str, X25519PrivateKey] = KEYS) -> bytes | None:
        """Open what a host holds."""
        held = self.held(host)
        if held is None or held[1].sealed is None:
            return None
        return unseal(held[1].sealed, Binding("images", held[0], ORIGINS), host=host, key=keys[host])


def hand_out(wire: Wire, record: Record, names: Sequence[str], keys: Mapping[str, X25519PrivateKey] = KEYS) -> None:
    """Do what ``kvmctl credential add`` does, then see that nothing is left to do."""
    secret = SECRET if record.sealed is not None else None
    found = recipients(names, keys)
    wire.publish(due(record, secret, found, wire.known, newer=newer) + withdrawn(record, found, wire.known))
    assert due(record, secret, found, wire.known, newer=newer) == []


def test_each_host_opens_its_own_copy_of_one_ciphertext() -> None:
    wire = Wire()
    hand_out(wire, kept(10), NAMES)
    assert [wire.opened(name) for name in NAMES] == [SECRET] * 3
    sealed = [e.data.sealed for e in wire.events.values() if isinstance(e.data, CredentialData) and e.data.sealed]
    assert len({one.ciphertext for one in sealed}) == 1
    assert len({one.key for one in sealed}) == 3


def test_a_host_that_joins_gets_the_generation_that_is_kept_and_others_get_nothing() -> None:
    wire = Wire()
    hand_out(wire, kept(10), NAMES[:2])
    parts = due(kept(10), SECRET, recipients(NAMES), wire.known, newer=newer)
    assert [(part.topic.host, part.generation) for part in parts] == [("kvm03", 10)]


def test_a_host_with_a_new_key_gets_it_anew_in_a_higher_generation() -> None:
    wire = Wire()
    hand_out(wire, kept(10), NAMES)
    keys = {**KEYS, "kvm02": NEW_KEYS["kvm02"]}
    wire.publish(due(kept(10), SECRET, recipients(NAMES, keys), wire.known, newer=newer))
    assert wire.opened("kvm02", keys) == SECRET
    held = wire.held("kvm02")
    assert held is not None
    assert held[0] == 11


def test_a_revocation_that_is_newer_than_what_is_kept_is_never_overruled() -> None:
    wire = Wire()
    hand_out(wire, kept(10), NAMES)
    wire.publish(taken_from("images", ["kvm01"], wire.known, newer=newer))
    assert due(kept(10), SECRET, recipients(NAMES), wire.known, newer=newer) == []
    assert (wire.held("kvm01"), wire.opened("kvm02")) == (None, SECRET)


def test_public_certificates_stay_away_from_excluded_hosts_in_each_generation() -> None:
    wire = Wire()
    for generation in (10, 20):
        record = public(generation, excluded=("kvm01",))
        wire.publish(due(record, None, (), wire.known, newer=newer))
        assert due(record, None, (), wire.known, newer=newer) == []
        held = wire.held("kvm02")
        assert (wire.held("kvm01"), held and held[0]) == (None, generation)


STEPS = st.lists(
    st.tuples(st.sampled_from(["all", "public", *NAMES, "revoke", "revoke one", "sync"]), st.integers(1, 3)), max_size=8
)


@given(STEPS)
def test_after_any_history_the_last_order_holds_on_every_host(steps: list[tuple[str, int]]) -> None:
    wire, record, generation = Wire(), Record(name="images", generation=0, ensure=Ensure.ABSENT), 0
    taken = set[str]()
    for step, count in steps:
        names = NAMES[:count]
        generation = max([generation, *(event.generation or 0 for event in wire.events.values())]) + 2
        match step:
            case "revoke":
                record, taken = record.revoked(generation), set()
            case "revoke one":
                wire.publish(taken_from("images", [NAMES[0]], wire.known, newer=newer))
                record = record.without([NAMES[0]]) if record.ensure is Ensure.PRESENT else record
                taken = taken | {NAMES[0]}
            case "sync":
                pass
            case "public":
                record = public(generation, excluded=tuple(sorted(taken)))
            case hosts:
                wanted = "all" if hosts == "all" else (hosts,)
                taken = taken - set(wanted if isinstance(wanted, tuple) else ())
                record = kept(generation, hosts=wanted, excluded=tuple(sorted(taken)))
        secret = SECRET if record.sealed is not None else None
        found = recipients(names)
        parts = due(record, secret, found, wire.known, newer=newer)
        if step in {"all", "public", *NAMES}:
            parts += withdrawn(record, found, wire.known)
        wire.publish(parts)
        assert due(record, secret, found, wire.known, newer=newer) == []
        for name in NAMES:
            held = wire.held(name)
            if record.ensure is Ensure.ABSENT or name in taken:
                assert held is None
            elif record.is_public:
                assert held is not None
                assert held[1].anchors
            elif name in names and record.selects(name, {}):
                assert wire.opened(name) == SECRET
