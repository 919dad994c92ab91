"""Styles and scripts of the console, all from the package: named by their content, so they may be kept for ever."""

import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

PATH: Final = "/static/{name}"


@dataclass(frozen=True, slots=True)
class Asset:
    url: str
    body: bytes
    media_type: str


@cache
def assets() -> Mapping[str, Asset]:
    """Each file of `static` by its own name; read once a process."""
    found = {}
    for file in (resources.files("service.console") / "static").iterdir():
        body = file.read_bytes()
        stem, _, ending = file.name.rpartition(".")
        kind = mimetypes.guess_type(file.name)[0] or "text/plain"
        url = f"/static/{stem}.{sha256(body).hexdigest()[:12]}.{ending}"
        found[file.name] = Asset(url, body, kind)
    return found


def url_of(name: str) -> str:
    """Where a file of `static` is served, for templates."""
    return assets()[name].url


async def serve(request: Request) -> Response:
    request.state.route = PATH
    wanted = f"/static/{request.path_params['name']}"
    asset = next((asset for asset in assets().values() if asset.url == wanted), None)
    if asset is None:
        raise HTTPException(404, "Not Found")
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(asset.body, headers=headers, media_type=asset.media_type)
