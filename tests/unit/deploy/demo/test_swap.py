"""The picture of a swap."""

from __future__ import annotations

from deploy.demo.swap import PICTURE, SESSION, draw


def test_the_picture_of_a_swap_fetches_nothing() -> None:
    """The drawn picture and the kept picture fetch nothing, and the kept picture shows every command."""
    drawn, kept = draw("\x1b[32m✓\x1b[0m loaded\n"), PICTURE.read_text()
    assert "loaded" in drawn
    for picture in (drawn, kept):
        assert "font-face" not in picture
        assert "url(http" not in picture
    words = kept.replace("&#160;", " ")
    assert all(f">{typed.command}<" in words for typed in SESSION)
