"""The plain ground that charts and drawings stand on, looked for along the edges of a picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from hf_clip_domain.data.images import Decoded

# A picture's edges are judged at this many pixels a side.
_SIDE = 64
# Colours within such a step count as one.
_STEP = 16
_LEVELS = 256 // _STEP


def ground_share(decoded: Decoded) -> float:
    """The share of the commonest colour along the edges, 0 to 1.

    Only the edges are resized, which is a quarter of the work for the whole picture.
    """
    picture, (left, upper, right, lower) = decoded
    depth = _depth(_SIDE)
    across, down = (right - left) * depth / _SIDE, (lower - upper) * depth / _SIDE
    strips = [
        picture.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=2.0).convert("RGB")
        for size, box in (
            ((_SIDE, depth), (left, upper, right, upper + down)),
            ((_SIDE, depth), (left, lower - down, right, lower)),
            ((depth, _SIDE), (left, upper, left + across, lower)),
            ((depth, _SIDE), (right - across, upper, right, lower)),
        )
    ]
    return _commonest(_joined(np.asarray(strip) for strip in strips))[1]


def ground_colour(pixels: np.ndarray, rows: bool, columns: bool) -> np.ndarray:
    """The commonest colour `(3,)` uint8 of `(h, w, 3)` along the horizontal (`rows`) and vertical (`columns`) edges.

    Of a chart it is the paper, whatever label or frame touches the edge; of a photograph without any common colour,
    the median.
    """
    depth = _depth(min(pixels.shape[:2]))
    strips = [pixels[:depth], pixels[-depth:]] if rows else []
    strips += [pixels[:, :depth], pixels[:, -depth:]] if columns else []
    edge = _joined(strips)
    common, share = _commonest(edge)
    return np.median(common if share > 0.3 else edge, axis=0).round().astype(np.uint8)


def _depth(side: int) -> int:
    return 2 + side // 32  # deeper than a thin frame, blurred by the resize


def _joined(strips) -> np.ndarray:
    return np.concatenate([strip.reshape(-1, 3) for strip in strips])  # (k, 3)


def _commonest(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """Those of `(k, 3)` pixels that have the commonest colour, and their share."""
    bins = (pixels // _STEP).astype(np.intp) @ np.array([1, _LEVELS, _LEVELS**2])
    counts = np.bincount(bins)
    common = counts.argmax()
    return pixels[bins == common], float(counts[common] / len(bins))
