"""The chaos suite in short: every fault at least once, every promise held against the books."""

from pathlib import Path

import pytest

from tests.chaos.suite import run_chaos

KINDS = {
    "kill worker", "SIGTERM worker", "freeze worker", "kill web", "rolling restart", "FLUSHALL", "kill Valkey",
    "FLUSHALL and kill Valkey", "kill Postgres", "stop Postgres",
}  # fmt: skip


@pytest.mark.timeout(300)
async def test_nothing_is_lost_and_nothing_happens_twice(tmp_path: Path) -> None:
    report = await run_chaos(200, 25, tmp_path, seed=3, timed=False)
    print(report.table())  # noqa: T201 - shown when it fails
    assert set(report.faults) == KINDS
    assert report.finished == {"completed": 200}
    assert report.approvals == 100 and report.contested > 0
    assert report.recovered, "no fault met a run at work"
    assert not report.problems
