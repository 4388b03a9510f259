"""How alike an image and a text are: `(n, d), (m, d) -> (n, m)`, larger is more alike, without temperature.

One similarity, chosen by name, is used alike by the loss, by retrieval and by whoever serves the model.
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from hf_clip_domain.errors import ClipDomainError

SIMILARITY_FILE, SIMILARITY_WEIGHTS = "similarity.json", "similarity.safetensors"
SimilarityFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cosine(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """Cosine of the angle, in [-1, 1]: what CLIP and SigLIP are trained with. `(n, d), (m, d) -> (n, m)`"""
    return F.normalize(image_embeds, dim=-1) @ F.normalize(text_embeds, dim=-1).T


def dot(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """Inner product, unbounded: length counts as confidence. `(n, d), (m, d) -> (n, m)`"""
    return image_embeds @ text_embeds.T


def euclidean(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """Negative squared distance, at most 0. `(n, d), (m, d) -> (n, m)`

    Expanded as `2ab - |a|^2 - |b|^2`, so that no `(n, m, d)` tensor is ever held.
    """
    image_squares = image_embeds.square().sum(dim=-1, keepdim=True)  # (n, 1)
    text_squares = text_embeds.square().sum(dim=-1)  # (m,)
    return (2 * image_embeds @ text_embeds.T - image_squares - text_squares).clamp(max=0)  # (n, m)


# Length carries information for these two, so embeddings must reach them as the model projects them.
dot.normalise = False
euclidean.normalise = False


class Bilinear(nn.Module):
    """`x^T W y` of L2-normalised embeddings with a learned `W`, which begins as the identity: as the cosine.

    Args:
        dim: dimensions of the embeddings; `None` until the model that it is to train with is known, see `fit`.
    """

    normalise = True

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, 0))
        if dim is not None:
            self.fit(dim)

    def fit(self, dim: int) -> None:
        """Make `W` a `(dim, dim)` identity, unless it has that shape already."""
        if self.weight.shape != (dim, dim):
            self.weight = nn.Parameter(torch.eye(dim))

    def forward(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        return image_embeds @ self.weight @ text_embeds.T


SIMILARITIES: dict[str, SimilarityFunction | type] = {
    "cosine": cosine,
    "dot": dot,
    "euclidean": euclidean,
    "bilinear": Bilinear,
}


def build_similarity(similarity: str | SimilarityFunction) -> SimilarityFunction:
    """Resolve a similarity.

    Args:
        similarity: `"cosine"`, `"dot"`, `"euclidean"`, `"bilinear"` (learned), a dotted path `"package.module:Name"` (a function, or
            a class without arguments whose instances are callable), or the callable itself.

    Raises:
        ClipDomainError: the name is unknown, or the path leads to nothing callable.
    """
    if not isinstance(similarity, str):
        if callable(similarity):
            return similarity() if isinstance(similarity, type) else similarity
        raise ClipDomainError(f"similarity is {similarity!r}; give a name ({_names()}) or a function.")
    if similarity in SIMILARITIES:
        found = SIMILARITIES[similarity]
        return found() if isinstance(found, type) else found
    if ":" not in similarity:
        raise ClipDomainError(
            f'unknown similarity "{similarity}"; choose one of {_names()}, or give "package.module:Name".'
        )
    module_name, _, attribute = similarity.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ClipDomainError(
            f'similarity "{similarity}" cannot be imported ({error}); expected "package.module:Name" on '
            f"the Python path, or one of {_names()}."
        ) from error
    if not callable(found):
        raise ClipDomainError(
            f'similarity "{similarity}" is a {type(found).__name__}; expected a function (n, d), (m, d) -> (n, m).'
        )
    return found() if isinstance(found, type) else found


def wants_normalised(similarity: SimilarityFunction) -> bool:
    """Whether embeddings are L2-normalised before this similarity sees them.

    True unless the function (or object) carries `normalise = False`, as `dot` and `euclidean` do.
    """
    return bool(getattr(similarity, "normalise", True))


def save_similarity(similarity: SimilarityFunction, folder: str | Path) -> None:
    """Write `folder/similarity.json`, and the weights of a learned one beside it; the cosine, which every reader of a
    CLIP model takes for granted, needs no file.

    Raises:
        ClipDomainError: a function without an importable name, which nobody could load again.
    """
    if similarity is cosine:
        return
    kind = type(similarity) if isinstance(similarity, nn.Module) else similarity
    known = (name for name, found in SIMILARITIES.items() if found is kind)
    name = next(known, f"{kind.__module__}:{getattr(kind, '__qualname__', '')}")
    if _import(name) is not kind:
        raise ClipDomainError(
            f"the similarity {similarity!r} has no importable name: define it at the top of a module."
        )
    folder = Path(folder)
    (folder / SIMILARITY_FILE).write_text(json.dumps({"name": name}) + "\n", encoding="utf-8")
    if isinstance(similarity, nn.Module):
        weights = {key: value.detach().cpu().contiguous() for key, value in similarity.state_dict().items()}
        save_file(weights, folder / SIMILARITY_WEIGHTS)


def _import(name: str) -> Any:
    """What a name of `SIMILARITIES` or a dotted path stands for, or `None`."""
    if name in SIMILARITIES:
        return SIMILARITIES[name]
    module_name, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError):
        return None


def load_similarity(file: str | Path, weights: str | Path | None = None) -> SimilarityFunction:
    """The similarity that `save_similarity` wrote; `weights` is the path of a learned one's."""
    similarity = build_similarity(json.loads(Path(file).read_text(encoding="utf-8"))["name"])
    if isinstance(similarity, nn.Module):
        if weights is None or not Path(weights).is_file():
            raise ClipDomainError(f"{file} names a learned similarity, and its {SIMILARITY_WEIGHTS} is missing.")
        tensors = load_file(weights)
        if hasattr(similarity, "fit"):
            similarity.fit(len(tensors["weight"]))
        similarity.load_state_dict(tensors)
    return similarity


def blend_similarities(base: SimilarityFunction, tuned: SimilarityFunction, alpha: float) -> SimilarityFunction:
    """The similarity of a model whose weights lie `alpha` of the way from base to tuned: a learned one is interpolated
    like them, from the base's or, where that is the cosine, from how it began; others have to be equal.

    Raises:
        ClipDomainError: two different similarities, between which there is nothing.
    """
    base, tuned = build_similarity(base), build_similarity(tuned)
    if not isinstance(tuned, nn.Module):
        if tuned is base:
            return tuned
    elif type(base) is type(tuned) or (base is cosine and hasattr(tuned, "fit")):
        blended = copy.deepcopy(tuned).cpu()
        if base is cosine:
            base = type(tuned)()
            base.fit(len(tuned.state_dict()["weight"]))
        first, last = base.state_dict(), blended.state_dict()
        blended.load_state_dict({name: torch.lerp(first[name].cpu(), last[name], alpha) for name in last})
        return blended
    names = (getattr(kind, "__name__", type(kind).__name__) for kind in (base, tuned))
    raise ClipDomainError(
        "the base model compares by {} and the tuned one by {}: there is no model between them.".format(*names)
    )


def without_gradient(similarity: SimilarityFunction) -> SimilarityFunction:
    """The similarity as embeddings on the CPU are compared: a learned one wherever it lives, and not to train it."""
    if not isinstance(similarity, nn.Module):
        return similarity

    def compare(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        device = next(similarity.parameters(), image_embeds).device
        with torch.no_grad():
            return similarity(image_embeds.to(device), text_embeds.to(device)).to(image_embeds.device)

    compare.normalise = wants_normalised(similarity)
    return compare


def _names() -> str:
    return ", ".join(f'"{name}"' for name in SIMILARITIES)
