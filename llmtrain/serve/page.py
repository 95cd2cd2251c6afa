"""The page at `/`: files of this package, and headers that let it reach nothing else."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from llmtrain.untrusted import read_bytes

_STATIC = Path(__file__).parent / "static"
_LONGEST_BYTES = 1 << 18
PAGE_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
# What a model writes is shown as text; if a fault ever made it more, this keeps it from acting.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


async def page_response(request: Request) -> Response:
    """Answer with a file of the page."""
    name, kind = PAGE_FILES[request.url.path]
    content = read_bytes(_STATIC / name, _LONGEST_BYTES)
    return Response(content, headers=_HEADERS, media_type=kind)
