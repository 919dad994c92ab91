"""Errors as `application/problem+json` (RFC 9457): the one place where codes meet HTTP."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.api.operation import json_response, note
from service.api.views import problem_extra
from service.errors import HitlError, RangeNotSatisfiable, RequestTimeout, Unauthenticated

PROBLEM_JSON = "application/problem+json"
_CODES = {404: "not_found", 405: "method_not_allowed", 400: "bad_request"}


def problem(error: HitlError, request: Request) -> dict[str, Any]:
    body: dict[str, Any] = _base(request, error.status, error.code, error.title, error.detail)
    if error.errors or error.status == 422:
        body["errors"] = [dict(entry) for entry in error.errors]
    return {**body, **problem_extra(error.extra)}


async def on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HitlError)
    note(request, code=error.code)
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    if isinstance(error, RequestTimeout):
        headers["Connection"] = "close"  # the rest of the body is not waited for
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="hitl"'
    return json_response(problem(error, request), error.status, headers, PROBLEM_JSON)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "http_error")
    body = _base(request, error.status_code, code, error.detail, error.detail)
    return json_response(body, error.status_code, error.headers, PROBLEM_JSON)


def internal(request: Request) -> Response:
    """A fault of ours: no text of it leaves the house."""
    body = _base(request, 500, "internal_error", "Internal error", "the service met a fault of its own")
    return json_response(body, 500, None, PROBLEM_JSON)


def _base(request: Request, status: int, code: str, title: str, detail: str) -> dict[str, Any]:
    return {
        "type": f"urn:hitl:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "instance": f"urn:hitl:request:{request.state.request_id}",
    }
