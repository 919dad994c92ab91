"""The route table: one entry an operation, one Starlette route a path, so that 405 names all its methods."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from service.api import approvals, files, links, messages, operations, reviewing, runs, sockets, streams, webhooks
from service.api.operation import Operation, serve

TABLE: tuple[Operation, ...] = (
    *runs.OPERATIONS,
    *approvals.OPERATIONS,
    *reviewing.OPERATIONS,
    *links.OPERATIONS,
    *files.OPERATIONS,
    *operations.OPERATIONS,
    *messages.OPERATIONS,
    *sockets.OPERATIONS,
    *streams.OPERATIONS,
    *webhooks.OPERATIONS,
)


def routes() -> list[BaseRoute]:
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in TABLE:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    served = [_route(path, methods) for path, methods in by_path.items()]
    return [*served, *links.PAGES, WebSocketRoute("/hitl/ws", sockets.endpoint)]


def _route(path: str, methods: dict[str, Operation]) -> Route:
    async def endpoint(request: Request) -> Response:
        request.state.route = path
        method = "GET" if request.method == "HEAD" and "GET" in methods else request.method
        if method not in methods:
            raise HTTPException(405, "Method not allowed", {"Allow": ", ".join(sorted(methods))})
        return await serve(methods[method], request)

    return Route(path, endpoint, methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
