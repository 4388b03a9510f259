"""How much a picture and its own text deviate together from what is usual: their pairing, without what each has alone.

The similarity of a pair also depends on how near its picture lies to any text, and its text to any picture, which varies
more from pair to pair than whether they belong together where a model tells pairs apart only just. Centred, that is gone.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

REFERENCE_FILE = "drift_reference.npz"


@dataclass(frozen=True)
class Centre:
    """Mean embeddings of usual pictures and texts, `(d,)` each."""

    image: np.ndarray
    text: np.ndarray

    def margins(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Of pairs `(n, d), (n, d)`, the inner product of the two deviations: `(n,)` float32."""
        return ((images - self.image) * (texts - self.text)).sum(axis=1).astype(np.float32)


def read_centre(folder: str | Path, revision: str) -> Centre | None:
    """From the drift reference in a model's folder; None where there is none of these weights."""
    try:
        with np.load(Path(folder) / REFERENCE_FILE, allow_pickle=False) as found:
            if json.loads(str(found["meta"]))["revision"] != revision:
                return None
            centre = Centre(found["image_mean"], found["text_mean"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    right = centre.image.shape == centre.text.shape and centre.image.ndim == 1
    return centre if right and np.isfinite(centre.image + centre.text).all() else None
