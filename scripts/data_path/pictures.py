"""Files to read: synthetic photographs and charts of a camera's and a screen's sizes, or those of a folder."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_ORIENTATION, _UPRIGHT_CAMERA = 0x0112, 6


def synthetic(folder: Path, count: int, scale: float) -> dict[str, list[Path]]:
    """Write `count` pictures of each kind into `folder`; `scale` shrinks them all. By kind, where they are."""
    kinds = {
        "photograph 2000 x 1500": (_photograph, (2000, 1500), {}),
        "photograph 4000 x 3000": (_photograph, (4000, 3000), {}),
        "photograph 3024 x 4032, turned by EXIF": (_photograph, (4032, 3024), {"turned": True}),
        "grey photograph 2003 x 1501": (_photograph, (2003, 1501), {"grey": True}),
        "small photograph 640 x 480": (_photograph, (640, 480), {}),
        "small photograph 288 x 200": (_photograph, (288, 200), {}),
        "small grey photograph 200 x 200": (_photograph, (200, 200), {"grey": True}),
        "chart, PNG, 1200 x 900": (_chart, (1200, 900), {}),
        "chart, PNG, 2400 x 1800": (_chart, (2400, 1800), {}),
    }
    files = {}
    for kind, (draw, size, options) in kinds.items():
        width, height = (max(8, round(side * scale)) for side in size)
        stem = kind.replace(" ", "-").replace(",", "")
        files[kind] = [
            draw(folder / f"{stem}-{number}", width, height, np.random.default_rng(number), **options)
            for number in range(count)
        ]
    return files


def found(folder: Path, count: int) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Of each kind of picture under `folder` up to `count`, evenly spaced; and the sizes that were found of each."""
    kinds: dict[str, list[tuple[Path, tuple[int, int]]]] = defaultdict(list)
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES):
        with Image.open(path) as image:
            large = "above" if image.width * image.height > 1_000_000 else "up to"
            colour = "grey " if image.mode in ("1", "L") or image.mode.startswith("I") else ""
            kinds[f"{colour}{image.format}, {large} 1 megapixel"].append((path, image.size))
    files, sizes = {}, {}
    for kind, members in sorted(kinds.items()):
        members.sort(key=lambda member: member[1][0] * member[1][1])
        sizes[kind] = f"{len(members):,} files, " + " to ".join("{} x {}".format(*members[at][1]) for at in (0, -1))
        places = np.linspace(0, len(members) - 1, min(count, len(members))).round().astype(int)
        files[kind] = [members[place][0] for place in places]
    return files, sizes


def _photograph(
    path: Path, width: int, height: int, rng: np.random.Generator, *, grey: bool = False, turned: bool = False
) -> Path:
    """Lit areas with sharp outlines and their own textures, and a sensor's grain; 0.2 to 0.3 bytes a pixel as JPEG."""
    areas = _noise(rng, width, height, 64, 0.5)
    areas = np.digitize(areas, np.quantile(areas, (0.2, 0.4, 0.6, 0.8)))  # (h, w) of 0 to 4
    strength = rng.uniform(8, 45, 5).astype(np.float32)[areas]
    light = 1 + 0.1 * _noise(rng, width, height, 4, 0.5)
    brightness = strength * _noise(rng, width, height, 2048, 0.85) + rng.normal(0, 3.5, (height, width))
    colours = rng.uniform(40, 215, (5, 3)).astype(np.float32)[areas]  # (h, w, 3)
    pixels = colours * light[..., None] + brightness.astype(np.float32)[..., None]
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    exif = Image.Exif()
    if turned:
        exif[_ORIENTATION] = _UPRIGHT_CAMERA
    path = path.with_suffix(".jpg")
    (picture.convert("L") if grey else picture).save(path, quality=90, exif=exif)
    return path


def _noise(rng: np.random.Generator, width: int, height: int, finest: int, fall: float) -> np.ndarray:
    """Noise of octaves down to `finest` waves along the width, each `fall` of the one before: `(h, w)`, deviation 1."""
    waves, weight = 2, 1.0
    grid = rng.standard_normal((2, 2)).astype(np.float32)
    while waves < min(finest, width):
        waves, weight = 2 * waves, weight * fall
        size = (waves, max(2, waves * height // width))
        grid = np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC))
        grid = grid + weight * rng.standard_normal(grid.shape).astype(np.float32)
    return np.asarray(Image.fromarray(grid / grid.std()).resize((width, height), Image.Resampling.BICUBIC))


def _chart(path: Path, width: int, height: int, rng: np.random.Generator) -> Path:
    """Lines over a grid with labels, on white."""
    picture = Image.new("RGB", (width, height), "white")
    draw, line = ImageDraw.Draw(picture), max(1, width // 600)
    for place in np.linspace(0.1, 0.9, 9):
        draw.line((0.1 * width, place * height, 0.9 * width, place * height), fill=(210, 210, 210), width=line)
        draw.text((0.03 * width, place * height), f"{100 * place:.1f}", fill="black", font_size=14 * line)
    for _ in range(4):
        heights = height * np.clip(0.5 + 0.03 * rng.standard_normal(100).cumsum(), 0.1, 0.9)
        points = list(zip(np.linspace(0.1 * width, 0.9 * width, 100), heights, strict=True))
        draw.line(points, fill=tuple(rng.integers(0, 200, 3).tolist()), width=2 * line)
    path = path.with_suffix(".png")
    picture.save(path)
    return path
