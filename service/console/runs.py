"""The list of runs at `/runs`: its filters in the URL, how many there are of each status, and a chart over time."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

from starlette.responses import Response

from service.border import paging
from service.commands import charts, run_list
from service.commands.run_list import RunList
from service.console import graphs, live, words
from service.console.page import Page, Visit
from service.domain.chart import PERIODS, Chart
from service.domain.run import RunStatus
from service.store.runs import RunFilter

SIZES: Final = (50, 100, 200)
FIELDS: Final = ("q", "status", "user", "session", "provider", "created_after", "created_before", "n")
MAX_TEXT: Final = 200
APART_S: Final = 1.0
YEARS: Final = range(2000, 9999)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the URL asks for. `faults`: what of it cannot be read, by its name."""

    kept: Mapping[str, str]
    wanted: RunFilter
    faults: Mapping[str, str]

    @property
    def size(self) -> int:
        return int(self.kept.get("n", SIZES[0]))


async def show(visit: Visit) -> Response:
    """A page of the list."""
    asked = _asked(visit)
    found = await _found(visit, asked)
    period = _period(visit)
    chart = await charts.of(visit.services, visit.principal, period)
    periodic = {"period": period} if period != next(iter(PERIODS)) else {}
    return visit.html(
        "runs.html",
        found=found,
        asked={name: visit.request.query_params.get(name, "")[:MAX_TEXT] for name in FIELDS},
        faults=asked.faults,
        narrowed=bool(set(asked.kept) - {"n", "status"}),
        deeper=bool(asked.faults) or bool(set(asked.kept) - {"q", "status"}),
        states=_states(asked, periodic),
        period=period,
        periods={name: urlencode({**asked.kept, "period": name}) for name in PERIODS},
        providers=[provider.name for provider in visit.services.registry.all()],
        chart=chart,
        graphs=graphs.over_time(chart),
        labels={name: period.label for name, period in PERIODS.items()},
        query=urlencode({**asked.kept, **periodic}),
        following=urlencode({**asked.kept, **periodic, "after": paging.encode(*found.after)}) if found.after else None,
        paged="after" in visit.request.query_params,
        mark=_mark(found, chart),
        stream=f"/live/runs?{urlencode({**asked.kept, **periodic, **_after(visit)})}",
        sizes=SIZES,
        looked_into=run_list.LOOKED_INTO,
        bar_counted=charts.COUNTED,
    )


async def follow(visit: Visit) -> Response:
    """Says when the same page would be another one."""
    asked = _asked(visit)

    async def look() -> str:
        chart = await charts.of(visit.services, visit.principal, _period(visit))
        return _mark(await _found(visit, asked), chart)

    return live.changes(visit, look, apart_s=APART_S)


async def _found(visit: Visit, asked: Asked) -> RunList:
    if text := asked.kept.get("q"):
        found = await run_list.find(visit.services, visit.principal, text, limit=asked.size)
        if found is not None:
            return found
    return await run_list.look(visit.services, visit.principal, asked.wanted, limit=asked.size)


def _mark(found: RunList, chart: Chart) -> str:
    return f"{found.mark}.{chart.mark}"


def _asked(visit: Visit) -> Asked:
    given = {name: visit.request.query_params.get(name, "").strip()[:MAX_TEXT] for name in FIELDS}
    faults: dict[str, str] = {}
    if given["status"] not in set(RunStatus):
        given["status"] = ""
    if given["n"] not in map(str, SIZES[1:]):
        given["n"] = ""
    after, before = (_moment(given[name], name, faults) for name in ("created_after", "created_before"))
    if given["q"] and run_list.is_no_id(given["q"]):
        faults["q"] = "That is no id: paste a run, an approval or a job, or the first 8 characters at least."
    wanted = RunFilter(
        [given["status"]] if given["status"] else None, given["user"] or None, given["session"] or None,
        given["provider"] or None, after, before, paging.decode(_after(visit).get("after")),
    )  # fmt: skip
    return Asked({name: value for name, value in given.items() if value}, wanted, faults)


def _moment(text: str, name: str, faults: dict[str, str]) -> datetime | None:
    """A time in UTC, unless it says otherwise."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.year not in YEARS:
        faults[name] = "That is no time: write it as 2026-01-31T14:00."
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at


def _states(asked: Asked, more: Mapping[str, str]) -> list[tuple[str, str, str, bool]]:
    """Each status with its name, where it leads to, and whether it is the one on screen."""
    others = {name: value for name, value in asked.kept.items() if name not in ("status", "q")}
    now = asked.kept.get("status")
    return [
        (status, words.RUN_STATES[status], urlencode({**others, "status": status.value, **more}), status == now)
        for status in RunStatus
    ]


def _period(visit: Visit) -> str:
    period = visit.request.query_params.get("period", "")
    return period if period in PERIODS else next(iter(PERIODS))


def _after(visit: Visit) -> dict[str, str]:
    after = visit.request.query_params.get("after")
    return {"after": after} if after else {}


PAGES: Final = (
    Page("/runs", {"GET": show}, name="Runs"),
    Page("/live/runs", {"GET": follow}),
)
