from __future__ import annotations

import pytest

from kvmwire.codes import CODES, Exit, FailureCode, WireError


def test_every_code_has_its_facts_and_no_other_has() -> None:
    assert list(CODES) == list(FailureCode)


@pytest.mark.parametrize("code", FailureCode)
def test_a_code_is_its_own_name_and_says_what_to_do(code: FailureCode) -> None:
    facts = CODES[code]
    assert code.name == code.value
    assert facts.meaning
    assert not facts.meaning.endswith(".")
    assert facts.hint[0].isupper()
    assert facts.hint.endswith(".")


@pytest.mark.parametrize("code", FailureCode)
def test_a_failure_never_exits_as_success_or_interruption(code: FailureCode) -> None:
    assert CODES[code].exit not in {Exit.DONE, Exit.INTERRUPTED}


def test_the_exit_codes_are_those_of_the_contract() -> None:
    assert {exit_code.name: exit_code.value for exit_code in Exit} == {
        "DONE": 0,
        "FAILED": 1,
        "USAGE": 2,
        "VERIFICATION": 3,
        "UNREACHABLE": 4,
        "POLICY": 5,
        "INTERRUPTED": 130,
    }


def test_an_error_carries_the_usual_hint_of_its_code_unless_told_another() -> None:
    assert WireError(FailureCode.NO_SPACE, "full").hint == CODES[FailureCode.NO_SPACE].hint
    assert WireError(FailureCode.NO_SPACE, "full", hint="Delete deb11.").hint == "Delete deb11."
