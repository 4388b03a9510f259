"""What servers are asked: captions and pictures that are made up. Imports little, since load starts often."""

from __future__ import annotations

import base64
import io
import random

from PIL import Image

_WORDS = (
    "a photo of the left right wrist chest heart curve plot bar crack weld metal galaxy small large bright dark".split()
)


def caption(draws: random.Random) -> str:
    """Eight to fourteen words, hardly ever the same."""
    return " ".join([*draws.choices(_WORDS, k=draws.randint(7, 13)), str(draws.randrange(10**6))])


def pictures(count: int, side: int = 256, seed: int = 0) -> list[bytes]:
    """JPEG files, as phones and thumbnails have them: smooth, with some detail."""
    draws, found = random.Random(seed), []
    for _ in range(count):
        coarse = Image.frombytes("RGB", (16, 16), draws.randbytes(16 * 16 * 3))
        stream = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=85)
        found.append(stream.getvalue())
    return found


def as_input(picture: bytes) -> dict[str, str]:
    """As `/v1/embeddings` takes it."""
    return {"image": base64.b64encode(picture).decode()}
