"""How sharp, noisy, bright and contrasty a picture is as the model sees it: four numbers, nothing of what it shows.

Blur and noise move embeddings little compared with how far two textbook chapters lie apart, and much in these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

QUALITIES = ("brightness", "contrast", "sharpness", "noise")
# Of a picture without any detail.
_LEAST = 1e-4
# A grey level or so: what rounding leaves in an empty background is no noise.
_LEAST_NOISE = 1e-2


def quality(pixels: np.ndarray) -> np.ndarray:
    """Of a prepared picture `(3, h, w)`: `(4,)` float32, in the order of `QUALITIES`.

    Brightness and contrast are mean and standard deviation of the model's input; sharpness the logarithm of its mean
    absolute Laplacian, by contrast; noise the logarithm of the median response to the mask of Immerkaer 1996, "Fast
    Noise Variance Estimation", which edges and slopes hardly touch.
    """
    grey = np.asarray(pixels, dtype=np.float32).mean(axis=0)  # (h, w)
    contrast = float(grey.std())
    across = grey[:, 2:] - 2 * grey[:, 1:-1] + grey[:, :-2]  # (h, w - 2)
    down = grey[2:] - 2 * grey[1:-1] + grey[:-2]  # (h - 2, w)
    detail = float(np.abs(across[1:-1] + down[:, 1:-1]).mean())
    both = np.abs(across[2:] - 2 * across[1:-1] + across[:-2])  # (h - 2, w - 2)
    noise = float(np.median(both[::2, ::2]))
    values = (grey.mean(), contrast, np.log(detail / max(contrast, _LEAST) + _LEAST), np.log(noise + _LEAST_NOISE))
    return np.array(values, dtype=np.float32)


@dataclass
class PictureFacts:
    """Of a request's pictures, in whatever order they were prepared; filled by several threads.

    Attributes:
        sizes: height and width as they came.
        qualities: a row each of those that were prepared: not of those whose embedding was kept from before.
    """

    sizes: list[tuple[int, int]] = field(default_factory=list)
    qualities: list[np.ndarray] = field(default_factory=list)

    def add(self, size: tuple[int, int], pixels: Any | None) -> None:
        """One picture: its size, and `(3, h, w)` if it was prepared."""
        self.sizes.append(size)
        if pixels is not None:
            self.qualities.append(quality(pixels.numpy()))

    def found(self) -> dict[str, list]:
        """As `RequestStatistics.record` takes it."""
        return {"image_sizes": self.sizes, "image_qualities": self.qualities}
