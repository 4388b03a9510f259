"""From a picture to the model's input: one decode, one resize, and the changes that a domain allows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_clip_domain.data.contrast import equalise_locally, stretch_window
from hf_clip_domain.data.images import decode_image
from hf_clip_domain.domains import Domain

_FILLS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
# Views show down to two thirds of a picture's side: decode that much larger than needed, and no more.
_DRAFT = 1.5
# Scale of the views of a figure in a domain that crops photographs: its axes and panels stay.
_FIGURE_SCALE = (0.95, 1.2)
# Colours within such a step count as one when the plain ground of a figure is looked for.
_COLOUR_STEP = 16

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

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides what `evaluation` makes of a picture, in plain values."""
        policy = dataclasses.asdict(self.image)
        return {"size": self.size, "mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist(), **policy}

    def evaluation(self, image: Any) -> torch.Tensor:
        """The whole square, nothing drawn by chance."""
        picture = self._decode(image)
        side = self._square_side(picture.size, self._is_figure(picture))
        left, upper = (picture.width - side) / 2, (picture.height - side) / 2
        pixels = self._render(picture, (left, upper, left + side, upper + side))
        return self._normalise(_channels_first(pixels))

    def training(self, image: Any, rng: np.random.Generator, caption: str = "") -> torch.Tensor:
        """A random view that leaves `caption` true; the same for the same state of `rng`."""
        picture = self._decode(image)
        figure = self._is_figure(picture)
        pixels = self._render(picture, self._random_view(picture.size, figure, rng))
        channels = _channels_first(pixels)  # (3, size, size) in 0..1
        # Drawn whether used or not, so that a caption's words do not shift the draws that follow.
        mirrored, turns = rng.random() < 0.5, int(rng.integers(4))
        if mirrored and not figure and self.augment.may_mirror(caption):
            channels = channels.flip(-1)
        if turns and self.augment.may_turn(caption):
            channels = torch.rot90(channels, turns, dims=(-2, -1))
        return self._normalise(self._jitter_colours(channels, rng))

    def _decode(self, image: Any) -> Image.Image:
        return decode_image(image, draft_size=math.ceil(self.size * _DRAFT))

    def _is_figure(self, picture: Image.Image) -> bool:
        """With `square: auto`, whether the picture stands on plain ground."""
        return self.image.square == "auto" and _ground(np.array(picture.resize((64, 64), reducing_gap=2.0)))[1] > 0.6

    def _square_side(self, size: tuple[int, int], figure: bool) -> int:
        return max(size) if figure or self.image.square == "pad" else min(size)

    def _random_view(self, size: tuple[int, int], figure: bool, rng: np.random.Generator) -> Box:
        scale = rng.uniform(*(_FIGURE_SCALE if figure else self.augment.crop_scale))
        stretch = math.exp(rng.uniform(*np.log(self.augment.aspect)))
        whole = self._square_side(size, figure)
        sides = [whole * math.sqrt(scale * stretch), whole * math.sqrt(scale / stretch)]
        if not figure and self.image.square != "pad":
            sides = [min(side, length) for side, length in zip(sides, size, strict=True)]
        # Where the picture is longer than the view, the view lies anywhere inside it; where it is shorter, it lies
        # within the view, off the middle by half the way at most, since evaluation always centres it.
        left, upper = (
            (length - side) * (rng.uniform(0, 1) if length > side else rng.uniform(0.25, 0.75))
            for length, side in zip(size, sides, strict=True)
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
        canvas[:] = self._fill_colour(pixels)
        canvas[rows, columns] = pixels
        return canvas

    def _span(self, start: float, stop: float, length: int) -> tuple[slice, float, float]:
        """Along one axis: the target pixels covered by the picture, and the stretch of the picture they show."""
        scale = self.size / (stop - start)
        first, last = max(start, 0.0), min(stop, float(length))
        begin = min(round((first - start) * scale), self.size - 1)
        end = max(round((last - start) * scale), begin + 1)  # a very thin picture keeps one line
        return slice(begin, end), first, last

    def _fill_colour(self, pixels: np.ndarray) -> np.ndarray | tuple[int, int, int]:
        if self.image.fill != "edge":
            return _FILLS[self.image.fill]
        # Only the edges that the padding will touch; they are the picture's own, not a crop's.
        sides = (pixels.shape[0] < self.size, pixels.shape[1] < self.size)
        return _ground(pixels, *sides)[0]

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


def _ground(pixels: np.ndarray, rows: bool = True, columns: bool = True) -> tuple[np.ndarray, float]:
    """The commonest colour `(3,)` uint8 along the horizontal (`rows`) and vertical (`columns`) edges, and its share.

    Of a chart it is the paper, whatever label or frame touches the edge; of a photograph without any common colour,
    the median.
    """
    depth = 2 + min(pixels.shape[:2]) // 32  # deeper than a thin frame, blurred by the resize
    strips = [pixels[:depth], pixels[-depth:]] if rows else []
    strips += [pixels[:, :depth], pixels[:, -depth:]] if columns else []
    edge = np.concatenate([strip.reshape(-1, 3) for strip in strips])  # (k, 3)
    bins = (edge // _COLOUR_STEP).astype(np.int32) @ np.array([1, 64, 4096])
    values, counts = np.unique(bins, return_counts=True)
    share = float(counts.max() / len(bins))
    common = edge[bins == values[counts.argmax()]] if share > 0.3 else edge
    return np.median(common, axis=0).round().astype(np.uint8), share


_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


def _colour_matrix(saturation: float, hue: float) -> np.ndarray:
    """The `(3, 3)` map of RGB that scales the colour differences and turns them by `hue` radians."""
    cos, sin = saturation * math.cos(hue), saturation * math.sin(hue)
    return _FROM_YIQ @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _TO_YIQ
