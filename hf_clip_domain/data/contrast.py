"""Contrast of grey and colour pictures: percentile windows and CLAHE, in numpy."""

from __future__ import annotations

import numpy as np

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


def stretch_window(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Stretch the brightness between two percentiles to the full range.

    Args:
        pixels: `(h, w, 3)` uint8.
        low, high: percentiles, 0 to 100.

    Returns:
        `(h, w, 3)` uint8; unchanged when the picture is flat.
    """
    dark, bright = np.percentile(pixels @ _LUMA, (low, high))
    if bright - dark < 1:
        return pixels
    return _to_bytes((pixels - np.float32(dark)) * np.float32(255 / (bright - dark)))


def equalise_locally(pixels: np.ndarray, clip: float, tiles: int) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation of the brightness (Zuiderveld, Graphics Gems IV, 1994).

    Each tile's histogram is clipped at `clip` times its mean height and the excess spread evenly; its cumulative sum
    maps brightness. Every pixel blends the maps of the four nearest tiles, so tiles leave no edges. Colours keep
    their differences to the brightness.

    Args:
        pixels: `(h, w, 3)` uint8.
        clip: 1 leaves nearly everything as it is, 2 is gentle, 4 strong.
        tiles: tiles along each side.

    Returns:
        `(h, w, 3)` uint8.
    """
    height, width = pixels.shape[:2]
    tiles = max(1, min(tiles, height // 8, width // 8))  # smaller tiles hold too few pixels for a histogram
    luma = np.clip(np.rint(pixels @ _LUMA), 0, 255).astype(np.uint8)  # (h, w)
    maps = _tile_maps(luma, clip, tiles)  # (tiles, tiles, 256)

    top, bottom, down = _neighbours(height, tiles)
    left, right, across = _neighbours(width, tiles)
    down, across = down[:, None], across[None, :]
    upper = maps[top[:, None], left, luma] * (1 - across) + maps[top[:, None], right, luma] * across
    lower = maps[bottom[:, None], left, luma] * (1 - across) + maps[bottom[:, None], right, luma] * across
    equalised = upper * (1 - down) + lower * down  # (h, w)
    return _to_bytes(pixels + (equalised - luma)[..., None])


def _tile_maps(luma: np.ndarray, clip: float, tiles: int) -> np.ndarray:
    """Brightness map of every tile: `(tiles, tiles, 256)` float32."""
    height, width = luma.shape
    rows = np.arange(height) * tiles // height
    columns = np.arange(width) * tiles // width
    tile = rows[:, None] * tiles + columns  # (h, w): number of the pixel's tile
    counts = np.bincount((tile * 256 + luma).ravel(), minlength=tiles * tiles * 256)
    counts = counts.reshape(tiles, tiles, 256).astype(np.float32)
    size = counts.sum(-1, keepdims=True)
    limit = clip * size / 256
    excess = np.clip(counts - limit, 0, None).sum(-1, keepdims=True)
    counts = np.minimum(counts, limit) + excess / 256
    return (counts.cumsum(-1) - counts / 2) * (255 / size)  # the middle of each step: a flat histogram maps to itself


def _neighbours(length: int, tiles: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each pixel along one side: the tiles whose centres lie before and after it, and the share of the latter."""
    position = (np.arange(length, dtype=np.float32) + 0.5) * tiles / length - 0.5
    before = np.floor(position)
    share = position - before
    return (
        np.clip(before, 0, tiles - 1).astype(np.intp),
        np.clip(before + 1, 0, tiles - 1).astype(np.intp),
        share.astype(np.float32),
    )


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
