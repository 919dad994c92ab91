"""Why something stands still: each cause has its own words, and the one that others follow from is named."""

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from service.domain import stuck
from service.domain.run import STATE_VERSION, Run, RunStatus
from service.domain.stuck import Crew, HeldUp, Overdue
from tests.domain.make import NOW, a_run

CREW = Crew(workers=2, jobs=3, max_jobs=200, redis=True)
HOUR = timedelta(hours=1)


def of(run: Run, crew: Crew = CREW, ahead: str | None = None) -> stuck.Stuck:
    return stuck.of_run(HeldUp(run, UUID(int=9) if ahead else None, ahead), crew, NOW)


CAUSES: dict[str, tuple[dict[str, Any], str, str]] = {
    "not taken": ({"due_at": NOW - HOUR}, "no worker took it", "log of the workers"),
    "newer": ({"due_at": NOW - HOUR, "state_version": STATE_VERSION + 1}, "newer release", "that release"),
    "silent": ({"lease_until": NOW - HOUR, "worker_id": "w7"}, "w7 fell silent", "takes it over"),
    "long": ({"lease_until": NOW + HOUR, "worker_id": "w7"}, "w7 has been at one step", "provider call"),
    "deadline": ({"due_at": NOW + HOUR, "deadline_at": NOW - HOUR}, "deadline passed", "log of the workers"),
    "paused": ({"status": RunStatus.PAUSED, "paused_at": NOW - HOUR}, "paused", "Resume"),
    "first in line": ({"due_at": None, "queues": True}, "first in its session's line", "log of the workers"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_each_cause_has_its_words_and_its_remedy(name: str) -> None:
    changes, reason, advice = CAUSES[name]
    told = of(replace(a_run(), **changes))

    assert reason in told.reason and advice in told.advice
    assert (told.act == "resume") == (name == "paused")


def test_who_waits_in_line_is_told_for_whom() -> None:
    told = of(replace(a_run(), due_at=None, queues=True), ahead="awaiting_human")

    assert told.ahead == UUID(int=9) and "awaiting human" in told.reason


def test_what_is_not_taken_is_told_by_who_is_there() -> None:
    run = replace(a_run(), due_at=NOW - HOUR)
    none = of(run, Crew(0, 0, 0, redis=True))
    full = of(run, Crew(1, 100, 100, redis=True))
    deaf = of(run, Crew(1, 0, 100, redis=False))

    assert "no worker is there" in none.reason and "hitl worker" in none.advice
    assert "every worker is full" in full.reason and "HITL_MAX_JOBS" in full.advice
    assert "Redis does not answer" in deaf.advice


def test_an_approval_past_its_deadline_is_told_with_its_run() -> None:
    told = stuck.of_approval(Overdue(UUID(int=1), UUID(int=2), NOW - HOUR), CREW)

    assert (told.approval_id, told.run_id, told.since) == (UUID(int=1), UUID(int=2), NOW - HOUR)
