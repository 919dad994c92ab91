"""An output file on its way out: streamed, in whole or in part, and never run by a browser."""

from typing import Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.commands.context import Services
from service.commands.files import find_file, read_file
from service.domain.file import StoredFile, Unsatisfiable, asked_range, disposition
from service.errors import RangeNotSatisfiable

_CSP: Final = "sandbox; default-src 'none'"


async def send_file(services: Services, tenant: str, file_id: UUID, asked: Request) -> Response:
    """The file, or the one range of it that is asked for. Raises `NotFound`, `RangeNotSatisfiable`."""
    file = await find_file(services, tenant, file_id)
    request = asked.headers
    headers = _headers(file)
    if file.sha256 in request.get("if-none-match", ""):
        return Response(status_code=304, headers={k: v for k, v in headers.items() if k != "Content-Disposition"})
    wanted = request.get("range") if request.get("if-range", headers["ETag"]) == headers["ETag"] else None
    try:
        part = asked_range(wanted, file.size)
    except Unsatisfiable:
        raise RangeNotSatisfiable(file.size) from None
    start, end = part or (0, file.size)
    headers["Content-Length"] = str(end - start)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    status = 200 if part is None else 206
    body = await read_file(services, file, start, end)
    if asked.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=file.media_type)
    return StreamingResponse(body, status, headers, media_type=file.media_type)


def _headers(file: StoredFile) -> dict[str, str]:
    return {
        "ETag": f'"{file.sha256}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Vary": "Authorization, Cookie",
        "Content-Disposition": disposition(file),
        "Content-Security-Policy": _CSP,
    }
