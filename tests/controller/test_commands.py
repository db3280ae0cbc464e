"""The commands over both real brokers, with scripted hosts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from kvmwire.codec import decode_event
from kvmwire.codes import FailureCode
from kvmwire.events import CommandData, DeployData, Ensure, RegisterData
from kvmwire.status import HostState, Verdict
from kvmwire.topics import CommandTopic, DeployTopic, ProgressTopic, RegisterTopic, Topics, Verb
from tests.controller.kvmctl import CHECKSUM, URL, Kvmctl, ended
from tests.controller.scripted_host import Script, ScriptedHost
from tests.support.brokers import Broker
from tests.support.connections import Connections
from tests.support.waiting import eventually

TOPICS = Topics()


async def watching(broker: Broker, template: str, stdout: asyncio.StreamReader) -> None:
    """Return when a watcher has told a change that was made until it did: then it sees all that follow."""
    async with broker.client() as client, asyncio.timeout(10):
        seen = asyncio.ensure_future(stdout.readline())
        while not seen.done():
            await client.publish(
                TOPICS.build(ProgressTopic("kvm09", "default", template)),
                b'{"size": 1, "done": 0, "bytes_per_second": 0}',
            )
            await asyncio.wait([seen], timeout=0.1)


async def test_register_wait_shows_what_every_host_found(broker: Broker, kvmctl: Kvmctl) -> None:
    async with ScriptedHost(broker.url, "kvm01").running(), ScriptedHost(broker.url, "kvm02").running():
        done = await kvmctl.run("register", "deb12", URL, "--checksum", CHECKSUM, "--wait", "--json")
    assert (done.code, [(row["host"], row["state"]) for row in done.rows]) == (
        0,
        [("kvm01", "good"), ("kvm02", "good")],
    )
    assert done.rows[0]["sources"][0]["url"] == URL


async def test_register_wait_ends_with_the_code_of_the_worst_verdict(broker: Broker, kvmctl: Kvmctl) -> None:
    bad = Script(verdict=Verdict.BAD)
    async with ScriptedHost(broker.url, "kvm01").running(), ScriptedHost(broker.url, "kvm02", bad).running():
        done = await kvmctl.run("register", "deb12", URL, "--checksum", CHECKSUM, "--wait")
    assert done.code == 4
    assert "SOURCE_STATUS" in done.stdout


async def test_check_any_asks_exactly_one_host(broker: Broker, kvmctl: Kvmctl) -> None:
    hosts = ScriptedHost(broker.url, "kvm01"), ScriptedHost(broker.url, "kvm02")
    async with hosts[0].running(), hosts[1].running():
        done = await kvmctl.run("register", "deb12", URL, "--checksum", CHECKSUM, "--check", "any", "--wait", "--json")
    assert (done.code, len(done.rows)) == (0, 1)
    data = hosts[0].received[0].data
    assert isinstance(data, RegisterData)
    assert data.check == (done.rows[0]["host"],)


async def test_register_without_wait_names_event_and_topic(broker: Broker, kvmctl: Kvmctl) -> None:
    done = await kvmctl.registered()
    assert done.rows[0]["topic"] == "kvmd/v1/register/deb12"
    async with broker.client() as client:
        await client.subscribe("kvmd/v1/register/+")
        message = await client.received_on("kvmd/v1/register/deb12")
    event = decode_event(TOPICS, RegisterTopic("deb12"), message.payload)
    assert (event.id, event.generation) == (done.rows[0]["event"], done.rows[0]["generation"])
    assert message.retain


async def test_deploy_wait_ends_when_all_are_ready(broker: Broker, kvmctl: Kvmctl) -> None:
    hosts = ScriptedHost(broker.url, "kvm01"), ScriptedHost(broker.url, "kvm02")
    async with hosts[0].running(), hosts[1].running():
        await kvmctl.registered()
        done = await kvmctl.run("deploy", "deb12", "--all", "--wait", "--json")
    assert done.code == 0, done.stderr
    assert [(row["host"], row["state"], row["path"], row["checksum"]) for row in done.rows] == [
        ("kvm01", "ready", "/pool/deb12", CHECKSUM),
        ("kvm02", "ready", "/pool/deb12", CHECKSUM),
    ]
    data = hosts[0].received[-1].data
    assert isinstance(data, DeployData)
    assert isinstance(data.template, RegisterData), "the whole record is sent"


async def test_deploy_wait_ends_with_the_code_of_a_failure(broker: Broker, kvmctl: Kvmctl) -> None:
    script = Script(fails_with=FailureCode.CHECKSUM_MISMATCH)
    async with ScriptedHost(broker.url, "kvm01").running(), ScriptedHost(broker.url, "kvm02", script).running():
        await kvmctl.registered()
        done = await kvmctl.run("deploy", "deb12", "--all", "--wait")
    assert done.code == 3
    assert "CHECKSUM_MISMATCH" in done.stdout


async def test_deploy_to_named_hosts_and_by_label(broker: Broker, kvmctl: Kvmctl) -> None:
    east = Script(labels={"zone": "east"})
    first, second = ScriptedHost(broker.url, "kvm01"), ScriptedHost(broker.url, "kvm02", east)
    async with first.running(), second.running():
        await kvmctl.registered()
        named = await kvmctl.run("deploy", "deb12", "--host", "kvm01", "--wait", "--json")
        labelled = await kvmctl.run("deploy", "deb12", "--label", "zone=east", "--wait", "--json")
    assert [row["host"] for row in named.rows] == ["kvm01"]
    assert [row["host"] for row in labelled.rows] == ["kvm02"]
    assert first.received[1].topic == DeployTopic("deb12", "kvm01")
    assert second.received[1].topic == DeployTopic("deb12")
    assert (first.received[1].generation or 0) < (second.received[1].generation or 0)


async def test_a_newer_deploy_waits_for_its_own_generation(broker: Broker, kvmctl: Kvmctl) -> None:
    host = ScriptedHost(broker.url, "kvm01")
    async with host.running():
        await kvmctl.registered()
        await kvmctl.run("deploy", "deb12", "--all", "--wait")
        host.script.fails_with = FailureCode.NO_SPACE
        done = await kvmctl.run("deploy", "deb12", "--all", "--wait")
    assert done.code == 1


async def test_wait_names_offline_hosts_at_once_and_gives_up_in_time(broker: Broker, kvmctl: Kvmctl) -> None:
    absent = ScriptedHost(broker.url, "kvm02")
    async with absent.running():
        pass
    async with ScriptedHost(broker.url, "kvm01").running():
        await kvmctl.registered()
        done = await kvmctl.run("deploy", "deb12", "--all", "--wait", "--timeout", "0.8s", "--json")
    assert done.code == 4
    assert "not listening now: kvm02" in done.stderr
    assert {row["host"]: row["state"] for row in done.rows} == {"kvm01": "ready", "kvm02": "offline"}


async def test_a_lost_receipt_makes_kvmctl_send_again(broker: Broker, kvmctl: Kvmctl) -> None:
    host = ScriptedHost(broker.url, "kvm01")
    async with host.running():
        await kvmctl.registered()
        host.script.silent_for = 1
        done = await kvmctl.run("deploy", "deb12", "--all", "--wait", "--json")
    assert (done.code, done.rows[0]["state"]) == (0, "ready")
    deploys = [event.id for event in host.received if isinstance(event.data, DeployData)]
    assert len(deploys) >= 2
    assert len(set(deploys)) == 1, "the very same event is sent again"


async def test_ctrl_c_only_detaches(broker: Broker, kvmctl: Kvmctl) -> None:
    host = ScriptedHost(broker.url, "kvm01", Script(holds=True))
    async with host.running():
        await kvmctl.registered()
        async with kvmctl.started("deploy", "deb12", "--all", "--wait") as process:
            await eventually(lambda: len(host.received) == 2, what="the deploy arrives")
            assert process.stderr is not None
            async with asyncio.timeout(10):
                await process.stderr.readuntil(b"downloading")
            process.send_signal(signal.SIGINT)
            done = await ended(process)
        retained = await kvmctl.run("explain", "deb12", "kvm01", "--json")
    assert done.code == 130
    assert "Detached" in done.stderr
    assert "kvmctl watch deb12" in done.stderr
    assert any("this one holds" in row["text"] for row in retained.rows)


async def test_remove_publishes_absent_on_every_topic_that_deploys_it(broker: Broker, kvmctl: Kvmctl) -> None:
    host = ScriptedHost(broker.url, "kvm01")
    async with host.running():
        await kvmctl.registered()
        await kvmctl.run("deploy", "deb12", "--all", "--wait")
        await kvmctl.run("deploy", "deb12", "--host", "kvm01", "--wait")
        done = await kvmctl.run("remove", "deb12", "--wait", "--json")
    assert (done.code, [row["state"] for row in done.rows]) == (0, ["absent"])
    removals = [e for e in host.received if isinstance(e.data, DeployData) and e.data.ensure is Ensure.ABSENT]
    assert {event.topic for event in removals} == {DeployTopic("deb12"), DeployTopic("deb12", "kvm01")}
    assert len({event.generation for event in removals}) == 2


async def test_remove_from_one_host_leaves_the_others(broker: Broker, kvmctl: Kvmctl) -> None:
    async with ScriptedHost(broker.url, "kvm01").running(), ScriptedHost(broker.url, "kvm02").running():
        await kvmctl.registered()
        await kvmctl.run("deploy", "deb12", "--all", "--wait")
        done = await kvmctl.run("remove", "deb12", "--host", "kvm01", "--wait")
        shown = await kvmctl.run("replicas", "deb12", "--json")
    assert done.code == 0
    assert {row["host"]: row["state"] for row in shown.rows} == {"kvm01": "absent", "kvm02": "ready"}


async def test_unregister_is_a_tombstone_and_deploy_then_says_unknown(broker: Broker, kvmctl: Kvmctl) -> None:
    before = await kvmctl.registered()
    gone = await kvmctl.run("unregister", "deb12", "--json")
    assert gone.code == 0
    assert gone.rows[0]["generation"] > before.rows[0]["generation"]
    done = await kvmctl.run("deploy", "deb12", "--all", "--json")
    assert (done.code, done.rows[0]["code"]) == (1, "TEMPLATE_UNKNOWN")
    assert broker.process.running


async def test_cancel_tells_every_answer(broker: Broker, kvmctl: Kvmctl) -> None:
    host = ScriptedHost(broker.url, "kvm01")
    async with host.running(), ScriptedHost(broker.url, "kvm02").running():
        await kvmctl.registered()
        done = await kvmctl.run("cancel", "deb12", "--json")
        one = await kvmctl.run("recheck", "deb12", "--host", "kvm02", "--json")
    assert (done.code, {row["host"]: row["outcome"] for row in done.rows}) == (
        0,
        {"kvm01": "accepted", "kvm02": "accepted"},
    )
    assert [row["host"] for row in one.rows] == ["kvm02"]
    assert [event.topic for event in host.received] == [RegisterTopic("deb12"), CommandTopic(Verb.CANCEL)]


async def test_scrub_is_about_one_template_or_all(broker: Broker, kvmctl: Kvmctl) -> None:
    host = ScriptedHost(broker.url, "kvm01")
    async with host.running():
        await kvmctl.registered()
        every = await kvmctl.run("scrub", "--json")
        one = await kvmctl.run("scrub", "deb12", "--host", "kvm01", "--json")
    assert (every.code, one.code) == (0, 0)
    asked = [event.data for event in host.received if isinstance(event.topic, CommandTopic)]
    assert [data.template for data in asked if isinstance(data, CommandData)] == [None, "deb12"]


async def test_a_command_nobody_answers_ends_with_4(broker: Broker, kvmctl: Kvmctl) -> None:
    host = ScriptedHost(broker.url, "kvm01", Script(silent_for=99))
    async with host.running():
        await kvmctl.registered()
        done = await kvmctl.run("cancel", "deb12", "--timeout", "0.5s")
    assert done.code == 4
    assert "no answer yet from: kvm01" in done.stderr


@pytest.mark.parametrize("verb", ["cancel", "recheck"])
async def test_a_command_about_a_template_that_nobody_knows_is_refused(
    broker: Broker, kvmctl: Kvmctl, verb: str
) -> None:
    host = ScriptedHost(broker.url, "kvm01")
    async with host.running():
        await kvmctl.registered("deb12")
        done = await kvmctl.run(verb, "deb13", "--json")
    assert (done.code, done.rows[0]["code"]) == (1, "TEMPLATE_UNKNOWN")
    assert [topic for topic, _ in kvmctl.history()] == ["kvmd/v1/register/deb12"]


async def test_hosts_shows_offline_hosts_with_their_pools(broker: Broker, kvmctl: Kvmctl) -> None:
    host = ScriptedHost(broker.url, "kvm01")
    async with host.running():
        online = await kvmctl.run("hosts", "--json")
    offline = await kvmctl.run("hosts", "--json")
    assert [row["state"] for row in (*online.rows, *offline.rows)] == [HostState.ONLINE, HostState.OFFLINE]
    assert offline.rows[0]["pools"][0]["name"] == "default"


async def test_status_of_a_known_and_an_unknown_template(broker: Broker, kvmctl: Kvmctl) -> None:
    async with ScriptedHost(broker.url, "kvm01").running():
        await kvmctl.registered()
        await kvmctl.run("deploy", "deb12", "--all", "--wait")
    known = await kvmctl.run("status", "deb12", "--json")
    unknown = await kvmctl.run("status", "nosuch")
    assert [row["kind"] for row in known.rows] == ["template", "probe", "replica"]
    assert unknown.code == 1
    assert "TEMPLATE_UNKNOWN" in unknown.stderr
    assert broker.process.running


async def test_watch_prints_a_line_a_change(broker: Broker, kvmctl: Kvmctl) -> None:
    async with ScriptedHost(broker.url, "kvm01").running():
        await kvmctl.registered("other")
        async with kvmctl.started("watch", "--json") as process:
            assert process.stdout is not None
            await watching(broker, "other", process.stdout)
            await kvmctl.registered()
            await kvmctl.run("deploy", "deb12", "--all", "--wait")
            missing = {"register", "probe", "deploy", "progress", "ready"}  # in any order: they are of different topics
            async with asyncio.timeout(10):
                while missing:
                    row = json.loads(await process.stdout.readline())
                    if row.get("template") == "deb12" or row.get("topic", "").endswith("/deb12"):
                        missing -= {row["kind"], row.get("state")}
            process.send_signal(signal.SIGINT)
            done = await ended(process)
    assert done.code == 130


async def test_events_shows_what_was_published_and_answered(broker: Broker, kvmctl: Kvmctl) -> None:
    async with ScriptedHost(broker.url, "kvm01").running():
        await kvmctl.registered()
        await kvmctl.run("deploy", "deb12", "--all", "--wait")
    done = await kvmctl.run("events", "--json")
    assert [row["topic"] for row in done.rows] == ["kvmd/v1/deploy/all/deb12", "kvmd/v1/register/deb12"]
    assert [answer["outcome"] for answer in done.rows[0]["receipts"]] == ["accepted"]


async def test_a_broker_that_restarts_does_not_end_the_waiting(broker: Broker, kvmctl: Kvmctl) -> None:
    host = ScriptedHost(broker.url, "kvm01", Script(holds=True))
    async with host.running():
        await kvmctl.registered()
        async with kvmctl.started("deploy", "deb12", "--all", "--wait") as process:
            assert process.stderr is not None
            async with asyncio.timeout(10):
                await process.stderr.readuntil(b"40%")
            broker.checkpoint()
            connections = host.connections
            await asyncio.to_thread(broker.restart, wipe=False)
            await eventually(lambda: host.connections > connections, what="the host is back")
            event = host.received[1]
            assert isinstance(event.data, DeployData)
            await host.finish(event.data, event.generation or 0)
            done = await ended(process)
    assert done.code == 0, done.stderr


@pytest.mark.parametrize("command", ["register", "remove"])
async def test_ctrl_c_detaches_from_register_and_remove_too(broker: Broker, kvmctl: Kvmctl, command: str) -> None:
    host = ScriptedHost(broker.url, "kvm01")
    async with host.running():
        await kvmctl.registered()
        await kvmctl.run("deploy", "deb12", "--all", "--wait")
        host.script.silent_for = 99
        known = len(host.received)
        words = ["remove", "deb12"] if command == "remove" else ["register", "deb12", URL, "--checksum", CHECKSUM]
        async with kvmctl.started(*words, "--wait") as process:
            await eventually(lambda: len(host.received) > known, what="the event arrives")
            process.send_signal(signal.SIGINT)
            done = await ended(process, timeout_s=5)
    assert done.code == 130
    assert "Detached" in done.stderr
    assert "Traceback" not in done.stderr


async def test_ctrl_c_while_the_broker_does_not_answer_ends_it_at_once(tmp_path: Path) -> None:
    async with (
        silent_server() as (port, was_called),
        Kvmctl(f"mqtt://127.0.0.1:{port}", tmp_path).started("hosts") as process,
    ):
        async with asyncio.timeout(10):
            await was_called.wait()
        process.send_signal(signal.SIGINT)
        done = await ended(process, timeout_s=5)
    assert (done.code, done.stderr) == (130, "")


@contextlib.asynccontextmanager
async def silent_server() -> AsyncGenerator[tuple[int, asyncio.Event], None]:
    """Give the port of a server that takes connections and never says a word."""
    was_called = asyncio.Event()

    async def take(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        was_called.set()
        await asyncio.Event().wait()

    connections = Connections(take)
    async with await asyncio.start_server(connections.accept, "127.0.0.1", 0) as server:
        try:
            yield server.sockets[0].getsockname()[1], was_called
        finally:
            await connections.end(server)


async def test_of_two_at_once_both_are_published_and_the_higher_generation_holds(
    broker: Broker, kvmctl: Kvmctl, tmp_path: Path
) -> None:
    other = Kvmctl(broker.url, tmp_path / "another machine")
    host = ScriptedHost(broker.url, "kvm01")
    async with host.running():
        await kvmctl.registered()
        async with asyncio.TaskGroup() as group:
            runs = [
                group.create_task(one.run("deploy", "deb12", "--all", "--wait", "--json")) for one in (kvmctl, other)
            ]
        shown = await kvmctl.run("replicas", "--json")
    ends = [run.result() for run in runs]
    assert [(end.code, end.rows[0]["state"]) for end in ends] == [(0, "ready")] * 2, [end.stderr for end in ends]
    generations = [event.generation or 0 for event in host.received if isinstance(event.data, DeployData)]
    assert len({event.id for event in host.received if isinstance(event.data, DeployData)}) == 2
    assert [row["generation"] for row in shown.rows] == [max(generations)]


async def test_watch_into_a_file_is_a_line_a_change(broker: Broker, kvmctl: Kvmctl) -> None:
    async with ScriptedHost(broker.url, "kvm01").running(), kvmctl.started("watch") as process:
        assert process.stdout is not None
        await watching(broker, "deb12", process.stdout)
        await kvmctl.registered()
        async with asyncio.timeout(10):
            said = await process.stdout.readuntil(b"good")
        process.send_signal(signal.SIGINT)
        done = await ended(process)
    assert done.code == 130
    assert b"probe kvm01 deb12 good" in said
