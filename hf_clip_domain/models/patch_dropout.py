"""Training on a part of each picture's patches.

Source: Li et al. 2023, "Scaling Language-Image Pre-training via Masking" (FLIP), arXiv 2212.00794.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.image_positions import find_image_positions


class PatchDropout:
    """A forward hook of a tower's embeddings: while `model` trains, it keeps some patches of each picture.

    Which ones is drawn anew for every picture from torch's random numbers; a token that is no patch (the class token)
    always stays. Positions are added before, so every patch keeps its own. At least one patch remains.

    Args:
        model: whose mode decides. Not the embeddings' own, which are in evaluation mode while they are frozen.
        share: of the patches that is left out.
        others: tokens that are no patches; they come first.
    """

    def __init__(self, model: nn.Module, share: float, others: int) -> None:
        self.model, self.share, self.others = model, share, others
        self.counting = False

    def __call__(self, module: nn.Module, args: tuple, tokens: torch.Tensor) -> torch.Tensor | None:
        """`(n, p + g * g, d) -> (n, p + kept, d)`."""
        if not (self.model.training or self.counting):
            return None
        n, patches = len(tokens), tokens.shape[1] - self.others
        kept = max(1, round((1 - self.share) * patches))
        if self.counting:
            return tokens[:, : self.others + kept]
        drawn = torch.rand(n, patches, device=tokens.device).topk(kept, dim=1).indices  # (n, kept)
        chosen = drawn.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]) + self.others  # (n, kept, d)
        return torch.cat([tokens[:, : self.others], tokens.gather(1, chosen)], dim=1)


def install_patch_dropout(model: nn.Module, share: float) -> None:
    """Leave out a share of the patches while `model` trains, in place of an earlier share; 0 for none.

    Raises:
        ClipDomainError: a tower without tokens.
    """
    for module in model.modules():
        for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, PatchDropout)]:
            del module._forward_hooks[key]
    if not share:
        return
    positions = find_image_positions(model)
    if positions is None:
        raise ClipDomainError(
            "--patch_dropout leaves out patches, and the vision tower has no table of their positions: it does not work "
            "on patches that could be left out."
        )
    positions.module.register_forward_hook(PatchDropout(model, share, positions.others))


@contextmanager
def counting_kept_patches(model: nn.Module) -> Iterator[None]:
    """Within, as many patches are left out as in training, whatever the mode, and nothing is drawn."""
    hooks = [hook for m in model.modules() for hook in m._forward_hooks.values() if isinstance(hook, PatchDropout)]
    for hook in hooks:
        hook.counting = True
    try:
        yield
    finally:
        for hook in hooks:
            hook.counting = False
