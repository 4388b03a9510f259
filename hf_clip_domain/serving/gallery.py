"""The pictures that `/search` looks through: read once, embedded by whichever model serves, added to and removed from.

What a picture came from is kept (its file, its row, or the bytes sent), so that a new model can embed it anew.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.errors import RequestError
from hf_clip_domain.serving.index import Index, embed_in_batches
from hf_clip_domain.serving.model import LoadedModel
from hf_clip_domain.serving.settings import Settings

log = logging.getLogger(__name__)
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "captions.txt")
_AT_ONCE = 256  # pictures decoded before they are embedded


@dataclass(frozen=True)
class Entry:
    """One picture.

    Attributes:
        read: gives its bytes, or whatever `decode_image` takes.
        size: bytes held in memory for it.
    """

    id: str
    read: Callable[[], Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    size: int = 0


class Gallery:
    """Entries by number, and an index a model.

    Changes take turns by `changing`, so that a model that is swapped in meanwhile misses none.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.entries: dict[int, Entry] = {}
        self.changing = asyncio.Lock()
        self._numbers: dict[str, int] = {}
        self._next = itertools.count()
        self._bytes = 0
        for entry in itertools.islice(read_gallery(settings.gallery), settings.max_gallery + 1):
            self._keep(entry)
        if len(self.entries) > settings.max_gallery:
            raise ClipDomainError(
                f"--gallery {settings.gallery} has more than {settings.max_gallery:,} pictures: see --max_gallery."
            )

    def __len__(self) -> int:
        return len(self.entries)

    def index(self, model: LoadedModel) -> None:
        """Embed what the model has not embedded yet, and forget what is gone; in a thread.

        A picture that cannot be read is left out, and counted in the log.

        Raises:
            ClipDomainError: the model's similarity fits no index.
        """
        if model.index is None:
            model.index = Index(model)
        entries = dict(self.entries)
        if gone := model.index.numbers - entries.keys():
            model.index.remove(sorted(gone))
        missing = sorted(entries.keys() - model.index.numbers)
        unreadable = 0
        with ThreadPoolExecutor(self.settings.pool_size, thread_name_prefix="gallery") as pool:
            for start in range(0, len(missing), _AT_ONCE):
                part = missing[start : start + _AT_ONCE]
                pixels = list(pool.map(lambda number: _pixels(model, entries[number]), part))
                whole = [place for place, tensor in enumerate(pixels) if tensor is not None]
                unreadable += len(part) - len(whole)
                if whole:
                    rows = embed_in_batches(model, [pixels[place] for place in whole])
                    model.index.add([part[place] for place in whole], rows)
        if missing:
            log.info("gallery embedded", extra={"pictures": len(missing) - unreadable, "unreadable": unreadable})

    async def add(self, model: LoadedModel, entries: list[Entry], rows: Any) -> int:
        """Entries and their embeddings by `model`, `(n, d)`; one of an id that is there takes its place.

        Called with `changing` held. Returns the number of pictures now.

        Raises:
            RequestError: 413, the gallery is full.
        """
        new = {entry.id for entry in entries} - self._numbers.keys()
        size = self._bytes + sum(entry.size for entry in entries)
        if len(self) + len(new) > self.settings.max_gallery or size > self.settings.gallery_bytes:
            raise RequestError(413, "The gallery is full.", code="gallery_full")
        replaced = [number for entry in entries if (number := self._numbers.get(entry.id)) is not None]
        numbers = [self._keep(entry) for entry in entries]
        if replaced:
            await asyncio.to_thread(model.index.remove, replaced)
        await asyncio.to_thread(model.index.add, numbers, rows)
        return len(self)

    async def remove(self, model: LoadedModel, ids: list[str]) -> int:
        """By id; called with `changing` held. Returns how many were there."""
        numbers = [number for name in dict.fromkeys(ids) if (number := self._numbers.pop(name, None)) is not None]
        for number in numbers:
            self._bytes -= self.entries.pop(number).size
        if numbers:
            await asyncio.to_thread(model.index.remove, numbers)
        return len(numbers)

    def _keep(self, entry: Entry) -> int:
        if (old := self._numbers.get(entry.id)) is not None:
            self._bytes -= self.entries.pop(old).size
        number = next(self._next)
        self.entries[number], self._numbers[entry.id] = entry, number
        self._bytes += entry.size
        return number


def read_gallery(source: str) -> Iterator[Entry]:
    """The pictures of a folder, named by their paths in it, or the rows of anything that `train --dataset` takes.

    Raises:
        ClipDomainError: there is nothing, or nothing that can be read.
    """
    folder = Path(source).expanduser()
    if folder.is_dir() and not any((folder / name).exists() for name in _TABLES):
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _PICTURES and file.is_file())
        if files:
            yield from (Entry(file.relative_to(folder).as_posix(), file.read_bytes) for file in files)
            return
    from hf_clip_domain.data.loading import load_pairs  # brings `datasets`, which a folder does not need

    for split, rows in load_pairs(source).items():
        captions = rows.select_columns("text")
        for place in range(len(rows)):
            metadata = {"text": str(captions[place]["text"][0])}
            yield Entry(f"{split}/{place}", lambda rows=rows, place=place: rows[place]["image"], metadata)


def _pixels(model: LoadedModel, entry: Entry) -> Any:
    try:
        return model.pixels(entry.read())
    except (ClipDomainError, OSError) as error:
        log.warning("a picture of the gallery is left out", extra={"id": entry.id, "why": str(error)})
        return None
