"""A small real CLIP with its processor, and small real pairs."""

import io

import numpy as np
import pytest
from PIL import Image
from small_clip import make_clip


def make_rows(count, seed=0):
    """`count` rows with a PNG each and one or two captions; every third row shares one caption."""
    draw = np.random.default_rng(seed)
    rows = []
    for row in range(count):
        buffer = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(buffer, "PNG")
        text = [f"picture {row}"] if row % 2 else [f"picture {row}", f"number {row} again, at some length"]
        text += ["a shared caption"] if row % 3 == 0 else []
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "text": text})
    return rows


@pytest.fixture(scope="session")
def clip():
    return make_clip


@pytest.fixture(scope="session")
def rows():
    return make_rows
