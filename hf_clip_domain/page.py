"""What every HTML page of the package has in common: one file, no script, nothing from elsewhere, light and dark."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

# The colours c0 to c3 belong to the curves of `charts`.
_STYLE = """
:root{color-scheme:light dark;--ink:#1f2933;--soft:#5b6770;--back:#f6f7f9;--card:#fff;--line:#dfe3e8}
:root{--c0:#2563a8;--c1:#c0392f;--c2:#1a8a50;--c3:#a8660a}
@media(prefers-color-scheme:dark){:root{--ink:#e8ecef;--soft:#a0abb4;--back:#14181c;--card:#1e242a;--line:#343c44;
--c0:#6ab0f3;--c1:#ff8a80;--c2:#63d297;--c3:#f0b450}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1360px;padding:1rem;background:var(--back);color:var(--ink);
font:16px/1.4 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.3rem;margin:0 0 .3rem}h2{font-size:1rem}p{margin:.3rem 0}.soft,li,dt{color:var(--soft)}b{color:var(--ink)}
figure,section{background:var(--card);border-radius:.5rem;padding:.6rem .8rem}
figure{margin:0}figcaption{font-weight:600}
ul{list-style:none;margin:.2rem 0;padding:0;display:flex;flex-wrap:wrap;gap:.1rem 1rem;font-size:.85rem}
figure li::before{content:"";display:inline-block;width:.8em;height:.25em;margin:0 .35em .25em 0;background:var(--c)}
svg{display:block;width:100%;height:auto;color:var(--soft)}polyline,circle{color:var(--c)}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}
""".strip()


def whole_page(title: str, body: str, *, style: str = "", head: str = "") -> str:
    """A page around `body`, which is HTML; `title` is text.

    Pictures stand in the page as data. Nothing else may act or be fetched, even if something unescaped should slip in.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"{head}<title>{escape(title)}</title>"
        f"<style>{_STYLE}\n{style}</style></head>\n<body>{body}</body></html>\n"
    )


def save_page(html: str, path: str | Path) -> Path:
    """Write a page, whole or not at all; returns the file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(html, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
