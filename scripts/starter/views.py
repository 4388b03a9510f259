"""Views of the pictures, each with what the image teacher sees in it, computed once and kept in a folder.

A view is a crop at two sizes: 288 pixels for the teacher (a map of 9 x 9 places) and 144 for the student, whose
patches of 16 pixels make the same 9 x 9 grid. Training takes windows of 8 x 8 patches (128 pixels), so that each
patch has the teacher's features of its own place as a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .pairs import Pair, digest
from .teachers import PLACES, TEACHER_SIZE, ImageTeacher

STUDENT_VIEW = PLACES * 16  # 144 pixels
MAP_WIDTH = 256  # principal directions kept of the teacher's 1,280


@dataclass
class Views:
    """`pictures` (v, 144, 144, 3) uint8, `maps` (v, 81, 256) float16, whitened, `pair` (v,): the row each shows."""

    pictures: np.ndarray
    maps: np.ndarray
    pair: np.ndarray


def centre_crop(image: Image.Image) -> Image.Image:
    """As the processor does at evaluation: the shortest edge fitted, the middle taken."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def random_crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A box of 30 to 100 percent of the area, sides at 3:4 to 4:3 of the picture's own (later made square)."""
    area, ratio = rng.uniform(0.3, 1.0), np.exp(rng.uniform(-0.28, 0.28))
    width = max(8, round(image.width * min(1.0, np.sqrt(area * ratio))))
    height = max(8, round(image.height * min(1.0, np.sqrt(area / ratio))))
    left = int(rng.integers(0, max(1, image.width - width + 1)))
    top = int(rng.integers(0, max(1, image.height - height + 1)))
    return image.crop((left, top, left + width, top + height))


class ViewMaker:
    """Makes views and their whitened maps; the principal directions come from the first pictures it sees."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        folder.mkdir(parents=True, exist_ok=True)
        self._teacher: ImageTeacher | None = None

    @property
    def teacher(self) -> ImageTeacher:
        if self._teacher is None:
            self._teacher = ImageTeacher()
        return self._teacher

    def _whitening(self, pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
        """(1280,), (1280, 256): subtract, multiply."""
        file = self.folder / f"whitening-{digest(pairs, self.seed)}.pt"
        if not file.exists():
            rng = np.random.default_rng(self.seed)
            chosen = rng.choice(len(pairs), size=min(384, len(pairs)), replace=False)
            crops = [_sized(centre_crop(pairs[row].open()), TEACHER_SIZE) for row in chosen]
            maps = [self.teacher.maps(np.stack(crops[i : i + 16])) for i in range(0, len(crops), 16)]
            local = torch.cat(maps).flatten(0, 1)  # (384 * 81, 1280)
            mean = local.mean(0)
            values, vectors = torch.linalg.eigh(torch.cov((local - mean).T))
            values, vectors = values.flip(0)[:MAP_WIDTH], vectors.flip(1)[:, :MAP_WIDTH]
            # Half-way whitening (a power of 1/4): the weak directions are heard, their noise is not made equal.
            scale = (values / values[0]).pow(-0.25) / values[0].sqrt()
            torch.save((mean, vectors * scale), file)
        mean, matrix = torch.load(file)
        return mean, matrix

    def make(self, name: str, pairs: Sequence[Pair], number: int, whiten_by: Sequence[Pair]) -> Views:
        """`number` views a pair, the first of them the evaluation view; read back from the folder where it can."""
        mean, matrix = self._whitening(whiten_by)
        of = f"{digest(whiten_by, self.seed)}-{digest(pairs, self.seed)}"
        parts = []
        for view in range(number):
            file = self.folder / f"{name}-{of}-{view}.npz"
            if not file.exists():
                pictures, maps = self._one_pass(pairs, view, mean, matrix)
                partial = file.with_suffix(".part.npz")
                np.savez(partial, pictures=pictures, maps=maps)
                partial.rename(file)
                print(f"views: {file.name}", flush=True)
            with np.load(file) as saved:
                parts.append((saved["pictures"], saved["maps"]))
        return Views(
            np.concatenate([pictures for pictures, _ in parts]),
            np.concatenate([maps for _, maps in parts]),
            np.tile(np.arange(len(pairs)), number),
        )

    def _one_pass(self, pairs, view, mean, matrix) -> tuple[np.ndarray, np.ndarray]:
        pictures = np.empty((len(pairs), STUDENT_VIEW, STUDENT_VIEW, 3), np.uint8)
        maps = np.empty((len(pairs), PLACES * PLACES, MAP_WIDTH), np.float16)
        for start in range(0, len(pairs), 16):
            rows = range(start, min(start + 16, len(pairs)))
            large = []
            for row in rows:
                image = pairs[row].open()
                if view == 0:
                    crop = centre_crop(image)
                else:
                    crop = random_crop(image, np.random.default_rng([self.seed, view, row]))
                large.append(_sized(crop, TEACHER_SIZE))
                pictures[row] = _sized(crop, STUDENT_VIEW)
            features = (self.teacher.maps(np.stack(large)) - mean) @ matrix
            maps[start : start + len(large)] = features.numpy()
        return pictures, maps


def _sized(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
