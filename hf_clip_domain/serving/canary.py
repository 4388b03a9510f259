"""What a model must pass before it serves in another's place."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.model import IMAGE, TEXT, LoadedModel

TEXTS = (
    "a picture",
    "two long sentences that say a little more about what there is to see, and where. It is small.",
    "x",
    "a red square beside a blue circle",
)


def check_candidate(candidate: LoadedModel, current: LoadedModel | None) -> None:
    """A batch of its own: finite, alone and in company alike, and of as many dimensions as clients know.

    Raises:
        ClipDomainError: what failed.
    """
    texts = candidate.token_ids(TEXTS)
    pictures = [candidate.pixels(draw_canary(seed)) for seed in range(3)]
    for kind, payloads in ((TEXT, texts), (IMAGE, pictures)):
        together = candidate.encode(kind, payloads)
        alone = np.concatenate([candidate.encode(kind, [payload]) for payload in payloads])
        if not (np.isfinite(together).all() and np.isfinite(alone).all()):
            raise ClipDomainError(f"{candidate.source}: {kind} embeddings of the canary batch are not finite.")
        scale = max(1e-6, float(np.abs(alone).max()))
        if np.abs(together - alone).max() > (1e-3 if candidate.precision == "fp32" else 0.05) * scale:
            raise ClipDomainError(f"{candidate.source}: a {kind}'s embedding depends on its neighbours in the batch.")
    if current is not None and candidate.dimensions != current.dimensions:
        raise ClipDomainError(
            f"{candidate.source} embeds into {candidate.dimensions} dimensions and the model served now into "
            f"{current.dimensions}: clients that keep embeddings would break. Start another server for it."
        )


def draw_canary(seed: int) -> bytes:
    """A made-up picture, soft blots of colour, as PNG; the same for a seed."""
    rng = np.random.default_rng(seed)
    blots = rng.integers(0, 256, (int(rng.integers(2, 9)), int(rng.integers(2, 9)), 3), dtype=np.uint8)
    picture = Image.fromarray(blots).resize((160, 120), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
