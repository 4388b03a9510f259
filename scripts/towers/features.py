"""What the frozen towers say of a folder's pictures and captions, computed once and kept in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from starter.pairs import held_out, read_folder
from torch import nn

from hf_clip_domain.data.text import clean_caption
from hf_clip_domain.domains import load_domain
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.models.towers.pretrained import join_towers


@dataclass(frozen=True)
class Features:
    """One split of one folder.

    Attributes:
        images: `(n, 1904)`, of each picture's evaluation view.
        texts: `(m, 384)`, of all captions.
        image_of_text: `(m,)` int64, the picture of each caption.
        caption: `(m,)` int64, equal for equal captions.
        validation: `(n,)` bool, the pictures to choose by: whole groups, about 15 percent.
    """

    images: torch.Tensor
    texts: torch.Tensor
    image_of_text: torch.Tensor
    caption: torch.Tensor
    validation: torch.Tensor

    def part(self, pictures: torch.Tensor) -> Features:
        """The chosen pictures (a `(n,)` bool mask) with their captions."""
        texts = pictures[self.image_of_text]
        position = torch.cumsum(pictures, 0) - 1
        return Features(
            self.images[pictures],
            self.texts[texts],
            position[self.image_of_text[texts]],
            self.caption[texts],
            self.validation[pictures],
        )


def features_of(folder: Path, split: str, cache: Path) -> Features:
    """The features of `folder/metadata.jsonl`'s rows of one split; the folder's name is its domain's."""
    pairs = read_folder(folder, split)
    domain = load_domain(folder.name)
    captions = [clean_caption(caption, domain) for pair in pairs for caption in pair.captions]
    file = cache / f"{folder.name}-{split}.pt"
    if file.exists():
        kept = torch.load(file, weights_only=True)
    else:
        model, processor = join_towers(projection_dim=1)
        model.visual_projection = model.text_projection = nn.Identity()
        embedder = ClipEmbedder(model, processor, domain=domain, similarity="dot", batch_size=32)
        kept = {
            "images": embedder.embed_images([pair.image for pair in pairs]),
            "texts": embedder.embed_texts(captions),
        }
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(kept, file)
    number: dict[str, int] = {}
    return Features(
        kept["images"].float(),
        kept["texts"].float(),
        torch.tensor(np.repeat(np.arange(len(pairs)), [len(pair.captions) for pair in pairs])),
        torch.tensor([number.setdefault(caption, len(number)) for caption in captions]),
        torch.tensor([held_out(pair, share=0.15) for pair in pairs]),
    )
