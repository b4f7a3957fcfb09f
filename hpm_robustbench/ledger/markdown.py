"""Text for a page in Markdown, in which it is nothing but text. No torch."""

from __future__ import annotations

import html

_MARKUP = str.maketrans({character: f"&#{ord(character)};" for character in "|`[]*_"})


def cell(text: object) -> str:
    """One line for a table in Markdown: no HTML, no link, no code, no column more."""
    plain = " ".join(str(text).replace("<br>", " ").split())
    return html.escape(plain).translate(_MARKUP)
