"""Whatever happens to a session, in whatever order: a replica is ready only with the digest that was promised or recorded."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvmd.core.placement import Placement, Stored
from kvmd.core.provenance import Provenance
from kvmd.core.session import (
    Absent,
    Admitting,
    Cancelled,
    Committed,
    Committing,
    Converted,
    Converting,
    Downloading,
    Effect,
    Failed,
    Fetch,
    Fetched,
    Input,
    LookedUp,
    Probed,
    Probing,
    Queued,
    Ready,
    Removed,
    Removing,
    Sealed,
    Started,
    State,
    Terms,
    Verifying,
    Waiting,
)
from kvmd.core.transitions import IllegalTransitionError, step
from kvmwire.digest import Digest
from tests.kvmd.core.session_values import TERMS, any_look, digests, found, inputs, placements, terms


class AnySession(RuleBasedStateMachine):
    """One session to which anything can happen; ``proof`` is the digest that the last look at the disk was to have.

    ``is_converted``: the volume is what a conversion made of the file with that digest.
    """

    def __init__(self) -> None:
        super().__init__()
        self.state: State = Queued()
        self.terms: Terms = TERMS
        self.proof: Digest | None = None
        self.is_converted = False
        self.fetches = 0

    @initialize(wanted=terms, expected=st.none() | digests)
    def begin(self, wanted: Terms, expected: Digest | None) -> None:
        self.terms = replace(wanted, expected=expected)

    @rule(happened=inputs)
    def anything_happens(self, happened: Input) -> None:
        self._happen(happened)

    @rule(look=any_look, sealed=found, placed=placements)
    def it_goes_on(self, look: LookedUp, sealed: Stored, placed: Placement) -> None:
        """Tell the state what it waits for, so that sessions get far."""
        self._happen(self._awaited(look, sealed, placed))

    def _awaited(self, look: LookedUp, sealed: Stored, placed: Placement) -> Input:
        match self.state:
            case Admitting():
                return look
            case Probing():
                return Probed(None)
            case Downloading():
                return Fetched()
            case Verifying():
                return Sealed(sealed)
            case Converting():
                return Converted(sealed)
            case Committing():
                return Committed(placed)
            case Removing():
                return Removed()
            case Queued() | Waiting() | Ready() | Failed() | Cancelled() | Absent():
                return Started()

    def _happen(self, happened: Input) -> None:
        try:
            after, effects = step(self.state, happened, self.terms)
        except IllegalTransitionError:
            return
        self._remember(happened, effects)
        self.state = after

    def _remember(self, happened: Input, effects: tuple[Effect, ...]) -> None:
        match happened:
            case LookedUp(_, _, recorded):
                self.proof = self.terms.expected or recorded
            case Sealed(stored):
                self.proof = self.terms.expected or stored.placement.digest
            case Converted():
                self.is_converted = True
            case Started():
                self.fetches, self.is_converted = 0, False
            case _:
                self.fetches += sum(isinstance(effect, Fetch) for effect in effects)

    @invariant()
    def ready_means_proven(self) -> None:
        if isinstance(self.state, Ready):
            assert self._is_proven(self.state.placement.digest, self.state.provenance)
            assert self.terms.expected in {None, self.proof}

    @invariant()
    def one_attempt_fetches_only_so_often(self) -> None:
        assert self.fetches <= 4

    @invariant()
    def what_is_committed_is_proven(self) -> None:
        if isinstance(self.state, Committing):
            assert self._is_proven(self.state.stored.placement.digest, self.state.stored.provenance)

    def _is_proven(self, content: Digest, made: Provenance | None) -> bool:
        """Whether the content is what was promised, or was made of that."""
        expected = self.terms.expected
        if made is not None and expected is not None and made.is_of_file(expected):
            return True
        return self.is_converted or (content == self.proof if made is None else expected in {None, content})


TestAnySession = AnySession.TestCase
TestAnySession.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
