"""Routes of output files: streamed, with the tenant's rights, in whole or in part."""

from typing import Final

from starlette.responses import Response, StreamingResponse

from service.api.models import FileContent
from service.api.operation import Call, Operation
from service.commands.files import find_file, read_file
from service.domain.file import StoredFile, Unsatisfiable, asked_range, disposition
from service.errors import RangeNotSatisfiable

_CSP: Final = "sandbox; default-src 'none'"


async def get_file(call: Call) -> Response:
    """An output file. It never changes, so it may be kept; one range may be asked for."""
    file = await find_file(call.services, call.principal.tenant, call.id("file_id"))
    request = call.request.headers
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
    body = await read_file(call.services, file, start, end)
    if call.request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=file.media_type)
    return StreamingResponse(body, status, headers, media_type=file.media_type)


def _headers(file: StoredFile) -> dict[str, str]:
    return {
        "ETag": f'"{file.sha256}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Vary": "Authorization",
        "Content-Disposition": disposition(file),
        "Content-Security-Policy": _CSP,
    }


OPERATIONS = (
    Operation("GET", "/hitl/files/{file_id}", get_file, FileContent, problems=(404, 416), media_types=("*/*",)),
)
