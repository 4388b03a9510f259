"""The gallery of a report as HTML: every case with its own picture and the one it was confused with."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from hf_clip_domain.evaluation.html_tables import Picture, picture_tag

_KINDS = {
    "best": ("Best", "Right and first, by the largest lead over the strongest wrong candidate."),
    "worst": ("Worst", "The right answer stands furthest back."),
    "confused": ("Most confused", "The wrong candidate leads by most: sure of itself, and wrong."),
}
_DIRECTIONS = {
    "image_to_text": ("Image → text", "A picture asks for its caption."),
    "text_to_image": ("Text → image", "A caption asks for its picture."),
}


def gallery(cases: Sequence[dict[str, Any]], picture: Picture) -> str:
    """All cases (`Case` as dictionaries), by direction and kind; nothing without any."""
    parts = []
    for direction, (title, meaning) in _DIRECTIONS.items():
        own = [case for case in cases if case["direction"] == direction]
        if own:
            parts.append(f'<h3>{title} <span class="soft">{meaning}</span></h3>')
        for kind, (name, explained) in _KINDS.items():
            shown = [_case(case, picture) for case in own if case["kind"] == kind]
            if shown:
                parts.append(f'<h4>{name} <span class="soft">{explained}</span></h4>')
                parts.append(f'<div class="cases">{"".join(shown)}</div>')
    return "".join(parts)


def _case(case: dict[str, Any], picture: Picture) -> str:
    before = ""
    if case["rank_before"] is not None and case["rank_before"] != case["rank"]:
        before = f'<span class="soft">, before: {case["rank_before"]:,}</span>'
    first = case["rank"] == 1
    rank = f'<b>Rank {case["rank"]:,}</b> <span class="soft">of {case["candidates"]:,}</span>{before}'
    other = "runner-up" if first else "preferred"
    own = picture_tag(picture(case["row"]), case["text"])
    wrong = picture_tag(picture(case["other_row"]), case["other_text"])
    return (
        f'<article class="{case["kind"]}"><header>{rank}</header><div class="pair">'
        f'<figure class="own">{own}<figcaption><span class="role">right <b>{case["score"]:.3f}</b></span>'
        f'<q dir="auto">{escape(case["text"])}</q></figcaption></figure>'
        f'<figure class="other">{wrong}<figcaption><span class="role">{other} <b>{case["other_score"]:.3f}</b></span>'
        f'<q dir="auto">{escape(case["other_text"])}</q></figcaption></figure></div></article>'
    )
