"""One entry of the route table: what it takes, who may, what it answers; and the pipeline that serves it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from service.api.body import read_answer, read_bytes, read_json
from service.api.models import NoQuery
from service.commands import principals
from service.commands.context import Services
from service.domain.ids import parse_id
from service.domain.principal import Permission, Principal, Proof, demand, reserved
from service.errors import Forbidden, Invalid, NotFound, Unauthenticated

DEV: Final = "dev"


@dataclass(frozen=True, slots=True)
class Call:
    """One request, unpacked and authenticated."""

    services: Services
    principal: Principal
    request: Request
    path: Mapping[str, str]
    query: Any
    body: Any
    raw_body: Any

    def id(self, name: str) -> Any:
        """A UUID of the path. What is none was never given out: `NotFound`."""
        value = parse_id(self.path[name])
        if value is None:
            raise NotFound(f"no such {name.removesuffix('_id')}")
        return value


@dataclass(frozen=True, slots=True)
class Reply:
    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Call], Awaitable[Reply | Response]]


@dataclass(frozen=True, slots=True)
class Operation:
    """`permission` None means that no key is needed. `body_required` false: neither body nor content type.

    `any_body`: JSON or text, as it comes. `signed_body`: the bytes, for the handler to check before it reads them.
    """

    method: str
    path: str
    handler: Handler
    answer: type[BaseModel]
    permission: Permission | None = Permission.READ
    status: int = 200
    query: type[BaseModel] = NoQuery
    body: type[BaseModel] | None = None
    body_required: bool = True
    any_body: bool = False
    signed_body: bool = False
    problems: tuple[int, ...] = ()
    tag: str = "runs"
    media_types: tuple[str, ...] = ("application/json",)


async def serve(operation: Operation, request: Request) -> Response:
    """Authenticate, unpack, call, pack. Refusals are raised as `HitlError` and mapped by the app."""
    services: Services = request.app.state.services
    principal = await authenticate(request, services, operation.permission)
    _refuse_nul(request)
    query = _validated(operation.query, dict(request.query_params), "query")
    raw_body = await _raw_body(operation, request)
    body = _body(operation, raw_body)
    call = Call(services, principal, request, request.path_params, query, body, raw_body)
    reply = await operation.handler(call)
    if isinstance(reply, Response):  # a stream
        return reply
    return json_response(reply.body, reply.status if reply.status != 200 else operation.status, reply.headers)


def _refuse_nul(request: Request) -> None:
    """Postgres cannot hold NUL: a path with one names nothing, a query with one is refused."""
    if any("\x00" in part for part in request.path_params.values()):
        raise NotFound
    names = [name for name, value in request.query_params.multi_items() if "\x00" in value]
    if names:
        errors = [{"pointer": f"/query/{name}", "message": "must not hold NUL"} for name in names]
        raise Invalid("the query is not valid", errors=errors)


def json_response(
    body: Any, status: int, headers: Mapping[str, str] | None = None, media_type: str = "application/json"
) -> Response:
    return Response(orjson.dumps(body), status, dict(headers or {}), media_type=media_type)


async def authenticate(request: HTTPConnection, services: Services, permission: Permission | None) -> Principal:
    """Who asks, if they may. With auth off it is `dev`, who may everything in the tenant `default`."""
    if not request.app.state.auth_required:
        return Principal(_actor(request) or DEV, "default", "admin", shown=Proof("off"))
    if permission is None:
        return Principal("anonymous", "", "submitter")
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthenticated("send Authorization: Bearer <key>")
    principal = await principals.authenticate(services, key.strip())
    demand(principal, permission)
    if principal.role == "service" and (actor := _actor(request)):
        return replace(principal, subject=actor, shown=Proof("actor", principal.proof.credential))
    return principal


def _actor(request: HTTPConnection) -> str:
    """Whom the caller acts for; asked only where the caller may say so. Raises `Forbidden`."""
    actor = request.headers.get("x-hitl-actor", "").strip()[:200]
    if reserved(actor):
        raise Forbidden("actor names that begin with system: or provider: are the service's own")
    return actor


async def _raw_body(operation: Operation, request: Request) -> Any:
    if operation.signed_body:
        return await read_bytes(request)
    if operation.any_body:
        return await read_answer(request)
    return await read_json(request) if operation.body else None


def _body(operation: Operation, raw: Any) -> Any:
    if operation.body is None:
        return None
    if raw is None:
        if operation.body_required:
            raise Invalid("the request needs a body", errors=[{"pointer": "", "message": "a JSON body is required"}])
        raw = {}
    return _validated(operation.body, raw, "body")


def _validated(model: type[BaseModel], value: Any, part: str) -> BaseModel:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise Invalid(f"the {part} is not valid", errors=pointers(error, part)) from None


def pointers(error: ValidationError, part: str = "body") -> list[dict[str, str]]:
    """Where and what, without the values that were given: they may be secret."""
    prefix = "" if part == "body" else f"/{part}"
    return [
        {
            "pointer": prefix + "".join("/" + str(at).replace("~", "~0").replace("/", "~1") for at in e["loc"]),
            "message": e["msg"].removeprefix("Value error, "),
        }
        for e in error.errors(include_url=False, include_input=False, include_context=False)
    ]
