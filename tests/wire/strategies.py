"""Valid values of everything that travels over MQTT."""

from __future__ import annotations

import dataclasses
import string
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st

from kvmwire.codec import content_of
from kvmwire.codes import FailureCode
from kvmwire.digest import Algorithm, Digest
from kvmwire.events import (
    MAX_SIZE,
    CloudInit,
    CommandData,
    CredentialData,
    DeployData,
    Ensure,
    Event,
    HostLabels,
    Machine,
    RegisterData,
    Sealed,
)
from kvmwire.images import ImageFormat
from kvmwire.status import (
    CredentialState,
    CredentialStatus,
    GcItem,
    GcKind,
    GcSkipped,
    GcStatus,
    HostState,
    HostStatus,
    MachineState,
    MachineStatus,
    Outcome,
    PoolState,
    PoolStatus,
    ProbeStatus,
    Progress,
    Receipt,
    ReplicaState,
    ReplicaStatus,
    SourceProbe,
    SourceProgress,
    SourceState,
    Status,
    Trust,
    Verdict,
)
from kvmwire.topics import (
    CommandTopic,
    CredentialStatusTopic,
    CredentialTopic,
    DeployTopic,
    GcTopic,
    HostTopic,
    MachineTopic,
    ProbeTopic,
    ProgressTopic,
    ReceiptTopic,
    RegisterTopic,
    ReplicaTopic,
    StatusTopic,
    Topic,
    Verb,
)

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
event_ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
hosts = st.none() | names
texts = st.text(st.characters(codec="utf-8"), max_size=60)
sizes = st.integers(1, MAX_SIZE)
figures = st.integers(0, MAX_SIZE)
times = st.datetimes(
    min_value=datetime(1970, 1, 2),  # noqa: DTZ001 - hypothesis adds the zone itself
    max_value=datetime(2200, 1, 1),  # noqa: DTZ001 - as above
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8))]),
)
labels = st.dictionaries(names, st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), max_size=3)
urls = st.builds(
    "{}://{}{}/{}{}".format,
    st.sampled_from(["http", "https", "nfs", "HTTPS"]),
    st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z](\.[a-z]{2,5}){0,2}", fullmatch=True) | st.just("[2001:db8::1]"),
    st.sampled_from(["", ":8080"]),
    st.text(string.ascii_letters + string.digits + "._~-/@", max_size=30),
    st.sampled_from(["", "?token=a%20b&x=1"]),
)
digests = st.sampled_from(list(Algorithm)).flatmap(
    lambda a: st.text("0123456789abcdef", min_size=a.hex_length, max_size=a.hex_length).map(lambda h: Digest(a, h))
)
headers = st.dictionaries(
    st.from_regex(r"X-[A-Za-z0-9-]{1,20}", fullmatch=True),
    st.from_regex(r"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True),
    max_size=3,
)


def tuples(of: st.SearchStrategy[Any], *, most: int = 3) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(of, max_size=most).map(tuple)


registers = st.builds(
    RegisterData,
    template=names,
    url=urls,
    sources=tuples(urls),
    checksum=st.none() | digests.map(str),
    format=st.sampled_from(ImageFormat),
    size=st.none() | sizes,
    headers=headers,
    credentials=tuples(names),
    check=st.sampled_from(["all", "none"]) | tuples(names),
    description=texts,
    labels=labels,
    ensure=st.sampled_from(Ensure),
)
machines = st.builds(
    Machine,
    name=names,
    vcpus=st.integers(1, 64),
    memory_mib=st.integers(1, 2**20),
    disk_gib=st.none() | st.integers(1, 4096),
    network=st.none() | names,
    cloud_init=st.none() | st.builds(CloudInit, user_data=texts, meta_data=texts),
    cdrom=tuples(names),
    start=st.booleans(),
)
deploys = st.builds(
    DeployData,
    deployment=names,
    template=names | registers.filter(lambda record: record.ensure is Ensure.PRESENT),
    pool=names,
    hosts=st.just("all") | st.builds(HostLabels, labels=labels.filter(bool)) | tuples(names),
    ensure=st.sampled_from(Ensure),
    name=st.none() | names,
    deadline=st.none() | times,
    priority=st.integers(-1000, 1000),
    rate_limit=figures,
    machine=st.none() | machines,
)
origins = st.builds(
    "{}://{}{}{}".format,
    st.sampled_from(["http", "https"]),
    st.sampled_from(["", "*."]),
    st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z](\.[a-z]{2,5}){0,2}", fullmatch=True),
    st.sampled_from(["", ":8080"]),
)
credentials = st.builds(
    CredentialData,
    credential=names,
    origins=st.lists(origins, min_size=1, max_size=3).map(tuple),
    anchors=st.text(string.ascii_letters, max_size=20),
    sealed=st.builds(Sealed, recipient=names, key=st.just("a2V5"), ciphertext=st.just("c2VjcmV0")),
    ensure=st.sampled_from(Ensure),
)
commands = st.builds(CommandData, template=st.none() | names, pool=st.none() | names, reason=texts)


@st.composite
def events(draw: st.DrawFn) -> Event:
    """Draw an enveloped event of any type, on a topic that fits its data."""
    data = draw(registers | deploys | commands | credentials)
    topic: RegisterTopic | DeployTopic | CommandTopic | CredentialTopic
    match data:
        case RegisterData():
            topic = RegisterTopic(data.template)
        case DeployData():
            topic = DeployTopic(data.deployment, draw(hosts))
        case CommandData():
            topic = CommandTopic(draw(st.sampled_from(Verb)), draw(hosts))
        case CredentialData():
            topic = CredentialTopic(data.credential, draw(hosts))
    return Event(
        id=draw(event_ids),
        topic=topic,
        data=data,
        content=content_of(data),
        source=draw(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)),
        is_bare=False,
        generation=draw(st.none() | figures),
        time=draw(st.none() | times),
        expires=draw(st.none() | times),
    )


event_topics = (
    st.builds(RegisterTopic, names)
    | st.builds(DeployTopic, names, hosts)
    | st.builds(CredentialTopic, names, hosts)
    | st.builds(CommandTopic, st.sampled_from(Verb), hosts)
)
status_topics = (
    st.builds(HostTopic, names)
    | st.builds(ProbeTopic, names, names)
    | st.builds(ReplicaTopic, names, names, names)
    | st.builds(MachineTopic, names, names)
    | st.builds(GcTopic, names)
    | st.builds(CredentialStatusTopic, names, names)
    | st.builds(ReceiptTopic, names, event_ids)
    | st.builds(ProgressTopic, names, names, names)
)
topics: st.SearchStrategy[Topic] = event_topics | status_topics

codes = st.none() | st.sampled_from(FailureCode)
seconds = st.floats(0, 1e9)
progress = st.builds(
    Progress,
    size=st.none() | figures,
    done=figures,
    bytes_per_second=figures,
    eta_seconds=st.none() | seconds,
    resumed_from=figures,
    sources=tuples(
        st.builds(
            SourceProgress,
            url=texts,
            bytes=figures,
            bytes_per_second=figures,
            state=st.sampled_from(SourceState),
            code=codes,
            message=texts,
        )
    ),
)
host_statuses = st.builds(
    HostStatus,
    host=names,
    state=st.sampled_from(HostState),
    version=texts,
    labels=labels,
    protocols=tuples(texts),
    pools=tuples(
        st.builds(
            PoolStatus,
            name=names,
            type=texts,
            path=texts,
            state=st.sampled_from(PoolState),
            capacity=st.none() | figures,
            available=st.none() | figures,
        )
    ),
    started=st.none() | times,
    since=st.none() | times,
)
probes = st.builds(
    ProbeStatus,
    template=names,
    generation=figures,
    verdict=st.sampled_from(Verdict),
    code=codes,
    message=texts,
    hint=texts,
    sources=tuples(
        st.builds(
            SourceProbe,
            url=texts,
            reachable=st.booleans(),
            status=st.none() | st.integers(100, 599),
            tls=st.none() | texts,
            size=st.none() | figures,
            ranges=st.none() | st.booleans(),
            etag=st.none() | texts,
            seconds=seconds,
            code=codes,
        )
    ),
    checked=times,
)
replicas = st.builds(
    ReplicaStatus,
    template=names,
    generation=figures,
    pool=names,
    state=st.sampled_from(ReplicaState),
    code=codes,
    message=texts,
    hint=texts,
    path=st.none() | texts,
    format=st.none() | texts,
    size=st.none() | figures,
    virtual_size=st.none() | figures,
    checksum=st.none() | digests.map(str),
    trust=st.sampled_from(Trust),
    session=st.none() | names,
    attempt=st.integers(0, 1000),
    since=times,
    next_attempt=st.none() | times,
    progress=st.none() | progress,
    last_used=st.none() | times,
    digest=st.none() | digests.map(str),
    warnings=tuples(texts),
)
machine_statuses = st.builds(
    MachineStatus,
    name=names,
    generation=figures,
    deployment=names,
    template=names,
    pool=names,
    state=st.sampled_from(MachineState),
    code=codes,
    message=texts,
    hint=texts,
    uuid=st.none() | st.uuids().map(str),
    console=texts,
    since=times,
    next_attempt=st.none() | times,
)
gc_items = st.builds(
    GcItem,
    pool=names,
    path=texts,
    kind=st.sampled_from(GcKind),
    template=texts,
    size=figures,
    goes=st.booleans(),
    why=texts,
)
gc_statuses = st.builds(
    GcStatus,
    host=names,
    event=st.none() | event_ids,
    dry_run=st.booleans(),
    deleted=figures,
    freed=figures,
    kept=figures,
    items=tuples(gc_items),
    skipped=tuples(st.builds(GcSkipped, pool=names, why=texts)),
    since=times,
)
credential_statuses = st.builds(
    CredentialStatus,
    credential=names,
    state=st.sampled_from(CredentialState),
    generation=figures,
    installed=st.none() | figures,
    origins=tuples(origins),
    holds=tuples(texts),
    fingerprint=st.none() | texts,
    expires=st.none() | times,
    code=codes,
    message=texts,
    hint=texts,
    since=times,
)
receipts = st.builds(
    Receipt,
    event=event_ids,
    host=names,
    outcome=st.sampled_from(Outcome),
    topic=texts,
    generation=st.none() | figures,
    code=codes,
    message=texts,
    hint=texts,
    time=times,
)


def statuses() -> st.SearchStrategy[tuple[StatusTopic, Status]]:
    """Draw a topic and a status that belongs on it, for every kind that has a model."""
    return _pairs().map(lambda pair: (pair[0], _about(*pair)))


def _about(topic: StatusTopic, status: Status) -> Status:
    """Name inside what the topic names."""
    named = {"event" if name == "event_id" else name: value for name, value in dataclasses.asdict(topic).items()}
    return status.model_copy(update={name: value for name, value in named.items() if name in type(status).model_fields})


def _pairs() -> st.SearchStrategy[tuple[StatusTopic, Status]]:
    return (
        st.tuples(st.builds(HostTopic, names), host_statuses)
        | st.tuples(st.builds(ProbeTopic, names, names), probes)
        | st.tuples(st.builds(ReplicaTopic, names, names, names), replicas)
        | st.tuples(st.builds(GcTopic, names), gc_statuses)
        | st.tuples(st.builds(MachineTopic, names, names), machine_statuses)
        | st.tuples(st.builds(CredentialStatusTopic, names, names), credential_statuses)
        | st.tuples(st.builds(ReceiptTopic, names, event_ids), receipts)
        | st.tuples(st.builds(ProgressTopic, names, names, names), progress)
    )
