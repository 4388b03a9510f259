"""From a picture to the model's input: one decode, one resize, and the changes that a domain allows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_clip_domain.data.contrast import equalise_locally, stretch_window
from hf_clip_domain.data.ground import ground_colour, ground_share
from hf_clip_domain.data.images import Box, Decoded, decode_draft
from hf_clip_domain.domains import Domain

_FILLS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
# Views show down to two thirds of a picture's side: decode that much larger than needed, and no more.
_DRAFT = 1.5
# Scale of the views of a figure in a domain that crops photographs: its axes and panels stay.
_FIGURE_SCALE = (0.95, 1.2)
# To be raised whenever the evaluation view of the same picture changes: what was kept of older pixels is then not used.
_VERSION = 2


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
        self.mean = np.array(mean, dtype=np.float32).reshape(3, 1, 1)
        self.std = np.array(std, dtype=np.float32).reshape(3, 1, 1)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides what `evaluation` makes of a picture, in plain values."""
        normalisation = {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        return {"version": _VERSION, "size": self.size, **normalisation, **dataclasses.asdict(self.image)}

    def evaluation(self, image: Any) -> torch.Tensor:
        """The whole square, nothing drawn by chance.

        Where it is cropped, it is the square that CLIP's own processor cuts.
        """
        picture = self._decode(image)
        size = _size(picture.extent)
        if self._is_figure(picture) or self.image.square == "pad":
            side = max(size)
            left, upper = ((length - side) / 2 for length in size)
            view = (left, upper, left + side, upper + side)
        else:
            view = self._middle_square(size)
        return self._normalise(_channels_first(self._render(picture, view)))

    def training(self, image: Any, rng: np.random.Generator, caption: str = "") -> torch.Tensor:
        """A random view that leaves `caption` true; the same for the same state of `rng`."""
        picture = self._decode(image)
        figure = self._is_figure(picture)
        pixels = self._render(picture, self._random_view(_size(picture.extent), figure, rng))
        channels = _channels_first(pixels)  # (3, size, size) in 0..1
        # Drawn whether used or not, so that a caption's words do not shift the draws that follow.
        mirrored, turns = rng.random() < 0.5, int(rng.integers(4))
        if mirrored and not figure and self.augment.may_mirror(caption):
            channels = channels[:, :, ::-1]
        if turns and self.augment.may_turn(caption):
            channels = np.rot90(channels, turns, axes=(-2, -1))
        return self._normalise(self._jitter_colours(channels, rng))

    def _decode(self, image: Any) -> Decoded:
        return decode_draft(image, math.ceil(self.size * _DRAFT))

    def _is_figure(self, decoded: Decoded) -> bool:
        """With `square: auto`, whether the picture stands on plain ground."""
        return self.image.square == "auto" and ground_share(decoded) > 0.6

    def _middle_square(self, size: tuple[float, float]) -> Box:
        """Where CLIP's processor cuts: it resizes to whole pixels first, rounding down, and cuts whole pixels then."""
        scaled = [max(self.size, int(self.size * length / min(size))) for length in size]
        left, upper = ((whole - self.size) // 2 * length / whole for whole, length in zip(scaled, size, strict=True))
        width, height = (self.size * length / whole for whole, length in zip(scaled, size, strict=True))
        return left, upper, left + width, upper + height

    def _random_view(self, size: tuple[float, float], figure: bool, rng: np.random.Generator) -> Box:
        scale = rng.uniform(*(_FIGURE_SCALE if figure else self.augment.crop_scale))
        stretch = math.exp(rng.uniform(*np.log(self.augment.aspect)))
        whole = max(size) if figure or self.image.square == "pad" else min(size)
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

    def _render(self, decoded: Decoded, view: Box) -> np.ndarray:
        """The view as `(size, size, 3)` uint8, padded where it reaches outside; it counts from the extent's corner."""
        width, height = _size(decoded.extent)
        columns, from_left, to_right = self._span(view[0], view[2], width)
        rows, from_upper, to_lower = self._span(view[1], view[3], height)
        left, upper = decoded.extent[:2]
        part = decoded.picture.resize(
            (columns.stop - columns.start, rows.stop - rows.start),
            Image.Resampling.BICUBIC,
            box=(left + from_left, upper + from_upper, left + to_right, upper + to_lower),
            reducing_gap=2.0,
        )
        pixels = self._enhance(np.asarray(part if part.mode == "RGB" else part.convert("RGB")))
        if pixels.shape[:2] == (self.size, self.size):
            return pixels
        canvas = np.empty((self.size, self.size, 3), dtype=np.uint8)
        canvas[:] = self._fill_colour(pixels)
        canvas[rows, columns] = pixels
        return canvas

    def _span(self, start: float, stop: float, length: float) -> tuple[slice, float, float]:
        """Along one axis: the target pixels covered by the picture, and the stretch of the picture they show."""
        scale = self.size / (stop - start)
        first, last = max(start, 0.0), min(stop, length)
        begin = min(round((first - start) * scale), self.size - 1)
        end = max(round((last - start) * scale), begin + 1)  # a very thin picture keeps one line
        return slice(begin, end), first, last

    def _fill_colour(self, pixels: np.ndarray) -> np.ndarray | tuple[int, int, int]:
        if self.image.fill != "edge":
            return _FILLS[self.image.fill]
        # Only the edges that the padding will touch; they are the picture's own, not a crop's.
        sides = (pixels.shape[0] < self.size, pixels.shape[1] < self.size)
        return ground_colour(pixels, *sides)

    def _enhance(self, pixels: np.ndarray) -> np.ndarray:
        if self.image.grey:
            luma = np.rint(pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)).astype(np.uint8)
            pixels = np.repeat(luma[..., None], 3, axis=-1)
        if self.image.window is not None:
            pixels = stretch_window(pixels, *self.image.window)
        if self.image.clahe_clip:
            pixels = equalise_locally(pixels, self.image.clahe_clip, self.image.clahe_tiles)
        return pixels

    def _jitter_colours(self, channels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
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
        mixed = matrix.astype(np.float32) @ channels.reshape(3, -1)
        mixed += np.float32(grey)
        return np.clip(mixed, 0, 1, out=mixed).reshape(channels.shape)

    def _normalise(self, channels: np.ndarray) -> torch.Tensor:
        """In place."""
        channels = np.ascontiguousarray(channels)  # torch takes no picture that was mirrored by its strides
        channels -= self.mean
        channels /= self.std
        return torch.from_numpy(channels)


def _size(extent: Box) -> tuple[float, float]:
    return extent[2] - extent[0], extent[3] - extent[1]


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    # By numpy, as all that follows: on so little, torch's threads wait for one another longer than they compute.
    channels = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
    channels /= 255
    return channels


_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


def _colour_matrix(saturation: float, hue: float) -> np.ndarray:
    """The `(3, 3)` map of RGB that scales the colour differences and turns them by `hue` radians."""
    cos, sin = saturation * math.cos(hue), saturation * math.sin(hue)
    return _FROM_YIQ @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _TO_YIQ
