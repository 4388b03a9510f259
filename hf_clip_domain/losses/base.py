"""From a name or a dotted path to a loss, and from a user's targets to a matrix of positives."""

from __future__ import annotations

import difflib
import importlib

import torch
from torch import nn

from hf_clip_domain.errors import ClipDomainError

_BUILT_IN = {"info_nce": "hf_clip_domain.losses.info_nce:InfoNCE"}


def available_losses() -> list[str]:
    """Names that `build_loss` accepts besides a dotted path."""
    return sorted(_BUILT_IN)


def build_loss(name: str, **settings) -> nn.Module:
    """A loss by its name (`"info_nce"`) or by a dotted path to the user's class (`"package.module:Class"`).

    Args:
        name: one of `available_losses()`, or `package.module:Class`.
        settings: keyword arguments of the loss.

    Raises:
        ClipDomainError: unknown name, a path that cannot be imported, or settings the class does not take.
    """
    path = _BUILT_IN.get(name, name)
    module_name, _, attribute = path.partition(":")
    if not attribute:
        near = difflib.get_close_matches(name, available_losses(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ClipDomainError(
            f"--loss {name!r} is neither a built-in loss ({', '.join(available_losses())}) nor a path of the form "
            f"package.module:Class.{hint}"
        )
    try:
        loss_class = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ClipDomainError(
            f"--loss {name!r} could not be imported: {error}. The module must be importable from the folder the "
            f"command runs in (or PYTHONPATH), and {attribute!r} must be a class in it."
        ) from error
    try:
        loss = loss_class(**settings)
    except TypeError as error:
        raise ClipDomainError(f"--loss {name!r} could not be built with {settings}: {error}.") from error
    if not isinstance(loss, nn.Module):
        raise ClipDomainError(f"--loss {name!r} gives a {type(loss).__name__}; a loss must be a torch.nn.Module.")
    return loss


def positives_matrix(targets: torch.Tensor | None, n: int, m: int, device: torch.device) -> torch.Tensor | None:
    """Which pairs are positives, as weights of shape `(n, m)`; `None` when row i matches row i alone.

    Args:
        targets: `None`, a boolean or graded `(n, m)` matrix, or `(n,)` group ids (then `n == m`).

    Raises:
        ClipDomainError: a shape that fits neither form.
    """
    if targets is None:
        if n != m:
            raise ClipDomainError(f"{n} images and {m} texts need `targets`: without it row i must match row i.")
        return None
    if targets.ndim == 1 and len(targets) == n == m:
        return (targets[:, None] == targets[None, :]).to(device)  # (n, n)
    if targets.shape == (n, m):
        return targets.to(device)
    raise ClipDomainError(
        f"targets of shape {tuple(targets.shape)} fit neither {n} group ids nor a matrix of shape ({n}, {m})."
    )
