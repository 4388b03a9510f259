"""Windows of requests as the server wrote them, read with suspicion: a file may be cut short, or another model's."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.sketches import BUCKETS, restore
from hf_clip_domain.serving.statistics import FORMAT, PATTERN, SERIES

# The server's own windows stay far below; more is no window, and is not unpacked.
_LARGEST = 64 << 20


@dataclass(frozen=True)
class Window:
    """What some requests looked like.

    Attributes:
        name: of its file, or of the first and last one when several were pooled.
        started, ended: seconds since 1970.
        requests: how many.
        series: by the names of `SERIES`.
        token_counts: `(BUCKETS,)` int64, in how many texts each hashed token occurs.
        texts: how many texts that was counted over.
    """

    name: str
    started: float
    ended: float
    requests: int
    series: dict[str, np.ndarray]
    token_counts: np.ndarray
    texts: int

    @property
    def images(self) -> np.ndarray:
        """Unit vectors `(n, 64)`; a picture asked for several times is one picture."""
        return restore(np.unique(self.series["image_sketches"], axis=0))

    @property
    def pair_margins(self) -> np.ndarray:
        """As `pair_scores`."""
        return np.unique(self.series["pair_margins"])

    @property
    def qualities(self) -> np.ndarray:
        """`(n, 4)` of different pictures."""
        return np.unique(self.series["image_qualities"], axis=0)

    @property
    def text_vectors(self) -> np.ndarray:
        """Unit vectors `(m, 64)`, repeated ones too: how often a query is asked belongs to the traffic."""
        return restore(self.series["text_sketches"])

    @property
    def pair_scores(self) -> np.ndarray:
        """`(p,)` of different pairs: the same pair has the same score to the last bit."""
        return np.unique(self.series["pair_scores"])


def read_windows(
    folder: str | Path, *, revision: str, resolution: int, newest: int | None = None
) -> tuple[list[Window], dict[str, str]]:
    """The windows of a folder, the oldest first, and why files were left out, by name.

    Args:
        revision, resolution: of the model that the windows must be of.
        newest: read so many files at most.

    Raises:
        ClipDomainError: no folder, no file in it, or none of this model.
    """
    if not Path(folder).is_dir():
        raise ClipDomainError(f"--statistics {folder}: there is no such folder; the server writes it.")
    files = sorted(Path(folder).glob(PATTERN))
    if not files:
        raise ClipDomainError(f"--statistics {folder} holds no window ({PATTERN}): the server has written none yet.")
    windows, skipped = [], {}
    for file in files[-newest if newest else 0 :]:
        try:
            windows.append(read_window(file, revision=revision, resolution=resolution))
        except ClipDomainError as error:
            skipped[file.name] = str(error)
    if not windows:
        name, reason = next(reversed(skipped.items()))
        raise ClipDomainError(f"--statistics {folder}: none of {len(skipped)} files can be used; {name}: {reason}")
    return windows, skipped


def read_window(file: Path, *, revision: str, resolution: int) -> Window:
    """One file.

    Raises:
        ClipDomainError: damaged, of another format, or of another model.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > _LARGEST:
                raise ValueError("it is larger than any window")
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in (*SERIES, "token_buckets", "token_counts")}
            meta = json.loads(str(arrays["meta"]))
        if meta["format"] != FORMAT:
            raise ClipDomainError(f"is of format {meta['format']}, and this version reads {FORMAT}.")
        theirs, size = str(meta["revision"]), int(meta["resolution"])
        series = {name: _checked(name, found[name]) for name in SERIES}
        tokens, texts = _token_counts(found["token_buckets"], found["token_counts"]), int(meta["texts"])
        started, ended, requests = float(meta["started"]), float(meta["ended"]), int(meta["requests"])
    except ClipDomainError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, OverflowError, zipfile.BadZipFile) as error:
        raise ClipDomainError(f"is damaged or cut short ({type(error).__name__}: {error}).") from error
    if theirs != revision:
        raise ClipDomainError(
            f"is of another model: its weights are {theirs[:12]} and the reference's {revision[:12]}. Make a reference "
            "for the model that is served (--make_reference)."
        )
    if size != resolution:
        raise ClipDomainError(f"was embedded at {size} px, and the reference at {resolution} px.")
    return Window(file.name, started, ended, requests, series, tokens, texts)


def pooled(windows: Sequence[Window]) -> Window:
    """Several windows as one."""
    if len(windows) == 1:
        return windows[0]
    first, last = windows[0], windows[-1]
    return Window(
        name=f"{first.name} to {last.name}",
        started=first.started,
        ended=last.ended,
        requests=sum(window.requests for window in windows),
        series={name: np.concatenate([window.series[name] for window in windows]) for name in SERIES},
        token_counts=np.sum([window.token_counts for window in windows], axis=0),
        texts=sum(window.texts for window in windows),
    )


def _checked(name: str, rows: np.ndarray) -> np.ndarray:
    kind, shape = SERIES[name]
    if rows.dtype != kind or rows.shape[1:] != shape or rows.ndim != 1 + len(shape):
        raise ValueError(f"{name} is {rows.dtype} of shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{name} is not finite")
    return rows


def _token_counts(places: np.ndarray, counts: np.ndarray) -> np.ndarray:
    if places.shape != counts.shape or (len(places) and places.max() >= BUCKETS):
        raise ValueError("its tokens do not fit their counts")
    return np.bincount(places.astype(np.int64), weights=counts, minlength=BUCKETS).astype(np.int64)
