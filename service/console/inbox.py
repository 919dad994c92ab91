"""The inbox at `/`: what waits for this person, live, with its filters in the URL."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode

from starlette.responses import RedirectResponse, Response

from service.border import paging
from service.commands import inbox
from service.console import live, words
from service.console.page import Page, Visit
from service.domain.principal import Permission
from service.store.inbox import View, Wanted

SIZES: Final = (50, 100, 200, 500)
AGES: Final[Mapping[str, tuple[str, float]]] = {
    "10m": ("10 minutes", 600),
    "1h": ("an hour", 3600),
    "8h": ("8 hours", 8 * 3600),
    "1d": ("a day", 86_400),
    "7d": ("a week", 7 * 86_400),
}
FIELDS: Final = ("q", "checkpoint", "session", "user", "provider", "reason", "group", "age", "n")
LABELS: Final[Mapping[str, str]] = {
    "q": "search", "checkpoint": "checkpoint", "session": "session", "user": "for", "provider": "provider",
    "reason": "reason", "group": "asked group", "age": "waits for more than",
}  # fmt: skip
MAX_TEXT: Final = 200


async def show(visit: Visit) -> Response:
    """A page of the inbox."""
    asked = _asked(visit)
    found = await inbox.look(
        visit.services, visit.principal, _wanted(asked), after=paging.decode(_after(visit)), limit=_size(asked)
    )
    query = urlencode(asked)
    return visit.html(
        "inbox.html",
        found=found,
        counted=inbox.COUNTED,
        asked={name: asked.get(name, "") for name in FIELDS},
        kept=asked,
        narrowing=[
            (LABELS[name], _said(name, value), _where(asked, name)) for name, value in asked.items() if name != "n"
        ],
        where=lambda name, value: _where(asked, name, value),
        providers=sorted({provider.name for provider in visit.services.registry.all()}),
        query=query,
        deeper=bool(set(asked) - {"q", "checkpoint", "n"}),
        narrowed=bool(set(asked) - {"n"}),
        following=urlencode({**asked, "after": paging.encode(*found.after)}) if found.after else None,
        paged=_after(visit) is not None,
        stream=f"/live/inbox?{urlencode(_known(asked, visit))}",
        views=await inbox.views(visit.services, visit.principal),
        ages={key: label for key, (label, _) in AGES.items()},
        sizes=SIZES,
    )


async def follow(visit: Visit) -> Response:
    """Says when the same page would be another one."""
    asked = _asked(visit)
    wanted, after = _wanted(asked), paging.decode(_after(visit))

    async def look() -> str:
        return await inbox.mark(visit.services, visit.principal, wanted, after=after, limit=_size(asked))

    return live.changes(visit, look)


async def keep_view(visit: Visit) -> Response:
    """Keep the filters as they stand under a name, or drop a name."""
    name = visit.form.get("name").strip()
    if visit.form.get("do") == "drop":
        await inbox.drop_view(visit.services, visit.principal, name)
        return RedirectResponse("/", 303)
    kept = _clean({field: visit.form.get(field) for field in FIELDS})
    await inbox.keep_view(visit.services, visit.principal, View(name, urlencode(kept)))
    return RedirectResponse(f"/?{urlencode(kept)}", 303)


def _asked(visit: Visit) -> dict[str, str]:
    return _clean({name: visit.request.query_params.get(name, "") for name in FIELDS})


def _clean(given: Mapping[str, str]) -> dict[str, str]:
    """Only what narrows, in the order of the fields, and nothing that is not ours."""
    kept = {name: given.get(name, "").strip()[:MAX_TEXT] for name in FIELDS}
    if kept["age"] not in AGES:
        kept["age"] = ""
    if kept["n"] not in map(str, SIZES[1:]):
        kept["n"] = ""
    return {name: value for name, value in kept.items() if value}


def _where(asked: Mapping[str, str], name: str, value: str = "") -> str:
    """The inbox with this filter set to something else, or, where it stands so already, without it."""
    wanted = "" if asked.get(name, "") == value else value
    query = urlencode(_clean({**asked, name: wanted}))
    return f"/?{query}" if query else "/"


def _said(name: str, value: str) -> str:
    """What a filter is set to, in words."""
    match name:
        case "age":
            return AGES[value][0]
        case "checkpoint":
            return words.checkpoint(value)
        case _:
            return value


def _wanted(asked: Mapping[str, str]) -> Wanted:
    return Wanted(
        checkpoint=asked.get("checkpoint"), session=asked.get("session"), user=asked.get("user"),
        provider=asked.get("provider"), reason=asked.get("reason"), group=asked.get("group"),
        older_than_s=AGES[asked["age"]][1] if "age" in asked else None, text=asked.get("q"),
    )  # fmt: skip


def _size(asked: Mapping[str, str]) -> int:
    return int(asked.get("n", SIZES[0]))


def _after(visit: Visit) -> str | None:
    return visit.request.query_params.get("after") or None


def _known(asked: Mapping[str, str], visit: Visit) -> dict[str, str]:
    after = _after(visit)
    return {**asked, **({"after": after} if after else {})}


PAGES: Final = (
    Page("/", {"GET": show}, name="Inbox"),
    Page("/live/inbox", {"GET": follow}),
    Page("/views", {"POST": keep_view}, Permission.READ),
)
