"""Pictures of other sizes than a vision tower was trained with, by interpolating its table of positions.

There is one way to interpolate, for training at changing sizes (`accept_any_size`, on the fly, with gradients to the
table) and for a model of another size (`at_image_size`, once): bicubic, with antialiasing where the grid shrinks.
Transformers' own `interpolate_pos_encoding` has no antialiasing. A tower without such a table, a convolutional one,
takes any size as it is.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_clip_domain.errors import ClipDomainError

_NAMES = ("position_embedding", "position_embeddings")
# In the names of parameters: other kinds of positions, which are not interpolated here.
_OTHER_KINDS = ("position", "rel_pos", "rotary", "rope")


@dataclass(frozen=True)
class ImagePositions:
    """Where a vision tower keeps its table of positions, and of what shape it is.

    Attributes:
        module: the tower's embeddings, whose attribute `name` is the table, an `nn.Embedding` or a parameter.
        patch: side of a patch in pixels.
        size: side in pixels of the pictures that the table is for.
    """

    module: nn.Module
    name: str
    patch: int
    size: int

    @property
    def table(self) -> torch.Tensor:
        """`(p + g * g, d)`: p for tokens that are no patches, such as the class token, then g rows of g patches."""
        table = getattr(self.module, self.name)
        return table.weight if isinstance(table, nn.Embedding) else table.flatten(0, -2)

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.size // self.patch

    @property
    def others(self) -> int:
        """Tokens that are no patches."""
        return len(self.table) - self.grid**2

    def at(self, grid: int) -> torch.Tensor:
        """The table for `grid` by `grid` patches, `(p + grid * grid, d)`; its own grid gives the table itself."""
        return self.table if grid == self.grid else _interpolate(self.table, self.others, self.grid, grid)


def find_image_positions(model: nn.Module) -> ImagePositions | None:
    """The table of positions of the vision tower, also of a wrapped model; `None` where a tower has none.

    Raises:
        ClipDomainError: positions of a kind that cannot be interpolated here.
    """
    tower, config = _vision_tower(model)
    for module in tower.modules():
        for name in _NAMES:
            table = getattr(module, name, None)
            if isinstance(table, nn.Embedding | nn.Parameter):
                positions = ImagePositions(module, name, _side(config.patch_size), _side(config.image_size))
                if positions.others < 0:
                    break
                return positions
    if any(mark in name for name, _ in tower.named_parameters() for mark in _OTHER_KINDS):
        raise ClipDomainError(
            f"{type(tower).__name__} keeps its positions in a way that cannot be interpolated to another picture size: "
            f"use pictures of its own {_side(config.image_size)} pixels."
        )
    return None


def image_size_of(model: nn.Module) -> int:
    """Side in pixels of the pictures that the model is for."""
    return _side(_vision_tower(model)[1].image_size)


def check_image_size(model: nn.Module, size: int) -> None:
    """Refuse a size that cannot be cut into whole patches.

    Raises:
        ClipDomainError: names the nearest sizes that can.
    """
    positions = find_image_positions(model)
    patch = 1 if positions is None else positions.patch
    if size < 1 or size % patch:
        below = max(size // patch, 1) * patch
        raise ClipDomainError(
            f"pictures of {size} pixels cannot be cut into patches of {patch}: take {below} or {below + patch}."
        )


def processor_size(processor: Any) -> int:
    """Side in pixels of the squares that a processor makes."""
    images = processor.image_processor
    crop = getattr(images, "crop_size", None) if getattr(images, "do_center_crop", False) else None
    return next(value for value in dict(crop or images.size).values() if value)


def at_image_size(model: nn.Module, processor: Any, size: int) -> tuple[nn.Module, Any]:
    """A model for pictures of `size` pixels and its processor, to be used and saved as any other.

    The copy shares every weight with `model` but the table of positions; at the model's own size that too. It is for
    `get_image_features` and `get_text_features`, and for saving: where accelerate has replaced the `forward` of a model
    in training, the copy's is still the original's.

    Raises:
        ClipDomainError: `size` is no multiple of the patch, or the positions cannot be interpolated.
    """
    check_image_size(model, size)
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    model = copy.deepcopy(model, shared)
    tower, config = _vision_tower(model)
    if (positions := find_image_positions(model)) is not None and size != positions.size:
        _replace_table(positions, size)
    # The tower keeps a reference of its own to the configuration; in some classes a copy, and its parts others.
    for owner in (config, *(getattr(module, "config", None) for module in tower.modules())):
        if hasattr(owner, "image_size"):
            owner.image_size = size
    return model, _processor_at(processor, size)


def accept_any_size(model: nn.Module) -> None:
    """Let a vision tower embed pictures of any multiple of its patch, in place and without a flag in the call.

    Pictures of its own size are embedded as before. Of others the table is interpolated in every call, so that it
    learns from them.
    """
    positions = find_image_positions(model)
    if positions is None or "interpolate_pos_encoding" in vars(positions.module):
        return
    positions.module.interpolate_pos_encoding = MethodType(_positions_for, positions.module)
    if "interpolate_pos_encoding" in inspect.signature(positions.module.forward).parameters:
        positions.module.register_forward_pre_hook(_ask_to_interpolate, with_kwargs=True)


def _positions_for(module: nn.Module, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """In place of transformers' method of this name: `(1, tokens, d)`."""
    name = next(name for name in _NAMES if hasattr(module, name))
    patch, size = _side(module.patch_size), height
    if height != width or size % patch:
        raise ClipDomainError(f"pictures of {width} by {height} pixels: expected squares of whole patches of {patch}.")
    table = getattr(module, name)
    rows = len(table.weight if isinstance(table, nn.Embedding) else table.flatten(0, -2))
    others = embeddings.shape[1] - (size // patch) ** 2
    native = round((rows - others) ** 0.5) * patch
    return ImagePositions(module, name, patch, native).at(size // patch)[None]


def _ask_to_interpolate(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    pixels = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
    if pixels.shape[-1] != _side(module.image_size) or pixels.shape[-2] != _side(module.image_size):
        kwargs = {**kwargs, "interpolate_pos_encoding": True}
    return args, kwargs


def _interpolate(table: torch.Tensor, others: int, grid: int, new: int) -> torch.Tensor:
    """Rows of a table `(others + grid * grid, d)` for a grid of `new` by `new`; a linear map of the table.

    It is done by two matrix products since MPS does not differentiate torch's antialiased interpolation.
    """
    dtype = torch.promote_types(table.dtype, torch.float32)
    kept, patches = table[:others], table[others:].unflatten(0, (grid, grid)).to(dtype)  # (p, d), (g, g, d)
    with torch.autocast(table.device.type, enabled=False):
        weights = _weights(grid, new).to(dtype).to(table.device)  # (new, g); MPS has no float64
        resized = torch.einsum("ia,jb,abd->ijd", weights, weights, patches)  # (new, new, d)
    return torch.cat([kept, resized.flatten(0, 1).to(table.dtype)])


@lru_cache(maxsize=256)
def _weights(old: int, new: int) -> torch.Tensor:
    """How each of `new` points is made of `old` ones, `(new, old)`: bicubic interpolation along one side."""
    columns = torch.eye(old, dtype=torch.float64)[None, None]  # (1, 1, old, old): each column is one of the points
    return F.interpolate(columns, size=(new, old), mode="bicubic", antialias=new < old)[0, 0]


def _replace_table(positions: ImagePositions, size: int) -> None:
    module, table = positions.module, getattr(positions.module, positions.name)
    grid = size // positions.patch
    rows = positions.at(grid).detach().clone()  # (p + grid * grid, d)
    if isinstance(table, nn.Embedding):
        # Not the constructor, which would draw random numbers that the run counts on.
        resized = nn.Embedding.from_pretrained(rows, freeze=not table.weight.requires_grad).train(table.training)
    else:
        resized = nn.Parameter(rows.view(*table.shape[:-2], *rows.shape), requires_grad=table.requires_grad)
    setattr(module, positions.name, resized)
    if hasattr(module, "position_ids"):
        module.register_buffer("position_ids", torch.arange(len(rows), device=rows.device)[None], persistent=False)
    for part in module.modules():  # some classes keep the patches' numbers in a module of their own
        for name, value in (("num_patches", grid**2), ("num_positions", len(rows))):
            if hasattr(part, name):
                setattr(part, name, value)
        if hasattr(part, "image_size"):
            part.image_size = size if isinstance(part.image_size, int) else (size, size)


def _processor_at(processor: Any, size: int) -> Any:
    """A copy that shares the tokenizer. A picture that is resized larger than the square cut out of it stays so."""
    old = processor_size(processor)
    processor, images = copy.copy(processor), copy.deepcopy(processor.image_processor)
    for name in ("size", "crop_size"):
        if (settings := getattr(images, name, None)) is not None:
            scaled = {key: round(value * size / old) for key, value in dict(settings).items() if value}
            setattr(images, name, type(settings)(**scaled))
    processor.image_processor = images
    return processor


def _vision_tower(model: nn.Module) -> tuple[nn.Module, Any]:
    owner = next((module for module in model.modules() if hasattr(module, "vision_model")), None)
    if owner is None:
        raise ClipDomainError(
            f"{type(model).__name__} has no vision_model: expected a dual encoder such as CLIPModel or SiglipModel."
        )
    return owner.vision_model, owner.config.vision_config


def _side(value: int | tuple[int, ...]) -> int:
    """One side of a square whose sides a configuration may give apart."""
    return value if isinstance(value, int) else value[0]
