"""Where a loss with parameters of its own lives while it trains: in the model, as one more module.

There the optimizer, gradient clipping, data parallel wrappers and checkpoints find it without being told. It is taken
out wherever the model is to be a plain one again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

LOSS_MODULE = "contrastive_loss"
_FILE = "loss.safetensors"


def attach_loss(model: nn.Module, loss: nn.Module) -> None:
    """Make `loss` the model's, in place of an earlier one; a loss without trainable parameters needs no place."""
    model._modules.pop(LOSS_MODULE, None)
    if any(parameter.requires_grad for parameter in loss.parameters()):
        model.add_module(LOSS_MODULE, loss)


@contextmanager
def without_loss(model: nn.Module) -> Iterator[nn.Module | None]:
    """The model as it was before; gives the loss that was taken out, if any."""
    loss = model._modules.pop(LOSS_MODULE, None)
    try:
        yield loss
    finally:
        if loss is not None:
            model.add_module(LOSS_MODULE, loss)


def save_loss(model: nn.Module, folder: Path) -> None:
    """Keep the loss's parameters beside a checkpoint that holds an adapter alone."""
    loss = model._modules.get(LOSS_MODULE)
    if loss is not None:
        save_file({name: value.cpu().contiguous() for name, value in loss.state_dict().items()}, folder / _FILE)


def load_loss(model: nn.Module, folder: Path) -> None:
    """Take up what `save_loss` kept; nothing where there is nothing."""
    loss = model._modules.get(LOSS_MODULE)
    if loss is not None and (folder / _FILE).is_file():
        loss.load_state_dict(load_file(folder / _FILE))
