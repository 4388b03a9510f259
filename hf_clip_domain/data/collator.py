"""Items to the batch that a CLIP model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import default_collate

from hf_clip_domain.data.cached_rows import PictureRefs
from hf_clip_domain.data.relations import word_id
from hf_clip_domain.errors import ClipDomainError

_MOST_TOKENIZED = 50_000  # captions kept as tokens: some 40 MB


class PairCollator:
    """Stack pictures and tokenize captions.

    Args:
        tokenizer: of the model's text tower (CLIP, SigLIP, BERT, ...).
        max_text_length: longest caption in tokens; longer ones are cut, keeping the end token that CLIP pools at.
        pad_to_multiple_of: lengths are rounded up to a multiple of this (never above `max_text_length`), so that
            compiled graphs and MPS see few shapes.
        padding: "longest" pads to the batch's longest caption: CLIP's text tower is causal and pools at the end
            token, so the embedding is that of full padding at a fraction of the work. "max_length" pads fully, for
            towers that were trained so (SigLIP).
        relations: what the loss needs to know about rows: "caption", and whatever the items hold under "relations".

    Returns, for n items `{"pixel_values": (3, s, s), "text": str}`:
        pixel_values: `(n, 3, s, s)` float32; fewer where features of pictures are stored, and none where all are.
        pictures: which they are (`PictureRefs`), where the dataset uses stored features.
        input_ids: `(n, t)` int64.
        attention_mask: `(n, t)` int64; all ones for a tokenizer that names none among its model's inputs (SigLIP reads
            its padding).
        targets: with the one relation "caption" (the default) `(n,)` int64, equal for equal captions, which therefore
            never count as negatives of one another; with others a mapping of each relation to its `(n,)` ids, or
            `(n, f)` for "terms"; without any it is left out.

    Raises:
        ClipDomainError: an unknown padding, a length or multiple that is too small, or a tokenizer without a padding token.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_text_length: int = 77,
        pad_to_multiple_of: int = 8,
        padding: Literal["longest", "max_length"] = "longest",
        relations: Sequence[str] = ("caption",),
    ) -> None:
        if padding not in ("longest", "max_length"):
            raise ClipDomainError(f"padding={padding!r}: expected 'longest' or 'max_length'.")
        if max_text_length < 3 or pad_to_multiple_of < 1:
            raise ClipDomainError(
                f"max_text_length={max_text_length}, pad_to_multiple_of={pad_to_multiple_of}: expected at least 3 "
                "(start, one token, end) and at least 1."
            )
        if tokenizer.pad_token_id is None:
            raise ClipDomainError(
                "the tokenizer has no padding token; set one, such as tokenizer.pad_token = tokenizer.eos_token."
            )
        self.tokenizer = tokenizer
        self.max_text_length = max_text_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.padding = padding
        self.relations = tuple(relations)
        # A tower that pools the last position (SigLIP) was trained, and is evaluated, without a mask.
        self._masked = padding == "longest" and "attention_mask" in tokenizer.model_input_names
        self._tokenized: dict[str, np.ndarray] = {}  # every epoch meets the same captions

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = self._tokenize([item["text"] for item in items])
        length = self._padded_length(max(map(len, ids)))
        input_ids = np.full((len(ids), length), self.tokenizer.pad_token_id, dtype=np.int64)  # (n, t)
        attention_mask = np.full_like(input_ids, 0 if self._masked else 1)
        for row, sequence in enumerate(ids):
            input_ids[row, : len(sequence)] = sequence
            attention_mask[row, : len(sequence)] = 1
        batch = {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(attention_mask),
        }
        shown = list(range(len(items)))
        if "picture" in items[0]:
            shown = [place for place in shown if "pixel_values" in items[place]]
            keys, rows = ([item[name] for item in items] for name in ("picture", "row"))
            batch["pictures"] = PictureRefs(keys, rows, shown)
        if shown:
            # Stacks, and does so in memory that is shared where this is a dataloader's worker: one copy fewer.
            batch["pixel_values"] = default_collate([items[place]["pixel_values"] for place in shown])
        if self.relations == ("caption",):
            batch["targets"] = self._relation("caption", items)
        elif self.relations:
            batch["targets"] = {name: self._relation(name, items) for name in self.relations}
        return batch

    def _tokenize(self, texts: list[str]) -> list[np.ndarray]:
        """The tokens of each, those not met before in one call of the tokenizer."""
        kept, tokens = self._tokenized, {}
        fresh = list(dict.fromkeys(text for text in texts if text not in kept))
        if fresh:
            ids = self.tokenizer(fresh, truncation=True, max_length=self.max_text_length, padding=False)["input_ids"]
            tokens = {text: np.array(sequence, dtype=np.int32) for text, sequence in zip(fresh, ids, strict=True)}
        if len(kept) + len(tokens) <= _MOST_TOKENIZED:
            kept.update(tokens)
        return [tokens[text] if text in tokens else kept[text] for text in texts]

    def _relation(self, name: str, items: Sequence[dict[str, Any]]) -> torch.Tensor:
        if name == "caption":
            return torch.tensor([word_id(item["text"]) for item in items], dtype=torch.int64)
        try:
            return torch.as_tensor(np.array([item["relations"][name] for item in items]))
        except KeyError as error:
            raise ClipDomainError(
                f"the loss needs to know which rows have the same {name}, and the items do not tell: give the dataset "
                f"relations=[{name!r}]."
            ) from error

    def _padded_length(self, longest: int) -> int:
        if self.padding == "max_length":
            return self.max_text_length
        rounded = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        return min(rounded, self.max_text_length)
