"""Probes the sources of templates that are registered, rechecked, or were not probed before the last stop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from kvmd.core.admission import check_policy
from kvmd.core.desired import HostRecord, ProbeRecord, TemplateRecord
from kvmd.core.session import Terms
from kvmd.daemon.announcer import Announcer
from kvmd.daemon.jobs import access_of
from kvmd.daemon.rules import JOURNAL_PAUSE_S, Rules, check_credentials
from kvmd.engine.job import Job
from kvmd.engine.probing import Finding
from kvmd.engine.report import probe_status
from kvmd.engine.supply import survey
from kvmd.errors import KvmdError
from kvmd.log import get_logger
from kvmd.ports import Clock, Journal, Sources
from kvmwire.codes import FailureCode
from kvmwire.events import RegisterData
from kvmwire.images import ChecksumOf
from kvmwire.source import SourceUrl

log = get_logger(__name__)

PROBES_AT_ONCE = 8
"""Templates probed at once; each asks all of its sources."""


class Prober:
    """Keeps one ProbeStatus a template true."""

    def __init__(
        self,
        host: str,
        record: HostRecord,
        *,
        sources: Sources,
        rules: Rules,
        journal: Journal,
        announcer: Announcer,
        clock: Clock,
    ) -> None:
        self._host = host
        self._record = record
        self._sources = sources
        self._rules = rules
        self._journal = journal
        self._announcer = announcer
        self._clock = clock
        self._wake = asyncio.Event()
        self._running: set[str] = set()

    def wake(self) -> None:
        """Look again what is to be probed."""
        self._wake.set()

    async def run(self) -> None:
        """Probe for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                for template in self._due():
                    if len(self._running) >= PROBES_AT_ONCE:
                        break
                    self._running.add(template.data.template)
                    group.create_task(self._probe(template))
                await self._wake.wait()

    def _due(self) -> Iterable[TemplateRecord]:
        for name, template in self._record.templates.items():
            known = self._record.probes.get(name)
            if name in self._running or not template.is_present or not template.data.is_checked_by(self._host):
                continue
            if known is None or known.made_for != template.fingerprint or self._has_its_credential_now(known, template):
                yield template

    def _has_its_credential_now(self, known: ProbeRecord, template: TemplateRecord) -> bool:
        if known.status.code is not FailureCode.CREDENTIAL_INVALID:
            return False
        return all(self._rules.credentials.has(name) for name in template.data.credentials)

    async def _probe(self, template: TemplateRecord) -> None:
        name = template.data.template
        try:
            findings = await self._ask(template.data)
            if self._record.templates.get(name) != template:
                return  # a newer event came meanwhile: its own probe follows, or it wants none
            status = probe_status(name, template.stamp.generation, findings, self._clock.now())
            probe = ProbeRecord(status, template.fingerprint)
            await self._journal.save_probe(probe)
            self._record.probes[name] = probe
            self._announcer.probe(probe)
            log.info("template probed", template=name, verdict=status.verdict, code=status.code)
        except KvmdError as exc:
            log.error("the journal cannot be written: the template is probed anew", exc=exc, template=name)
            await asyncio.sleep(JOURNAL_PAUSE_S)
        finally:
            self._running.discard(name)
            self._wake.set()

    async def _ask(self, data: RegisterData) -> list[Finding]:
        urls, limits = [SourceUrl.parse(url) for url in data.urls], self._rules.limits
        try:
            check_policy(self._rules.policy, digest=data.digest, urls=urls)
            check_credentials(data, self._rules.credentials)
        except KvmdError as exc:
            return [Finding(url, seconds=0.0, error=exc) for url in urls]
        terms = Terms(data.template, data.digest, data.format, len(urls), images=limits.images)
        terms = replace(terms, is_of_content=data.checksum_of is ChecksumOf.CONTENT)
        job = Job(session="", terms=terms, urls=urls, access=access_of(data), size=data.size)
        return await survey(job, self._sources, limits=limits, clock=self._clock)
