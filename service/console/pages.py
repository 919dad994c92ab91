"""The pages of the console, one entry each; the navigation is made of those that have a name."""

from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from service.console import approval, assets, deciding, inbox, operations, rendering, run, runs, signin
from service.console.page import Page, nowhere, serve

PAGES: Final[tuple[Page, ...]] = (
    *inbox.PAGES, *runs.PAGES, *run.PAGES, *operations.PAGES, *approval.PAGES, *deciding.PAGES, *signin.PAGES
)  # fmt: skip


def routes() -> list[BaseRoute]:
    rendering.environment().globals["navigation"] = [(page.path, page.name) for page in PAGES if page.name]
    return [*(_route(page) for page in PAGES), Route(assets.PATH, assets.serve, methods=["GET", "HEAD"])]


def lost(request: Request) -> Response | None:
    """A page for a person who followed a wrong link; None: it is a program, or asks for the API."""
    wants_page = "text/html" in request.headers.get("accept", "") and request.method in ("GET", "HEAD")
    return nowhere(request) if wants_page and not request.url.path.startswith("/hitl/") else None


def _route(page: Page) -> Route:
    async def endpoint(request: Request) -> Response:
        request.state.route = page.path
        allowed = {*page.handlers, *({"HEAD"} if "GET" in page.handlers else ())}
        if request.method not in allowed:
            raise HTTPException(405, "Method not allowed", {"Allow": ", ".join(sorted(allowed))})
        return await serve(page, request)

    return Route(page.path, endpoint, methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
