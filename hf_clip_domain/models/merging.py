"""Weights between two checkpoints, or the mean of several: a merged model costs nothing more at inference.

Interpolation keeps what the base knew while most of what tuning taught stays. Source: Wortsman et al. 2022, "Robust
fine-tuning of zero-shot models" (WiSE-FT), equation 1. Means of several tuned models: Wortsman et al. 2022, "Model
soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference time".
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from hf_clip_domain.errors import ClipDomainError

Weights = Mapping[str, torch.Tensor]
NAMED = 3  # tensors an error names


def merge_weights(base: nn.Module | Weights, tuned: nn.Module | Weights, alpha: float) -> dict[str, torch.Tensor]:
    """`(1 - alpha) * base + alpha * tuned` of every tensor of floats, the temperature (`logit_scale`) among them.

    Computed in float32 at least and returned in the base's type, on the CPU. At 0 and 1 the tensors are those of the
    base and of the tuned model, bit for bit. Tensors of other types (positions, counters) have to be equal. An adapter
    loaded with PEFT counts as the plain model that it makes of its base.

    Args:
        base, tuned: models, or what their `state_dict()` returns; of one architecture, tuned from the base.
        alpha: the share of `tuned`, from 0 to 1.

    Returns:
        New tensors, for `model.load_state_dict`.

    Raises:
        ClipDomainError: an alpha outside 0..1, or weights that do not fit each other; names the first tensors.
    """
    if not 0 <= alpha <= 1:
        raise ClipDomainError(f"alpha is {alpha}: expected a share of the tuned model from 0 to 1.")
    base, tuned = weights_of(base), weights_of(tuned)
    check_same_shapes(base, tuned)
    return {name: _mix(value, tuned[name], alpha) for name, value in base.items()}


def uniform_soup(checkpoints: Sequence[nn.Module | Weights]) -> dict[str, torch.Tensor]:
    """The mean of several tuned models' weights; of a single one, its own bit for bit.

    Raises:
        ClipDomainError: no checkpoint, or some that do not fit each other.
    """
    if not checkpoints:
        raise ClipDomainError("a soup needs at least one checkpoint; got none.")
    weights = [weights_of(checkpoint) for checkpoint in checkpoints]
    for other in weights[1:]:
        check_same_shapes(weights[0], other)
    return {name: _mean([own[name] for own in weights]) for name in weights[0]}


def greedy_soup(
    checkpoints: Sequence[nn.Module | Weights], score: Callable[[Weights], float]
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """The mean of those tuned models that improve it: the best alone first, then each next best one that does not
    lower the score (Model soups, recipe 1). So it scores at least as high as the best of them.

    Args:
        score: from weights to what shall be high, on held-out data.

    Returns:
        The weights, and the positions of the checkpoints in them, best first.

    Raises:
        ClipDomainError: no checkpoint, or some that do not fit each other.
    """
    uniform_soup(checkpoints)  # refuses what does not fit before anything is scored
    weights = [weights_of(checkpoint) for checkpoint in checkpoints]
    alone = [score(own) for own in weights]
    order = sorted(range(len(weights)), key=lambda index: -alone[index])
    chosen, best = order[:1], alone[order[0]]
    for index in order[1:]:
        found = score(uniform_soup([weights[member] for member in (*chosen, index)]))
        if found >= best:
            chosen, best = [*chosen, index], found
    return uniform_soup([weights[member] for member in chosen]), chosen


def weights_of(model: nn.Module | Weights) -> Weights:
    """The state dict of a model; of one with a PEFT adapter, of the plain model with the adapter merged into it."""
    if not isinstance(model, nn.Module):
        return model
    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()  # merged in place, which would end its training
    return model.state_dict()


def check_same_shapes(base: Weights, tuned: Weights) -> None:
    """Refuse to merge weights of different architectures, or of stretched and unstretched tables of positions.

    Raises:
        ClipDomainError: names the first tensors that differ and, for positions, how to make them fit.
    """
    if lacking := sorted(set(base) ^ set(tuned)):
        of = "tuned" if lacking[0] in base else "base"
        raise ClipDomainError(
            f"the checkpoints are of different architectures: {len(lacking)} tensors stand in one alone, such as "
            f"{', '.join(lacking[:NAMED])} (not in the {of} model)."
        )
    if differing := [name for name in base if base[name].shape != tuned[name].shape]:
        shapes = ", ".join(
            f"{name} {tuple(base[name].shape)} and {tuple(tuned[name].shape)}" for name in differing[:NAMED]
        )
        hint = ""
        if all("position_embedding" in name for name in differing):
            hint = (
                " The one reads longer texts or larger pictures: load both at one length, "
                "`load_model(base, max_text_length=...)`."
            )
        raise ClipDomainError(f"{len(differing)} tensors differ in shape between base and tuned model: {shapes}.{hint}")
    for name, value in base.items():
        if not value.is_floating_point() and not torch.equal(value.cpu(), tuned[name].cpu()):
            raise ClipDomainError(f"{name} differs between base and tuned model, and holds no floats to interpolate.")


def _mix(base: torch.Tensor, tuned: torch.Tensor, alpha: float) -> torch.Tensor:
    own, other = base.detach().cpu(), tuned.detach().cpu()
    if alpha == 0 or not own.is_floating_point():
        return own.clone()
    if alpha == 1:
        return other.to(own.dtype, copy=True)
    wide = torch.promote_types(own.dtype, torch.float32)
    return torch.lerp(own.to(wide), other.to(wide), alpha).to(own.dtype)


def _mean(values: list[torch.Tensor]) -> torch.Tensor:
    first = values[0].detach().cpu()
    if not first.is_floating_point() or len(values) == 1:
        return first.clone()
    wide = torch.promote_types(first.dtype, torch.float32)
    return torch.stack([value.detach().cpu().to(wide) for value in values]).mean(dim=0).to(first.dtype)
