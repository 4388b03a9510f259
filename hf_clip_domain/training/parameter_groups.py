"""Smaller learning rates for deeper layers, as parameter groups of whatever optimizer was chosen.

Source: Clark et al. 2020, "ELECTRA", arXiv 2003.10555, section 3.1; depths as in BEiT (Bao et al. 2021, arXiv
2106.08254): what follows the layers learns at the full rate, the last layer at `decay` times it, the layer before at
`decay ** 2`, and so on to the embeddings. Each tower counts its own layers.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn

from hf_clip_domain.models.depth import places


def decay_by_depth(optimizer: torch.optim.Optimizer, model: nn.Module, decay: float) -> None:
    """Split every group of a fresh optimizer by depth; a parameter of no tower keeps the full rate.

    The groups come in order of falling rates, so that the rate which Trainer logs is the highest.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    where = places(model)
    groups = []
    for group in optimizer.param_groups:
        by_power = defaultdict(list)
        for parameter in group["params"]:
            place = where.get(names[parameter])
            by_power[0 if place is None else place.layers + 1 - place.depth].append(parameter)
        groups += [
            {**group, "params": parameters, "lr": group["lr"] * decay**power} for power, parameters in by_power.items()
        ]
    optimizer.param_groups = sorted(groups, key=lambda group: -group["lr"])
