"""What a step will take in memory, predicted from four passes over a few rows.

A pass (embedding and its backward) makes and frees the same tensors in the same order whatever the number of rows k,
and each tensor's size is `a + b k`. Passes of two different k therefore tell, for every moment of the pass, how many
bytes are alive at any k; the peak is the largest of these straight lines. Tensors are counted as torch makes them, on
any device; what kernels take for themselves is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_clip_domain.training.micro_batching import MicroBatches

Lines = tuple[tuple[float, float], ...]

_FEWER, MOST_PROBED = 2, 4  # rows of the passes that are measured


class LiveTensors(TorchDispatchMode):
    """Counts, after each operation, the bytes of the tensors made within the block that are still alive.

    Attributes:
        live: bytes now. history: bytes after every operation that made a tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.history: list[int] = []
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # What the operation was given existed before; it may be what it returns (in place, views).
        old = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        output = function(*args, **(kwargs or {}))
        made = False
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor) and id(leaf.untyped_storage()) not in old:
                made |= self._count(leaf.untyped_storage())
        if made:
            self.history.append(self.live)
        return output

    def _count(self, storage: torch.UntypedStorage) -> bool:
        key, size = id(storage), storage.nbytes()
        if not size or key in self._known:
            return False

        def freed(_):
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)
        self.live += size
        return True


@dataclass(frozen=True)
class MemoryModel:
    """Bytes that forward and backward of a contrastive batch take, above what is taken when the step begins.

    Attributes:
        first: `(a, b)`: a pass over k rows takes the largest of `a + b k`, the gradients that it makes included.
        again: likewise of a pass that adds to gradients, these aside.
        held: bytes of activations that a row keeps between its forward and its backward pass.
        gradients: bytes of the gradients.
        loss: bytes that the loss takes, a row of the contrastive batch.
    """

    first: Lines
    again: Lines
    held: float
    gradients: int
    loss: float

    def need(self, micro: MicroBatches, rows: int) -> int:
        """Bytes at the peak of a step of `rows` pairs in these micro-batches."""
        size = rows if micro.size is None else min(micro.size, rows)
        chunks = -(-rows // size)
        kept = min(micro.kept, chunks)
        held = self.held * size
        # The loss, while all kept activations wait; then the backward pass of the first micro-batch, and of a later one.
        peaks = [kept * held + self.loss * rows, (kept - 1) * held + _height(self.first, size)]
        if chunks > 1:
            peaks.append(self.gradients + max(kept - 2, 0) * held + _height(self.again, size))
        return int(max(peaks))

    def plan(self, rows: int, room: int) -> MicroBatches:
        """The micro-batches that use `room` bytes best: as few rows embedded twice as possible.

        The whole batch where that fits. Otherwise several small micro-batches keep their activations, which uses the
        room up to the size of one, and the others are recomputed. At least one row, which may be more than fits.
        """
        if self.need(MicroBatches(None), rows) <= room:
            return MicroBatches(None)
        capacity = _largest(rows, lambda size: self.need(MicroBatches(size), rows) <= room)
        size = max(1, min(capacity // _PARTS, _EFFICIENT))
        size = -(-rows // -(-rows // size))  # equal micro-batches rather than a small last one
        kept = _largest(-(-rows // size), lambda count: self.need(MicroBatches(size, count), rows) <= room)
        return MicroBatches(size, kept)


# Of a step whose few probed rows do not fit already: one row at a time is tried.
NOTHING_FITS = MemoryModel(first=((2.0**62, 0),), again=((2.0**62, 0),), held=0, gradients=0, loss=0)

# Into how many micro-batches the rows that fit are cut, but for more than so many rows there is no speed to gain.
_PARTS, _EFFICIENT = 4, 64


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to `most` that fits, if any does; 1 otherwise."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def fit_memory_model(
    embed: Callable[[int], torch.Tensor],
    forget: Callable[[], None],
    contrast: Callable[[], torch.Tensor],
    *,
    contrast_rows: int,
    gradients: int,
) -> MemoryModel:
    """Measure a few rows, and conclude for any number.

    Args:
        embed: embeds the first k rows of a batch of at least `MOST_PROBED`; a scalar that depends on every embedding.
        forget: drops the gradients.
        contrast: a loss of `contrast_rows` embeddings that need gradients.
        gradients: bytes of the gradients.
    """
    rows = MOST_PROBED - _FEWER
    passes = []
    for count in (_FEWER, MOST_PROBED):
        forget()
        passes.append((_one_pass(lambda count=count: embed(count)), _one_pass(lambda count=count: embed(count))))
    (first_few, again_few), (first_more, again_more) = passes
    loss, _ = _one_pass(contrast)
    return MemoryModel(
        first=_lines(first_few[0], first_more[0], rows),
        again=_lines(again_few[0], again_more[0], rows),
        held=(again_more[1] - again_few[1]) / rows,
        gradients=gradients,
        loss=max(loss) / contrast_rows,
    )


def _lines(few: list[int], more: list[int], rows: int) -> Lines:
    """The lines through what was alive at each moment of a pass over `_FEWER` rows, and over so many more."""
    if len(few) != len(more):  # some operation was chosen by the number of rows: the peaks alone
        few, more = [max(few)], [max(more)]
    slopes = [(high - low) / rows for low, high in zip(few, more, strict=True)]
    return _envelope({(low - slope * _FEWER, slope) for low, slope in zip(few, slopes, strict=True)})


def _height(lines: Lines, rows: int) -> float:
    return max(a + b * rows for a, b in lines)


def _one_pass(forward: Callable[[], torch.Tensor]) -> tuple[list[int], int]:
    """Bytes alive after every operation of forward and backward, and those between the two."""
    with LiveTensors() as tensors:
        result = forward()
        held = tensors.live
        result.backward()
    return tensors.history, held


def _envelope(lines: set[tuple[float, float]]) -> Lines:
    """Those of the lines `a + b k` that are the largest for some k of at least 1."""
    best: list[tuple[float, float]] = []
    for a, b in sorted(lines, key=lambda line: (-line[0], -line[1])):
        if not best or b > best[-1][1]:
            best.append((a, b))
    return tuple(best)
