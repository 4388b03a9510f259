"""Matrices of the towers' layers trained by Muon, everything else by AdamW, as one optimizer.

Muon takes the momentum of a matrix for its direction alone: the nearest orthogonal matrix, so that every direction of
the layer learns at the same rate, where AdamW's update is ruled by the few that the batch shouts loudest.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", with the rate that makes the
update's size like AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training", arXiv 2502.16982, equation 4).
torch has a Muon of its own, which always computes in bfloat16, slow on a CPU without that format, and matrix by matrix,
so that a step short of memory stops with some of them changed.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn
from torch.optim import AdamW

from hf_clip_domain.models.depth import places

# Of the iteration towards the orthogonal matrix, X <- aX + (bA + cAA)X with A = XX': steepest at zero (Jordan et al.).
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
# Matrices of one shape are computed together up to so many numbers: small ones gain, large ones need no more memory.
_TOGETHER = 4_000_000


class MuonAdamW(AdamW):
    """AdamW, but for groups with `muon: True`, whose matrices take Muon's step with the momentum `betas[0]`.

    Weight decay is decoupled, by a group's own rate, in both.

    Args:
        dtype: in which the orthogonal matrices are computed; momentum and weights keep their own.
        others: AdamW's arguments.
    """

    def __init__(self, params, *, dtype: torch.dtype = torch.float32, **others) -> None:
        super().__init__(params, **others)
        self.dtype = dtype
        # A fused AdamW would be handed scaled gradients, and be trusted to leave out a step whose gradients overflowed.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure=None):
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group.get("muon")]
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group.get("muon"):
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict) -> None:
        """All that takes memory comes before the first change, so that a step which finds none can be taken again."""
        matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
        momentum, rate = group["betas"][0], group["lr"]
        for matrix in matrices:
            if "momentum" not in self.state[matrix]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)
                self.state[matrix]["step"] = torch.tensor(0.0)  # for AdamW, which looks for it where it loads a state
        kept = [self.state[matrix]["momentum"] for matrix in matrices]
        ahead = [  # Nesterov's: the momentum as it will be, and a step further
            matrix.grad.lerp(old.lerp(matrix.grad, 1 - momentum), momentum)
            for matrix, old in zip(matrices, kept, strict=True)
        ]
        directions = orthogonal(ahead, self.dtype)
        for matrix, old, direction in zip(matrices, kept, directions, strict=True):
            old.lerp_(matrix.grad, 1 - momentum)
            matrix.mul_(1 - rate * group["weight_decay"])
            matrix.add_(direction, alpha=-0.2 * rate * max(matrix.shape) ** 0.5)


def orthogonal(matrices: list[torch.Tensor], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """The nearest (semi-)orthogonal matrix of each `(m, n)`, roughly, in the same shapes and in `dtype`.

    Five Newton-Schulz iterations of the fifth order: they keep the singular vectors and bring the singular values near 1
    (about 0.7 to 1.2), but for those hundreds of times smaller than the largest. A matrix of zeros stays one.
    """
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for at, matrix in enumerate(matrices):
        by_shape[min(matrix.shape), max(matrix.shape)].append(at)
    found: list[torch.Tensor] = list(matrices)
    for shape, members in by_shape.items():
        together = max(1, _TOGETHER // (shape[0] * shape[1]))
        for start in range(0, len(members), together):
            some = members[start : start + together]
            for at, result in zip(some, _iterate([_wide(matrices[at]) for at in some], dtype), strict=True):
                found[at] = result if matrices[at].shape == shape else result.mT
    return found


def _wide(matrix: torch.Tensor) -> torch.Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT


def _iterate(wide: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    x = torch.stack(wide)
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-30)).to(dtype)
    for _ in range(_ITERATIONS):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=_B, alpha=_C), x, beta=_A)
    return x


def train_matrices_by_muon(optimizer: MuonAdamW, model: nn.Module, ratio: float) -> None:
    """Move the matrices of the towers' layers into groups of their own, at `ratio` times their group's rate.

    These groups come last, so that the rate which Trainer logs is AdamW's.
    """
    layers = places(model)
    names = {parameter: name for name, parameter in model.named_parameters()}

    def is_matrix(parameter: nn.Parameter) -> bool:
        place = layers.get(names[parameter])
        return parameter.ndim == 2 and place is not None and 0 < place.depth <= place.layers

    others, matrices = [], []
    for group in optimizer.param_groups:
        rest = [parameter for parameter in group["params"] if not is_matrix(parameter)]
        own = [parameter for parameter in group["params"] if is_matrix(parameter)]
        others += [{**group, "params": rest}] if rest else []
        matrices += [{**group, "params": own, "lr": ratio * group["lr"], "muon": True}] if own else []
    optimizer.param_groups = others + matrices
