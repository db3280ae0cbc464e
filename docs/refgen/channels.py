"""What travels on each topic, in which direction, with which model: the contract as one table."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, create_model

from kvmwire.codec import Envelope
from kvmwire.events import CommandData, CredentialData, DeployData, EventType, RegisterData
from kvmwire.status import (
    CredentialStatus,
    GcStatus,
    HostStatus,
    MachineStatus,
    ProbeStatus,
    Progress,
    Receipt,
    ReplicaStatus,
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
    Topic,
    Topics,
    Verb,
)

Models = tuple[type[BaseModel], ...]

PARAMETERS: Mapping[str, str] = {
    "template": "Name of a template.",
    "deployment": "Name of a deployment.",
    "host": "Name of a host.",
    "pool": "Name of a storage pool of the host.",
    "credential": "Name of a credential.",
    "name": "Name of a virtual machine.",
    "verb": "What the host is to do.",
    "event_id": "Id of the event that the receipt answers.",
}


class Direction(StrEnum):
    """Seen from the host."""

    RECEIVE = "receive"
    SEND = "send"


@dataclass(frozen=True)
class Channel:
    """One topic. ``models`` are the payloads that fit; ``reserved`` ones are pinned, but not used by this version."""

    key: str
    topic: Topic
    direction: Direction
    models: Models
    retained: bool = True
    qos: int = 1
    reserved: bool = False

    @property
    def address(self) -> str:
        """The topic with its parameters in braces."""
        text = Topics().build(self.topic)
        return text.replace(Verb.ANNOUNCE.value, "{verb}") if isinstance(self.topic, CommandTopic) else text

    @property
    def summary(self) -> str:
        """What it carries: the docstring of the topic's class."""
        text = (inspect.getdoc(type(self.topic)) or "").replace(
            "; ``host`` None means the topic that all hosts read", ""
        )
        return text.replace("``", "`") + (" Not used by this version." if self.reserved else "")


def _enveloped(name: str, kind: EventType, data: type[BaseModel]) -> type[BaseModel]:
    narrowed: Any = {"type": (Literal[kind], ...), "data": (data, ...)}
    return create_model(name, __base__=Envelope, __doc__=f"A CloudEvents envelope around {data.__name__}.", **narrowed)


REGISTER: Models = (_enveloped("RegisterEvent", EventType.REGISTER, RegisterData), RegisterData)
DEPLOY: Models = (_enveloped("DeployEvent", EventType.DEPLOY, DeployData), DeployData)
COMMAND: Models = (_enveloped("CommandEvent", EventType.COMMAND, CommandData), CommandData)
CREDENTIAL: Models = (_enveloped("CredentialEvent", EventType.CREDENTIAL, CredentialData), CredentialData)

_IN, _OUT = Direction.RECEIVE, Direction.SEND
_HOST, _POOL, _TEMPLATE, _NAME = "{host}", "{pool}", "{template}", "{name}"
_DEPLOYMENT, _CREDENTIAL, _VERB = "{deployment}", "{credential}", Verb.ANNOUNCE

CHANNELS: tuple[Channel, ...] = (
    Channel("register", RegisterTopic(_TEMPLATE), _IN, REGISTER),
    Channel("deployAll", DeployTopic(_DEPLOYMENT), _IN, DEPLOY),
    Channel("deployHost", DeployTopic(_DEPLOYMENT, _HOST), _IN, DEPLOY),
    Channel("commandAll", CommandTopic(_VERB), _IN, COMMAND, retained=False),
    Channel("commandHost", CommandTopic(_VERB, _HOST), _IN, COMMAND, retained=False),
    Channel("credentialAll", CredentialTopic(_CREDENTIAL), _IN, CREDENTIAL),
    Channel("credentialHost", CredentialTopic(_CREDENTIAL, _HOST), _IN, CREDENTIAL),
    Channel("statusHost", HostTopic(_HOST), _OUT, (HostStatus,)),
    Channel("statusProbe", ProbeTopic(_HOST, _TEMPLATE), _OUT, (ProbeStatus,)),
    Channel("statusReplica", ReplicaTopic(_HOST, _POOL, _TEMPLATE), _OUT, (ReplicaStatus,)),
    Channel("statusGc", GcTopic(_HOST), _OUT, (GcStatus,)),
    Channel("statusReceipt", ReceiptTopic(_HOST, "{event_id}"), _OUT, (Receipt,), retained=False),
    Channel("statusProgress", ProgressTopic(_HOST, _POOL, _TEMPLATE), _OUT, (Progress,), retained=False, qos=0),
    Channel("statusMachine", MachineTopic(_HOST, _NAME), _OUT, (MachineStatus,), reserved=True),
    Channel("statusCredential", CredentialStatusTopic(_HOST, _CREDENTIAL), _OUT, (CredentialStatus,)),
)


def all_models() -> Models:
    """Give every model that is somewhere a payload, and the envelope, each once."""
    return tuple(dict.fromkeys((Envelope, *(model for channel in CHANNELS for model in channel.models))))
