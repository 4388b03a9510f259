"""Which images and texts of a batch belong together, and how strongly, a few rows at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.types import Targets

# What rows can have in common; each a column of ids in the batch, but "terms", which are rows of 0 and 1.
RELATIONS = ("caption", "image", "label", "terms")


class Positives:
    """The weights `(n, m)` of a batch's pairs, 0 for a negative and above it for a positive, never held as a whole.

    Args:
        targets: see `hf_clip_domain.types.Loss`.
        n, m: images and texts of the batch.
        weights: relation -> how strongly (0 to 1) rows that share it belong together; needed for `targets` that name
            relations. A row and its own caption always belong together with weight 1; where several relations hold,
            the strongest counts. Terms count in proportion to their overlap (Jaccard index).

    Raises:
        ClipDomainError: `targets` whose shape or relations do not fit.
    """

    def __init__(self, targets: Targets, n: int, m: int, weights: Mapping[str, float] | None = None) -> None:
        self.n, self.m = n, m
        self.matrix: torch.Tensor | None = None
        self.relations: list[tuple[torch.Tensor, float, bool]] = []
        if targets is None:
            if n != m:
                raise ClipDomainError(f"{n} images and {m} texts need `targets`: without it row i must match row i.")
        elif isinstance(targets, Mapping):
            for name, weight in (weights or {}).items():
                if name not in targets:
                    raise ClipDomainError(
                        f"the loss takes rows with the same {name} as positives, and the batch has no {name!r} "
                        f"(it has {', '.join(map(repr, targets)) or 'none'}): give the collator relations=[{name!r}]."
                    )
                self._relate(targets[name], weight, name == "terms")
        elif targets.ndim == 1 and len(targets) == n == m:
            self._relate(targets, (weights or {}).get("caption", 1.0), False)
        elif targets.shape == (n, m):
            self.matrix = targets
        else:
            raise ClipDomainError(
                f"targets of shape {tuple(targets.shape)} fit neither {n} group ids nor a matrix of shape ({n}, {m})."
            )

    def _relate(self, values: torch.Tensor, weight: float, overlap: bool) -> None:
        if len(values) != self.n or self.n != self.m:
            raise ClipDomainError(f"{len(values)} rows of ids for {self.n} images and {self.m} texts.")
        self.relations.append((values, weight, overlap))

    @property
    def one_each(self) -> bool:
        """Whether row i matches row i alone."""
        return self.matrix is None and not self.relations

    def count(self, of: str) -> int:
        """How many images (`of="image"`) or texts have any positive."""
        if self.matrix is None:
            return self.n if of == "image" else self.m
        return int((self.matrix > 0).any(dim=1 if of == "image" else 0).sum())

    def rows(self, start: int, stop: int, of: str, like: torch.Tensor) -> torch.Tensor:
        """Weights of the images (`of="image"`) or texts `start:stop` against all of the other side, `(b, m or n)`."""
        if self.matrix is not None:
            block = self.matrix[start:stop] if of == "image" else self.matrix[:, start:stop].T
            return block.to(like.device, like.dtype)
        count = stop - start
        found = torch.zeros(count, self.m if of == "image" else self.n, device=like.device, dtype=like.dtype)
        for values, weight, overlap in self.relations:
            mine = values[start:stop]
            shared = _jaccard(mine, values, like) if overlap else (mine[:, None] == values[None, :]).to(found)
            found = torch.maximum(found, weight * shared)
        own = torch.arange(count, device=like.device)
        found[own, own + start] = 1.0
        return found

    def pairs(self, limit: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """All positive pairs `(image (p,), text (p,))` when all weigh 1 and there are at most `limit`, else `None`."""
        if self.matrix is not None or len(self.relations) > 1:
            return None
        if self.one_each:
            own = torch.arange(self.n)
            return own, own
        (values, weight, overlap), *_ = self.relations
        if overlap or weight != 1.0:
            return None
        return _equal_pairs(values, limit)


def _equal_pairs(values: torch.Tensor, limit: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Every `(i, j)` with `values[i] == values[j]`, or `None` when there are more than `limit`."""
    order = values.argsort()
    _, counts = values[order].unique_consecutive(return_counts=True)
    if int(counts.square().sum()) > limit:
        return None
    first = counts.cumsum(0) - counts
    each = counts.repeat_interleave(counts)  # (n,) size of every sorted row's group
    begin = first.repeat_interleave(counts)
    left = torch.arange(len(values), device=values.device).repeat_interleave(each)
    within = torch.arange(len(left), device=values.device) - (each.cumsum(0) - each).repeat_interleave(each)
    return order[left], order[begin.repeat_interleave(each) + within]


def _jaccard(mine: torch.Tensor, all_rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Share of common terms, `(b, f), (n, f) -> (b, n)`; 0 for two rows without any."""
    mine, all_rows = mine.to(like), all_rows.to(like)
    common = mine @ all_rows.T
    either = mine.sum(1)[:, None] + all_rows.sum(1) - common
    return common / either.clamp(min=1)
