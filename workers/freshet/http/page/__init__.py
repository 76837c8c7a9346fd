"""The page: be a visitor, and watch your list move. Plain files, shipped as package data."""

from __future__ import annotations

from importlib.resources import files

PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
}
_FILES = (
    ("/", "text/html", "index.html"),
    ("/page.css", "text/css", "page.css"),
    ("/page.js", "text/javascript", "page.js"),
)


def page_files() -> list[tuple[str, str, bytes]]:
    """Address, media type and content of each file."""
    return [(address, media_type, (files(__name__) / name).read_bytes()) for address, media_type, name in _FILES]
