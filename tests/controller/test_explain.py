"""``explain``: every cause has its sentence, and the last one is what to do."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controller.explain import UNBELIEVED, Sentence, explain, receipts_of
from controller.fleet import Fleet
from controller.publish import make_event
from controller.views import templates
from kvmwire.codec import encode_event, encode_status
from kvmwire.codes import FailureCode
from kvmwire.events import DeployData, Ensure, HostLabels
from kvmwire.signing import sign_payload
from kvmwire.status import HostState, Outcome, Receipt, ReplicaState, ReplicaStatus
from kvmwire.topics import DeployTopic, HostTopic, RegisterTopic, ReplicaTopic
from kvmwire.trust import CONTROLLER_ROLES, TrustedKey, TrustList
from tests.controller.test_fleet import NOW, RECORD, SUBJECTS, TOPICS, event_of, fleet_of, host_status

REGISTERED = (RegisterTopic("deb12"), event_of(RegisterTopic("deb12"), RECORD, 5))
ONLINE = (HostTopic("kvm01"), host_status("kvm01", zone="lab"))


def told(fleet: Fleet, receipts: dict[str, Receipt] | None = None) -> dict[str, str]:
    sentences = explain(fleet, "deb12", "kvm01", receipts or {})
    return {sentence.about: sentence.text for sentence in sentences}


def replica(state: ReplicaState, code: FailureCode | None = None) -> bytes:
    return encode_status(
        ReplicaStatus(
            template="deb12",
            generation=7,
            pool="default",
            state=state,
            code=code,
            message="only 3 bytes free" if code else "",
            hint="Free space." if code else "",
            since=NOW,
            next_attempt=NOW if state is ReplicaState.WAITING else None,
        )
    )


def test_a_template_nobody_registered() -> None:
    said = told(fleet_of(ONLINE))
    assert "is not registered" in said["template"]
    assert said["next"].startswith("Register it")


def test_a_host_nobody_has_seen() -> None:
    said = told(fleet_of(REGISTERED))
    assert "never announced itself" in said["host"]
    assert "Start kvmd on kvm01" in said["next"]


def test_a_host_that_was_revoked() -> None:
    fleet = fleet_of(ONLINE, REGISTERED)
    fleet.leave_out(["kvm01"])
    said = told(fleet)
    assert "was revoked" in said["host"]
    assert said["next"].endswith("kvmctl enroll kvm01 --reset")


def test_what_no_key_of_the_fleet_has_signed_is_not_taken_for_registered() -> None:
    key = Ed25519PrivateKey.generate()
    trust = TrustList(keys=(TrustedKey.of("controller", key.public_key(), CONTROLLER_ROLES),))
    topic, payload = REGISTERED
    signed = (topic, sign_payload(payload, key))
    forged = (topic, sign_payload(payload, Ed25519PrivateKey.generate()))
    for event, is_believed in ((signed, True), (forged, False), (REGISTERED, False)):
        fleet = fleet_of(ONLINE, event)
        fleet.trust = trust
        said = told(fleet)
        assert (UNBELIEVED not in said["template"]) is is_believed
        assert said["next"].startswith("Deploy it" if is_believed else "Register it yourself")
        assert [row["believed"] for row in templates(fleet)[0]] == [is_believed]
    fleet.trust = TrustList(keys=(trust.keys[0].model_copy(update={"is_revoked": True}),))
    fleet.take(TOPICS.build(topic), signed[1])
    assert UNBELIEVED in told(fleet)["template"]


def test_a_template_nobody_deployed() -> None:
    said = told(fleet_of(ONLINE, REGISTERED))
    assert "Nobody has deployed" in said["deploy"]
    assert said["next"] == "Deploy it: kvmctl deploy deb12 --host kvm01 --wait"


def test_a_deploy_that_selects_others_says_which() -> None:
    data = DeployData(deployment="d", template=RECORD, hosts=HostLabels(labels={"zone": "other"}))
    said = told(fleet_of(ONLINE, REGISTERED, (DeployTopic("d"), event_of(DeployTopic("d"), data, 6))))
    assert "No deploy event of deb12 selects kvm01" in said["deploy"]
    assert "kvmd/v1/deploy/all/d" in said["deploy"]


def test_of_several_deploys_the_newest_holds() -> None:
    present = DeployData(deployment="d", template=RECORD)
    gone = DeployData(deployment="d", template=RECORD, ensure=Ensure.ABSENT)
    fleet = fleet_of(
        ONLINE,
        REGISTERED,
        (DeployTopic("d"), event_of(DeployTopic("d"), present, 6)),
        (DeployTopic("d", "kvm01"), event_of(DeployTopic("d", "kvm01"), gone, 7)),
    )
    deploys = [s.text for s in explain(fleet, "deb12", "kvm01", {}) if s.about == "deploy"]
    assert len(deploys) == 2
    assert "wants it gone from pool default, generation 7: this one holds" in deploys[0]
    assert "a newer one holds" in deploys[1]


def test_a_refusing_receipt_tells_code_and_hint() -> None:
    event = make_event(DeployTopic("d"), DeployData(deployment="d", template=RECORD), generation=7, now=NOW)
    refused = Receipt(
        event=event.id,
        host="kvm01",
        outcome=Outcome.REFUSED,
        topic="t",
        code=FailureCode.UNSUPPORTED,
        message="No machines here.",
        hint="Leave it out.",
        time=NOW,
    )
    fleet = fleet_of(ONLINE, REGISTERED, (DeployTopic("d"), encode_event(TOPICS, event)))
    said = told(fleet, receipts_of("kvm01", {event.id: [refused]}))
    assert "refused; UNSUPPORTED: No machines here. Leave it out." in said["receipt"]
    assert "sends the event again" in told(fleet)["next"]


def test_a_waiting_replica_tells_why_and_when() -> None:
    data = DeployData(deployment="d", template=RECORD)
    fleet = fleet_of(
        ONLINE,
        REGISTERED,
        (DeployTopic("d"), event_of(DeployTopic("d"), data, 7)),
        (ReplicaTopic("kvm01", "default", "deb12"), replica(ReplicaState.WAITING, FailureCode.NO_SPACE)),
    )
    said = told(fleet)
    assert "NO_SPACE: only 3 bytes free Free space. Next attempt at" in said["replica"]
    assert said["next"] == "Free space. At once: kvmctl recheck deb12 --host kvm01"


def test_a_ready_replica_needs_nothing() -> None:
    data = DeployData(deployment="d", template=RECORD)
    fleet = fleet_of(
        ONLINE,
        REGISTERED,
        (DeployTopic("d"), event_of(DeployTopic("d"), data, 7)),
        (ReplicaTopic("kvm01", "default", "deb12"), replica(ReplicaState.READY)),
    )
    assert told(fleet)["next"] == "Nothing."


def test_an_offline_host_is_told_to_start() -> None:
    fleet = fleet_of(*SUBJECTS, (HostTopic("kvm01"), host_status("kvm01", HostState.OFFLINE)))
    sentences = explain(fleet, "deb12", "kvm01", {})
    assert sentences[-1] == Sentence("next", sentences[-1].text)
    assert "Start kvmd on kvm01" in sentences[-1].text
