"""A sheet that shows what the model gets: each pair as it came, as evaluated, and as augmented in training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from hf_clip_domain.data.images import decode_image
from hf_clip_domain.data.text import clean_caption
from hf_clip_domain.data.transforms import ImageTransform
from hf_clip_domain.domains import Domain

_MARGIN = 10
_BACKGROUND, _INK, _FAINT, _CHANGED = "#e8ecf0", "#101418", "#5a6470", "#1250a0"
_LINES = 5  # of each caption; the rest is cut with an ellipsis
_FONT_SIZE = 13
_UNCHANGED = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # mean and std that leave 0..1 as it is, to be shown


def draw_contact_sheet(
    rows: Iterable[dict[str, Any]], domain: Domain, *, size: int = 224, columns: int = 2, seed: int = 0
) -> Image.Image:
    """Pairs in `columns`, each with three squares of `size` pixels: raw, evaluation view, one training view.

    Beneath stand the raw and the cleaned caption (the latter only where they differ), and above them the changes that
    the caption allows.

    Args:
        rows: canonical rows (`image`, `text`); the first caption is used.
        domain: whose treatment is shown.

    Raises:
        ClipDomainError: a picture cannot be read.
    """
    transform = ImageTransform(domain, size, *_UNCHANGED)
    cards = [_card(row, domain, transform, np.random.default_rng([seed, 0, i])) for i, row in enumerate(rows)]
    columns = max(1, min(columns, len(cards)))
    lines = [cards[start : start + columns] for start in range(0, len(cards), columns)]
    heights = [max(card.height for card in line) for line in lines]
    width = columns * (3 * size + 3 * _MARGIN) + _MARGIN
    header = f"{domain.title or domain.name}: raw | evaluation | one training view"
    top = _MARGIN * 2 + _FONT_SIZE
    sheet = Image.new("RGB", (width, top + sum(heights) + _MARGIN * (len(lines) + 1)), _BACKGROUND)
    ImageDraw.Draw(sheet).text((_MARGIN, _MARGIN), header, fill=_INK, font=_font())
    y = top + _MARGIN
    for line, height in zip(lines, heights, strict=True):
        for column, card in enumerate(line):
            sheet.paste(card, (_MARGIN + column * (3 * size + 3 * _MARGIN), y))
        y += height + _MARGIN
    return sheet


def save_contact_sheet(rows: Iterable[dict[str, Any]], domain: Domain, file: str | Path, **options: Any) -> Path:
    """`draw_contact_sheet` into a PNG file; its folder is made if need be."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    draw_contact_sheet(rows, domain, **options).save(file, format="PNG")
    return file


def _card(row: dict[str, Any], domain: Domain, transform: ImageTransform, rng: np.random.Generator) -> Image.Image:
    size = transform.size
    raw_caption = " ".join(row["text"][0].split())
    caption = clean_caption(row["text"][0], domain)
    views = [
        _fit(decode_image(row["image"]), size),
        _to_picture(transform.evaluation(row["image"])),
        _to_picture(transform.training(row["image"], rng, caption=caption)),
    ]
    width = 3 * size + 2 * _MARGIN
    texts = [(_FAINT, _allowed(domain, caption, row)), (_INK, raw_caption)]
    if caption != raw_caption:
        texts.append((_CHANGED, f"-> {caption}"))
    lines = [(colour, line) for colour, text in texts for line in _wrap(text, width)]
    step = _FONT_SIZE + 4
    card = Image.new("RGB", (width, size + _MARGIN + step * len(lines)), _BACKGROUND)
    for index, view in enumerate(views):
        card.paste(view, (index * (size + _MARGIN), 0))
    draw = ImageDraw.Draw(card)
    for index, (colour, line) in enumerate(lines):
        draw.text((0, size + _MARGIN + index * step), line, fill=colour, font=_font())
    return card


def _allowed(domain: Domain, caption: str, row: dict[str, Any]) -> str:
    allowed = [
        "mirroring" if domain.augment.may_mirror(caption) else "no mirroring",
        "turns" if domain.augment.may_turn(caption) else "no turns",
    ]
    others = f"; one of {len(row['text'])} captions" if len(row["text"]) > 1 else ""
    return f"this caption allows {', '.join(allowed)}{others}"


def _fit(picture: Image.Image, size: int) -> Image.Image:
    """The whole picture in the middle of a square of the sheet's colour."""
    scale = size / max(picture.size)
    small = picture.resize(tuple(max(1, round(side * scale)) for side in picture.size), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size, size), _BACKGROUND)
    square.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    return square


def _to_picture(pixels: torch.Tensor) -> Image.Image:
    """`(3, s, s)` in 0..1 to a picture."""
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=_FONT_SIZE)


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` pixels, `_LINES` of them."""
    font = _font()
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    lines.append(line)
    if len(lines) > _LINES:
        lines = lines[: _LINES - 1] + [lines[_LINES - 1] + " ..."]
    return lines
