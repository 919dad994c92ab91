"""The route table: one entry an operation, one Starlette route a path, so that 405 names all its methods."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api import approvals, links, operations, reviewing, runs
from service.api.operation import Operation, serve

TABLE: tuple[Operation, ...] = (
    *runs.OPERATIONS,
    *approvals.OPERATIONS,
    *reviewing.OPERATIONS,
    *links.OPERATIONS,
    *operations.OPERATIONS,
)


def routes() -> list[Route]:
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in TABLE:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    return [*(_route(path, methods) for path, methods in by_path.items()), *links.PAGES]


def _route(path: str, methods: dict[str, Operation]) -> Route:
    async def endpoint(request: Request) -> Response:
        request.state.route = path
        method = "GET" if request.method == "HEAD" and "GET" in methods else request.method
        if method not in methods:
            raise HTTPException(405, "Method not allowed", {"Allow": ", ".join(sorted(methods))})
        return await serve(methods[method], request)

    return Route(path, endpoint, methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
