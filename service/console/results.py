"""What came of each of many that a person picked: a page that says it of each."""

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.responses import Response

from service.console.page import Visit


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one of many. `path`: where it is looked at, if anywhere."""

    name: str
    path: str | None
    ok: bool
    title: str
    detail: str = ""


def page(visit: Visit, results: Sequence[Result], title: str, *, back: str, back_to: str) -> Response:
    return visit.html("results.html", results=results, title=title, back=back, back_to=back_to)
