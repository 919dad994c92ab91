"""Replicate's HTTP API on a local socket: its paths, headers, statuses and errors, in front of the stand-in."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.standins.replicate import Fault, Received, Replicate
from service.standins.replicate_models import Json, Model
from service.standins.server import CUT, serving

Handler = Callable[[Request, bytes], Awaitable[Response]]
_KNOWN: Final = frozenset({"version", "input", "webhook", "webhook_events_filter", "stream"})
_UNITS_S: Final = {"": 1, "s": 1, "m": 60, "h": 3600}


@asynccontextmanager
async def replicate_standin() -> AsyncIterator[Replicate]:
    """The stand-in, served at its `url`."""
    standin = Replicate()
    async with serving(_Api(standin).app()) as standin.url:
        try:
            yield standin
        finally:
            await standin.aclose()


class _Api:
    def __init__(self, standin: Replicate) -> None:
        self._standin = standin

    def app(self) -> Starlette:
        model, prediction = "/v1/models/{owner}/{name}", "/v1/predictions/{id}"
        routes = [
            self._route("GET", "model", model, self._model),
            self._route("GET", "model", model + "/versions/{version}", self._version),
            self._route("POST", "create", model + "/predictions", self._create),
            self._route("POST", "create", "/v1/predictions", self._create),
            self._route("GET", "get", prediction, self._get),
            self._route("POST", "cancel", prediction + "/cancel", self._cancel),
            self._route("GET", "model", "/v1/deployments/{owner}/{name}", self._deployment),
            self._route("POST", "create", "/v1/deployments/{owner}/{name}/predictions", self._create),
            self._route("GET", "secret", "/v1/webhooks/default/secret", self._secret),
            self._route("GET", "file", "/files/{id}/{file}", self._file),
        ]
        return Starlette(routes=routes)

    def _route(self, method: str, kind: str, path: str, handler: Handler) -> Route:
        async def endpoint(request: Request) -> Response:
            body = await request.body()
            headers = dict(request.headers)
            standin = self._standin
            standin.received.append(Received(kind, method, request.url.path, headers, body, time.monotonic()))
            if kind != "file" and headers.get("authorization") != f"Bearer {standin.token}":
                return _problem(401, "Unauthenticated", "You did not pass a valid authentication token")
            scripted = standin.faults.get(kind)
            if not scripted:
                return await handler(request, body)
            return await self._faulty(scripted.pop(0), handler, request, body)

        return Route(path, endpoint, methods=[method])

    async def _faulty(self, fault: Fault, handler: Handler, request: Request, body: bytes) -> Response:
        real = await handler(request, body) if fault.effect else None
        await asyncio.sleep(fault.after_s)
        if fault.status == 0 and real is not None:
            return real
        return _json(fault.status, fault.body, fault.headers) if fault.status else CUT

    async def _model(self, request: Request, body: bytes) -> Response:
        found = self._named(request)
        return _json(200, found.wire()) if found else _unknown()

    async def _version(self, request: Request, body: bytes) -> Response:
        found = self._named(request)
        known = found and found.version == request.path_params["version"]
        return _json(200, found.wire_version()) if found and known else _unknown()

    async def _deployment(self, request: Request, body: bytes) -> Response:
        name = "{owner}/{name}".format(**request.path_params)
        model = self._standin.models.get(self._standin.deployments.get(name, ""))
        if model is None:
            return _unknown()
        release = {"number": 1, "model": model.name, "version": model.version, "configuration": {"hardware": "cpu"}}
        owner, _, bare = name.partition("/")
        return _json(200, {"owner": owner, "name": bare, "current_release": release})

    async def _create(self, request: Request, body: bytes) -> Response:
        given = _parsed(body)
        model = self._wanted(request, given)
        if isinstance(model, Response):
            return model
        faults = [_fault("additional_property_not_allowed", f"Additional property {name} is not allowed")
                  for name in given if name not in _KNOWN]  # fmt: skip
        order = given.get("input")
        faults += model.faults(order) if isinstance(order, dict) else [_fault("required", "input is required")]
        lasts_s = _seconds(request.headers.get("cancel-after", ""))
        if lasts_s is not None and lasts_s < 5:
            faults.append(_fault("cancel_after", "Cancel-After must be at least 5 seconds"))
        if faults:
            return _invalid(faults)
        standin = self._standin
        events = tuple(given.get("webhook_events_filter") or ("start", "output", "logs", "completed"))
        made = standin.begin(model, given["input"], lasts_s, webhook=given.get("webhook"), events=events)
        answer = _json(201, made.wire())
        if standin.before_answer:
            standin.finish(made)
            async with asyncio.timeout(10):
                while not standin.delivered:
                    await asyncio.sleep(0.005)
        return answer

    def _wanted(self, request: Request, given: Json) -> Model | Response:
        """The model that is to run, by the address or by `version`."""
        standin = self._standin
        if request.url.path.startswith("/v1/deployments/"):
            deployed = standin.deployments.get("{owner}/{name}".format(**request.path_params), "")
            return standin.models.get(deployed) or _unknown()
        if "owner" in request.path_params:
            named = self._named(request)
            return named if named and named.official else _unknown()
        version = given.get("version")
        if not isinstance(version, str):
            return _invalid([_fault("required", "version is required")])
        for model in standin.models.values():
            if version in (model.version, f"{model.name}:{model.version}") or (
                version == model.name and model.official
            ):
                return model
        told = "The specified version does not exist (or perhaps you don't have permission to use it?)"
        return _problem(422, "Invalid version or not permitted", told)

    async def _get(self, request: Request, body: bytes) -> Response:
        made = self._standin.predictions.get(request.path_params["id"])
        return _json(200, made.wire()) if made else _unknown()

    async def _cancel(self, request: Request, body: bytes) -> Response:
        made = self._standin.predictions.get(request.path_params["id"])
        if made is None:
            return _unknown()
        self._standin.end(made, "canceled")
        return _json(200, made.wire())

    async def _secret(self, request: Request, body: bytes) -> Response:
        return _json(200, {"key": self._standin.secret})

    async def _file(self, request: Request, body: bytes) -> Response:
        known = request.path_params["id"] in self._standin.predictions
        return Response(self._standin.file, media_type="image/png") if known else _unknown()

    def _named(self, request: Request) -> Model | None:
        return self._standin.models.get("{owner}/{name}".format(**request.path_params))


def _parsed(body: bytes) -> Json:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(text: str) -> float | None:
    """`1h30m45s`, `90s`, `90`."""
    parts = re.findall(r"(\d+)([smh]?)", text)
    return float(sum(int(amount) * _UNITS_S[unit] for amount, unit in parts)) if parts else None


def _json(status: int, body: Any, headers: Any = None) -> Response:
    return Response(orjson.dumps(body), status, dict(headers or {}), media_type="application/json")


def _fault(kind: str, text: str) -> Json:
    return {"type": kind, "field": "", "description": text}


def _invalid(faults: list[Json]) -> Response:
    lines = "".join(
        f"- {f['field']}: {f['description']}\n" if f["field"] else f"- {f['description']}\n" for f in faults
    )
    body = {"detail": lines, "status": 422, "title": "Input validation failed", "invalid_fields": faults}
    return Response(orjson.dumps(body), 422, media_type="application/problem+json")


def _problem(status: int, title: str, detail: str) -> Response:
    body = {"title": title, "detail": detail, "status": status}
    return Response(orjson.dumps(body), status, media_type="application/problem+json")


def _unknown() -> Response:
    return _problem(404, "Not found", "The requested resource could not be found.")
