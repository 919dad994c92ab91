"""Routes of output files: streamed, with the tenant's rights, in whole or in part."""

from starlette.responses import Response

from service.api.models import FileContent
from service.api.operation import Call, Operation
from service.border.files import send_file


async def get_file(call: Call) -> Response:
    """An output file. It never changes, so it may be kept; one range may be asked for."""
    return await send_file(call.services, call.principal.tenant, call.id("file_id"), call.request)


OPERATIONS = (
    Operation("GET", "/hitl/files/{file_id}", get_file, FileContent, problems=(404, 416), media_types=("*/*",)),
)
