"""Where in a dual encoder a parameter lies: in which tower, how deep, and what of all of it trains."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from hf_clip_domain.errors import ClipDomainError

TOWERS = ("vision", "text")
# CLIP and VisionTextDualEncoder project beside their towers, SigLIP by the heads of its towers.
_PROJECTION = re.compile(r"(visual_projection|text_projection|(vision|text)_model\.head)\.")


@dataclass(frozen=True)
class Place:
    """Depth 0 is what comes before the tower's layers (embeddings), `k` its k-th layer, `layers + 1` what follows."""

    tower: str
    depth: int
    layers: int
    projection: bool  # from the tower into the space that images and texts share


def plain(model: nn.Module) -> nn.Module:
    """The dual encoder itself, where PEFT has wrapped it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def layer_stack(model: nn.Module, tower: str) -> tuple[str, nn.ModuleList]:
    """Name and modules of a tower's transformer layers, such as `vision_model.encoder.layers`.

    Raises:
        ClipDomainError: the model has no such tower, or it has no list of layers.
    """
    root = getattr(plain(model), f"{tower}_model", None)
    if root is None:
        raise ClipDomainError(f"{type(plain(model)).__name__} has no {tower} tower ({tower}_model).")
    for name, module in root.named_modules():
        if isinstance(module, nn.ModuleList) and len(module):
            return f"{tower}_model.{name}", module
    raise ClipDomainError(f"the {tower} tower ({type(root).__name__}) has no list of layers to count.")


def places(model: nn.Module) -> dict[str, Place]:
    """The place of every parameter, by its name in `model.named_parameters()`.

    What belongs to no tower (`logit_scale`, `logit_bias`, a loss's own parameters) has none.
    """
    inner, found = plain(model), {}
    prefix = next((name + "." for name, module in model.named_modules() if module is inner and name), "")
    for tower in TOWERS:
        stack, layers = layer_stack(model, tower)
        in_layer = re.compile(re.escape(stack) + r"\.(\d+)\.")
        own = (f"{tower}_model.", "visual_projection." if tower == "vision" else "text_projection.")
        depth = 0
        for name, _ in inner.named_parameters():
            if name.startswith(own):
                projection = bool(_PROJECTION.match(name))
                if match := in_layer.match(name):
                    depth = int(match[1]) + 1
                elif projection or depth:  # modules are registered in the order in which they are applied
                    depth = len(layers) + 1
                place = Place(tower, len(layers) + 1 if projection else depth, len(layers), projection)
                found[prefix + name] = place
    return found


def trained(model: nn.Module) -> tuple[int, int]:
    """Numbers that train, and all numbers."""
    counts = [(p.numel() * p.requires_grad, p.numel()) for p in model.parameters()]
    return sum(train for train, _ in counts), sum(total for _, total in counts)


def describe_trained(model: nn.Module) -> str:
    """A sentence such as `Training 2.3% of 3.98 M parameters (92,161).`"""
    training, total = trained(model)
    return f"Training {training / total:.1%} of {total / 1e6:.3g} M parameters ({training:,})."
