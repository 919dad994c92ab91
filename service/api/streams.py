"""Routes of Server-Sent Events: one run's events, or those of a session's or a user's runs."""

from collections.abc import AsyncIterator
from typing import Final, Self
from uuid import UUID

from pydantic import BaseModel, model_validator
from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from service.api.models import EventView, Id
from service.api.operation import Call, Operation
from service.border.stream import RETRY_MS, Stream
from service.domain.event import Event
from service.domain.frame import TERMINAL
from service.domain.snapshot import Cursor
from service.errors import Invalid, NotFound, Unavailable
from service.live.hub import Hub, run_topic
from service.live.reader import Reader, Subscription, Topic, event_json
from service.live.replay import missed, replay
from service.store import events, runs
from service.store.database import Database

EVENT_STREAM: Final = "text/event-stream"


class LineQuery(BaseModel):
    session_id: Id | None = None
    user_id: Id | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.session_id is None) == (self.user_id is None):
            raise ValueError("name one of session_id and user_id")
        return self


def wants_stream(request: Request) -> bool:
    return EVENT_STREAM in request.headers.get("accept", "").lower()


async def follow_run(call: Call, run_id: UUID, after: int) -> Response:
    """The run's events after a seq, and those to come until its last."""
    after = _seq(call.request, after)
    async with call.services.db.connection(call.principal.tenant) as conn:
        run = await runs.get(conn, call.principal.tenant, run_id)
    if run is None:
        raise NotFound("no such run")
    reader = _reader(call)
    topic = run_topic(run.tenant, run_id)
    over = run.final and run.event_seq <= after
    return Stream(reader, _nothing() if over else _run(_hub(call), call.services.db, reader, topic, run_id, after))


async def follow_line(call: Call) -> Response:
    """The events of all runs of a session or a user, from now on; each frame has its run and seq. Resumes, by the
    opaque id that came last, with whatever was missed."""
    query: LineQuery = call.query
    tenant = call.principal.tenant
    topic = (
        Topic("session", tenant, query.session_id) if query.session_id else Topic("user", tenant, query.user_id or "")
    )
    async with call.services.db.connection(call.principal.tenant) as conn:
        now = await events.snapshot(conn)
    cursor = _cursor(call.request) or Cursor(now, now)
    if cursor.until.xmax > now.xmax:  # of another server: this one was restored from it
        cursor = Cursor(now, now)
    reader = _reader(call)
    return Stream(reader, _line(_hub(call), call.services.db, reader, topic, cursor))


async def _run(
    hub: Hub, db: Database, reader: Reader, topic: Topic, run_id: UUID, after: int
) -> AsyncIterator[ServerSentEvent]:
    last = None
    with hub.attached(reader):
        wanted = await _subscribe(hub, reader, topic, {run_id: after})
        if wanted is None:
            return
        async for event, _ in replay(db, wanted, shows=False):
            if reader.ended is not None:
                return
            last = event
            yield _run_event(event)
        while last is None or last.type not in TERMINAL:
            item = await reader.next()
            if item is None:
                return
            assert item.event is not None
            last = item.event
            yield _run_event(item.event, item.event_text)


async def _line(hub: Hub, db: Database, reader: Reader, topic: Topic, cursor: Cursor) -> AsyncIterator[ServerSentEvent]:
    """First the rest of what the cursor's own look found, then what came since, then what comes."""
    with hub.attached(reader):
        yield ServerSentEvent(id=cursor.encode(), retry=RETRY_MS, sep="\n")
        wanted = await _subscribe(hub, reader, topic, None)
        if wanted is None:
            return
        async for event, _ in missed(db, topic, cursor.since, cursor.until, cursor.last):
            if reader.ended is not None:
                return
            yield _line_event(event, cursor)
        cursor = Cursor(cursor.until, wanted.start)
        async for event, _ in missed(db, topic, cursor.since, cursor.until):
            if reader.ended is not None:
                return
            yield _line_event(event, cursor)
        while (item := await reader.next()) is not None:
            if item.until != cursor.until:
                cursor = Cursor(cursor.until, item.until)
            assert item.event is not None
            yield _line_event(item.event, cursor, item.event_text)


async def _nothing() -> AsyncIterator[ServerSentEvent]:
    return
    yield ServerSentEvent()


async def _subscribe(hub: Hub, reader: Reader, topic: Topic, after: dict[UUID, int] | None) -> Subscription | None:
    """None when Postgres is away: the stream ends, and its reader comes again with its place."""
    try:
        start = await hub.join(reader, topic)
    except Unavailable:
        return None
    wanted = Subscription(topic, start, after)
    reader.subscriptions[topic] = wanted
    return wanted


def _run_event(event: Event, text: str | None = None) -> ServerSentEvent:
    data = text if text is not None else event_json(event)
    retry = RETRY_MS if event.seq == 1 else None
    return ServerSentEvent(data, id=str(event.seq), event=event.type, retry=retry, sep="\n")


def _line_event(event: Event, cursor: Cursor, text: str | None = None) -> ServerSentEvent:
    place = Cursor(cursor.since, cursor.until, (event.run_id, event.seq))
    return ServerSentEvent(text or event_json(event), id=place.encode(), event=event.type, sep="\n")


def _hub(call: Call) -> Hub:
    hub: Hub = call.request.app.state.hub
    return hub


def _reader(call: Call) -> Reader:
    who = call.principal
    return Reader(who.tenant, key_id=who.key_id, until=who.until, frames=False)


def _seq(request: Request, after: int) -> int:
    given = request.headers.get("last-event-id")
    if given is None:
        return after
    if not (given.isascii() and given.isdigit() and len(given) <= 16):
        raise _bad_id()
    return int(given)


def _cursor(request: Request) -> Cursor | None:
    given = request.headers.get("last-event-id")
    if not given:
        return None
    try:
        return Cursor.decode(given)
    except ValueError:
        raise _bad_id() from None


def _bad_id() -> Invalid:
    message = "is not an id that this stream gave out"
    return Invalid("the Last-Event-ID is not valid", errors=[{"pointer": "/header/last-event-id", "message": message}])


OPERATIONS = (
    Operation("GET", "/hitl/events", follow_line, EventView, query=LineQuery, tag="live", media_types=(EVENT_STREAM,)),
)
