"""What the frozen towers say of a folder's pictures and captions, computed once and kept in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from starter.pairs import Pair, digest
from torch import nn

from hf_clip_domain.data.text import clean_caption
from hf_clip_domain.domains import load_domain
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.models.towers.pretrained import join_towers


@dataclass(frozen=True)
class Features:
    """Some pairs as the heads see them.

    Attributes:
        images: `(n, 1904)`, of each picture's evaluation view.
        texts: `(m, 1152)`, of all captions.
        image_of_text: `(m,)` int64, the picture of each caption.
        caption: `(m,)` int64, equal for equal captions.
    """

    images: torch.Tensor
    texts: torch.Tensor
    image_of_text: torch.Tensor
    caption: torch.Tensor


def features_of(pairs: Sequence[Pair], domain_name: str, cache: Path) -> Features:
    """The features of pictures and captions, treated as the domain says; kept in half precision."""
    domain = load_domain(domain_name)
    captions = [clean_caption(caption, domain) for pair in pairs for caption in pair.captions]
    file = cache / f"{domain_name}-{digest(pairs, 0)}.pt"
    if file.exists():
        kept = torch.load(file, weights_only=True)
    else:
        model, processor = join_towers(projection_dim=1)
        model.visual_projection = model.text_projection = nn.Identity()
        embedder = ClipEmbedder(model, processor, domain=domain, similarity="dot", batch_size=32)
        kept = {
            "images": embedder.embed_images([pair.image for pair in pairs]).half(),
            "texts": embedder.embed_texts(captions).half(),
        }
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(kept, file)
    number: dict[str, int] = {}
    return Features(
        kept["images"].float(),
        kept["texts"].float(),
        torch.tensor(np.repeat(np.arange(len(pairs)), [len(pair.captions) for pair in pairs])),
        torch.tensor([number.setdefault(caption, len(number)) for caption in captions]),
    )
