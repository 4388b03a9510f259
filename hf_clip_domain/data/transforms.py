"""From a picture to the model's input: one decode, one resize, and the changes that a domain allows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_clip_domain.data.contrast import equalise_locally, stretch_window
from hf_clip_domain.data.images import decode_image
from hf_clip_domain.domains import Domain

_FILLS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
# Views show down to half of a picture's side: decode that much larger than needed, and no more.
_DRAFT = 1.5

Box = tuple[float, float, float, float]  # left, upper, right, lower in pixels of the picture; may reach outside it


class ImageTransform:
    """Pictures to normalised tensors after a domain's policies.

    Args:
        domain: its `image` and `augment` policies are used.
        size: side of the square in pixels.
        mean, std: three values each, of channels scaled to 0..1 (the image processor's).

    Both methods take whatever `decode_image` takes, return float32 `(3, size, size)`, and raise `ClipDomainError`
    for a picture that cannot be read.
    """

    def __init__(self, domain: Domain, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.image, self.augment = domain.image, domain.augment
        self.size = size
        self.mean = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(3, 1, 1)

    def evaluation(self, image: Any) -> torch.Tensor:
        """The whole square, nothing drawn by chance."""
        picture = self._decode(image)
        pixels = self._render(picture, self._middle(picture.size))
        return self._normalise(_channels_first(pixels))

    def training(self, image: Any, rng: np.random.Generator, caption: str = "") -> torch.Tensor:
        """A random view that leaves `caption` true; the same for the same state of `rng`."""
        picture = self._decode(image)
        pixels = self._render(picture, self._random_view(picture.size, rng))
        channels = _channels_first(pixels)  # (3, size, size) in 0..1
        # Drawn whether used or not, so that a caption's words do not shift the draws that follow.
        mirrored, turns = rng.random() < 0.5, int(rng.integers(4))
        if mirrored and self.augment.may_mirror(caption):
            channels = channels.flip(-1)
        if turns and self.augment.may_turn(caption):
            channels = torch.rot90(channels, turns, dims=(-2, -1))
        return self._normalise(self._jitter_colours(channels, rng))

    def _decode(self, image: Any) -> Image.Image:
        return decode_image(image, draft_size=math.ceil(self.size * _DRAFT))

    def _middle(self, size: tuple[int, int]) -> Box:
        side = self._square_side(size)
        left, upper = (size[0] - side) / 2, (size[1] - side) / 2
        return left, upper, left + side, upper + side

    def _square_side(self, size: tuple[int, int]) -> int:
        return max(size) if self.image.square == "pad" else min(size)

    def _random_view(self, size: tuple[int, int], rng: np.random.Generator) -> Box:
        area = rng.uniform(*self.augment.crop_scale) * self._square_side(size) ** 2
        stretch = math.exp(rng.uniform(*np.log(self.augment.aspect)))
        sides = math.sqrt(area * stretch), math.sqrt(area / stretch)
        if self.image.square == "crop":
            sides = min(sides[0], size[0]), min(sides[1], size[1])
        # Along each axis the view lies inside the picture, or where it is longer, the picture inside the view.
        left, upper = (
            rng.uniform(*sorted((0.0, length - side))) for length, side in zip(size, sides, strict=True)
        )
        return left, upper, left + sides[0], upper + sides[1]

    def _render(self, picture: Image.Image, box: Box) -> np.ndarray:
        """The box of the picture as `(size, size, 3)` uint8, padded where it reaches outside."""
        columns, from_left, to_right = self._span(box[0], box[2], picture.width)
        rows, from_upper, to_lower = self._span(box[1], box[3], picture.height)
        part = picture.resize(
            (columns.stop - columns.start, rows.stop - rows.start),
            Image.Resampling.BICUBIC,
            box=(from_left, from_upper, to_right, to_lower),
            reducing_gap=2.0,
        )
        pixels = self._enhance(np.array(part))
        if pixels.shape[:2] == (self.size, self.size):
            return pixels
        canvas = np.empty((self.size, self.size, 3), dtype=np.uint8)
        canvas[:] = _border_colour(pixels) if self.image.fill == "edge" else _FILLS[self.image.fill]
        canvas[rows, columns] = pixels
        return canvas

    def _span(self, start: float, stop: float, length: int) -> tuple[slice, float, float]:
        """Along one axis: the target pixels covered by the picture, and the stretch of the picture they show."""
        scale = self.size / (stop - start)
        first, last = max(start, 0.0), min(stop, float(length))
        begin = min(round((first - start) * scale), self.size - 1)
        end = max(round((last - start) * scale), begin + 1)  # a very thin picture keeps one line
        return slice(begin, end), first, last

    def _enhance(self, pixels: np.ndarray) -> np.ndarray:
        if self.image.grey:
            luma = np.rint(pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)).astype(np.uint8)
            pixels = np.repeat(luma[..., None], 3, axis=-1)
        if self.image.window is not None:
            pixels = stretch_window(pixels, *self.image.window)
        if self.image.clahe_clip:
            pixels = equalise_locally(pixels, self.image.clahe_clip, self.image.clahe_tiles)
        return pixels

    def _jitter_colours(self, channels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Brightness, contrast, saturation and hue as one linear map of the colours, `(3, h, w)` in 0..1."""
        augment = self.augment
        brightness, contrast, saturation = (
            1 + amount * rng.uniform(-1, 1) for amount in (augment.brightness, augment.contrast, augment.saturation)
        )
        hue = 2 * math.pi * augment.hue * rng.uniform(-1, 1)
        if not (augment.brightness or augment.contrast or augment.saturation or augment.hue):
            return channels
        matrix = _colour_matrix(saturation, hue) * (brightness * contrast)
        grey = brightness * (1 - contrast) * channels.mean()  # contrast is about the picture's mean brightness
        mixed = torch.from_numpy(matrix).to(channels.dtype) @ channels.reshape(3, -1) + grey
        return mixed.view_as(channels).clamp_(0, 1)

    def _normalise(self, channels: torch.Tensor) -> torch.Tensor:
        return (channels - self.mean) / self.std


def _channels_first(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(255)


def _border_colour(pixels: np.ndarray) -> np.ndarray:
    """Median colour along the border, `(3,)`: of a chart its paper, whatever label touches the edge."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])  # (2h + 2w, 3)
    return np.median(border, axis=0).round().astype(np.uint8)


_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


def _colour_matrix(saturation: float, hue: float) -> np.ndarray:
    """The `(3, 3)` map of RGB that scales the colour differences and turns them by `hue` radians."""
    cos, sin = saturation * math.cos(hue), saturation * math.sin(hue)
    return _FROM_YIQ @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _TO_YIQ
