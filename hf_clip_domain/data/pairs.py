"""Image-text rows as training items; every random choice is a function of seed, epoch and row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from hf_clip_domain.data.cached_rows import CachedRows, identify
from hf_clip_domain.data.feature_store import FeatureStore
from hf_clip_domain.data.relations import relation_values
from hf_clip_domain.data.text import clean_caption, split_sentences
from hf_clip_domain.data.transforms import ImageTransform
from hf_clip_domain.domains import Domain
from hf_clip_domain.errors import ClipDomainError

Captions = Literal["truncate", "sentence"]
_SHUFFLE_BUFFER = 1000  # rows of encoded pictures: some hundred megabytes at most
_MOST_CLEANED = 50_000  # captions kept cleaned: some 30 MB
_MOST_THREADS = 4  # Python itself runs in one at a time; more would wait for it


class _ItemMaker:
    """From a canonical row to `{"pixel_values": (3, s, s) float32, "text": str}`.

    In training one of the row's captions is drawn (with `captions="sentence"`, one sentence of it) and the picture is
    augmented, unless `augment` is False; otherwise the first caption and the evaluation view are taken.
    """

    def __init__(
        self,
        transform: ImageTransform,
        domain: Domain,
        train: bool,
        captions: str,
        relations: Sequence[str],
        augment: bool = True,
    ) -> None:
        if captions not in ("truncate", "sentence"):
            raise ClipDomainError(f"captions={captions!r}: expected 'truncate' or 'sentence'.")
        self.transform, self.domain, self.train, self.captions = transform, domain, train, captions
        self.relations = tuple(name for name in relations if name != "caption")
        self.augment = augment and train
        self._cleaned: dict[str, str] = {}  # the rules are dozens of searches, and every epoch meets the same captions

    def __call__(self, row: dict[str, Any], picture: Any, draws: list[int]) -> dict[str, Any]:
        """The item of a row that shows `picture` (what `decode_image` takes); without one it has no pixels."""
        rng = np.random.default_rng(draws)
        text = self._text(row, rng)
        item: dict[str, Any] = {"text": text}
        if picture is not None and self.augment:
            item["pixel_values"] = self.transform.training(picture, rng, caption=text)
        elif picture is not None:
            item["pixel_values"] = self.transform.evaluation(picture)
        if self.relations:
            item["relations"] = relation_values(row, text, self.domain, self.relations)
        return item

    def _text(self, row: dict[str, Any], rng: np.random.Generator) -> str:
        if not self.train:
            return self._clean(row["text"][0])
        text = self._clean(row["text"][rng.integers(len(row["text"]))])
        if self.captions == "sentence":
            sentences = split_sentences(text)
            text = sentences[rng.integers(len(sentences))]
        return text

    def _clean(self, caption: str) -> str:
        cleaned = self._cleaned.get(caption)
        if cleaned is None:
            cleaned = clean_caption(caption, self.domain)
            if len(self._cleaned) < _MOST_CLEANED:
                self._cleaned[caption] = cleaned
        return cleaned


class PairDataset(Dataset):
    """Rows of a `datasets.Dataset` as items `{"pixel_values": (3, s, s) float32, "text": str}`.

    Args:
        pairs: canonical rows (`image` `{"bytes", "path"}`, `text` a list of captions).
        transform: makes pictures tensors.
        domain: cleans captions.
        train: draw a caption and a view anew every epoch, or always take the first caption and the whole square.
        seed: of the draws.
        captions: "truncate" takes whole captions (the collator cuts long ones), "sentence" one sentence of them.
        relations: what a loss needs to know besides the caption ("image", "label", "terms"): items then hold
            `relations`, see `relation_values`.
        augment: False shows pictures as in evaluation while captions are still drawn.

    The key of an item carries its epoch, see `epoch_key`, so that dataloader workers, which hold a copy of the
    dataset, need no word of a new epoch.

    Raises:
        ClipDomainError: a picture cannot be read (names the row).
    """

    def __init__(
        self,
        pairs,
        transform: ImageTransform,
        domain: Domain,
        *,
        train: bool,
        seed: int = 0,
        captions: Captions = "truncate",
        relations: Sequence[str] = (),
        augment: bool = True,
    ) -> None:
        self.pairs = pairs
        self.seed = seed
        self._make = _ItemMaker(transform, domain, train, captions, relations, augment)
        self._cached: CachedRows | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def epoch_key(self, epoch: int, index: int) -> int:
        """The key of row `index` as it looks in `epoch`; a plain index is its first epoch."""
        return epoch * len(self) + index

    def __getitem__(self, key: int) -> dict[str, Any]:
        # An end to the keys would stop `for item in dataset`; so a plain sequence ends where epoch 0 does.
        epoch, index = divmod(int(key), len(self))
        draws = [self.seed, epoch, index]
        try:
            if self._cached is None:
                row = self.pairs[index]
                return self._make(row, row["image"], draws)
            row, key, picture = self._cached(index)
            return {**self._make(row, picture, draws), "picture": key, "row": index}
        except ClipDomainError as error:
            raise ClipDomainError(f"row {index}: {error}") from error

    def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Any]]:
        """The items of a batch, as a `DataLoader` asks for them, in as many threads as torch computes in (4 at most).

        Pillow decodes and resizes without Python's lock. A dataloader's worker has one thread.
        """
        threads = min(torch.get_num_threads(), _MOST_THREADS)
        if threads == 1:
            return [self[key] for key in keys]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.__getitem__, keys))

    def use_features(self, store: FeatureStore | None) -> None:
        """Leave out the pixels of pictures whose features `store` holds; the others are shown as in evaluation.

        Items then also hold `picture` (its key, see `CachedRows`) and `row` (its number), and `pixel_values` only where
        they are needed. `None` shows all pictures, with keys all the same.
        """
        if self._cached is None:
            self._make.augment = False
            self._cached = CachedRows(self.pairs, needs_picture=bool({"image", "label"} & set(self._make.relations)))
        self._cached.store = store

    @property
    def picture_settings(self) -> dict[str, Any]:
        """Everything that decides the pixels of a picture that is not augmented, in plain values."""
        return self._make.transform.settings

    def show(self, index: int) -> tuple[bytes, torch.Tensor]:
        """The key and the pixels `(3, s, s)` of a row's picture as it is now, whether stored or not."""
        key, image = identify(self.pairs[index]["image"])
        return key, self._make.transform.evaluation(image)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


class PairStream(IterableDataset):
    """The same items from rows that come one after the other; arguments as for `PairDataset`.

    In training the rows are shuffled within a buffer. A row's draws depend on seed, epoch and its content, so
    neither the number of workers nor the order changes them.

    Raises:
        ClipDomainError: a picture cannot be read (names its path or first caption).
    """

    def __init__(
        self,
        pairs,
        transform: ImageTransform,
        domain: Domain,
        *,
        train: bool,
        seed: int = 0,
        captions: Captions = "truncate",
        relations: Sequence[str] = (),
    ) -> None:
        self.pairs = pairs.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER) if train else pairs
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by workers that live on
        self._make = _ItemMaker(transform, domain, train, captions, relations)

    def set_epoch(self, epoch: int) -> None:
        """Other draws and another order from here on."""
        self._epoch.fill_(epoch)
        self.pairs.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self.pairs:
            try:
                yield self._make(row, row["image"], [self.seed, int(self._epoch), _row_number(row)])
            except ClipDomainError as error:
                place = row["image"].get("path") or f"the picture of {row['text'][0][:60]!r}"
                raise ClipDomainError(f"{place}: {error}") from error


def _row_number(row: dict[str, Any]) -> int:
    """A 64-bit number of the row's content."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update((row["image"].get("path") or "").encode())
    digest.update(row["image"].get("bytes") or b"")
    digest.update("\n".join(row["text"]).encode())
    return int.from_bytes(digest.digest())
