"""The frozen beginning of a vision tower: how far it reaches, what it computes, and what remains to be trained.

A tower is a row of stages (embeddings, every layer, pooling, projection), each called as the model's own forward
calls it. The leading stages that have nothing to train and draw nothing by chance are a function of the picture alone,
so that their output can be kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionModel, SiglipVisionModel

from hf_clip_domain.models.towers.vision import EfficientNetLiteModel

# Of a configuration, what says where a model comes from and nothing about what it computes.
_ORIGIN = ("_name_or_path", "architectures", "dtype", "transformers_version")


@dataclass(frozen=True)
class Stage:
    """A step of a tower: the modules it runs, and how."""

    name: str
    modules: tuple[nn.Module, ...]
    apply: Callable[[torch.Tensor], torch.Tensor]

    @property
    def is_fixed(self) -> bool:
        """Whether its output follows from its input alone, and no gradient from here reaches a parameter."""
        return not any(_trains(module) or _draws(module) for module in self.modules)


def vision_stages(model: nn.Module) -> list[Stage]:
    """The stages from `pixel_values (n, 3, h, w)` to the image embeddings `(n, d)` before they are normalised.

    Empty for a model whose vision tower is not known: CLIP's, SigLIP's and EfficientNet-Lite (in one stage, since its
    middle layers speak to the projection too) are. The model may be wrapped (PEFT, data parallel training); a
    `VisionTextDualEncoderModel` is read by its vision tower.
    """
    owner = next((module for module in model.modules() if hasattr(module, "vision_model")), None)
    tower = getattr(owner, "vision_model", None)
    if type(tower) is EfficientNetLiteModel:
        whole = Stage("last convolution", (tower,), lambda pixels: tower(pixels).pooler_output)
        return [whole, Stage("projection", (owner.visual_projection,), owner.visual_projection)]
    if type(tower) is CLIPVisionModel:
        first = (tower.embeddings, tower.pre_layrnorm)
        last = Stage("pooling", (tower.post_layernorm,), lambda hidden: tower.post_layernorm(hidden[:, 0, :]))
    elif type(tower) is SiglipVisionModel and tower.use_head:
        first = (tower.embeddings,)
        last = Stage(
            "pooling", (tower.post_layernorm, tower.head), partial(_in_turn, (tower.post_layernorm, tower.head))
        )
    else:
        return []
    stages = [Stage("embeddings", first, partial(_in_turn, first))]
    for number, layer in enumerate(tower.encoder.layers, start=1):
        stages.append(Stage(f"layer {number}", (layer,), partial(_through_layer, layer)))
    stages.append(last)
    if hasattr(owner, "visual_projection"):
        stages.append(Stage("projection", (owner.visual_projection,), owner.visual_projection))
    return stages


@dataclass(frozen=True)
class FrozenPrefix:
    """The first `length` stages of a tower as one function, the others as another.

    `suffix(prefix(pixel_values))` is what the model's `get_image_features` gives.
    """

    stages: tuple[Stage, ...]
    length: int

    @torch.no_grad()
    def prefix(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(n, 3, h, w)` to features `(n, ...)`: hidden states, the pooled output or the embedding."""
        return _run(self.stages[: self.length], pixel_values)

    def suffix(self, features: torch.Tensor) -> torch.Tensor:
        """Features `(n, ...)` to image embeddings `(n, d)` that are not normalised; with gradients."""
        return _run(self.stages[self.length :], features)

    @property
    def whole(self) -> bool:
        """Whether nothing of the tower is left to train."""
        return self.length == len(self.stages)

    def describe(self) -> str:
        return "the image embeddings" if self.whole else f"the vision tower's output after its {self._last.name}"

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the output: modules, their settings, and every weight."""
        digest = hashlib.sha256()
        for stage in self.stages[: self.length]:
            digest.update(stage.name.encode())
            for module in stage.modules:
                _hash_module(digest, module)
        return digest.hexdigest()

    def marks(self) -> tuple[Any, ...]:
        """What changes when a weight of the prefix is written to, replaced or made trainable; reads no weight."""
        tensors = _tensors(self.stages[: self.length])
        return tuple((id(tensor), tensor._version, tensor.requires_grad) for tensor in tensors)

    @property
    def _last(self) -> Stage:
        return self.stages[self.length - 1]


def find_frozen_prefix(model: nn.Module) -> FrozenPrefix | None:
    """The longest beginning of the vision tower that is frozen, by `requires_grad` alone; `None` where there is none.

    Attention dropout ends it too: what is drawn anew in every step cannot be kept.
    """
    stages = tuple(vision_stages(model))
    length = next((place for place, stage in enumerate(stages) if not stage.is_fixed), len(stages))
    return FrozenPrefix(stages, length) if length else None


def _in_turn(modules: tuple[nn.Module, ...], values: torch.Tensor) -> torch.Tensor:
    for module in modules:
        values = module(values)
    return values


def _through_layer(layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    return layer(hidden, None)  # no attention mask: every patch sees every patch


def _run(stages: tuple[Stage, ...], values: torch.Tensor) -> torch.Tensor:
    for stage in stages:
        values = stage.apply(values)
    return values


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _draws(module: nn.Module) -> bool:
    """Whether anything in it drops at random while training: a dropout module, or attention's own share."""
    for part in module.modules():
        share = part.p if isinstance(part, nn.modules.dropout._DropoutNd) else getattr(part, "dropout", 0.0)
        if isinstance(share, float) and share > 0:
            return True
    return False


def _tensors(stages: tuple[Stage, ...]) -> Iterator[torch.Tensor]:
    for stage in stages:
        for module in stage.modules:
            yield from module.parameters()
            yield from module.buffers()


def _hash_module(digest: Any, module: nn.Module) -> None:
    for name, part in module.named_modules():
        settings = {key: value for key, value in vars(part).items() if _is_setting(key, value)}
        config = getattr(part, "config", None)
        if config is not None:
            settings["config"] = {key: value for key, value in config.to_dict().items() if key not in _ORIGIN}
            settings["attention"] = getattr(config, "_attn_implementation", None)
        digest.update(json.dumps([name, type(part).__qualname__, settings], sort_keys=True, default=repr).encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _is_setting(name: str, value: Any) -> bool:
    """A plain value, or a mapping of them (as an adapter's scaling), that is no state of training."""
    if name.startswith("_") or name == "training":
        return False
    values = value.values() if isinstance(value, dict) else (value,)
    return all(isinstance(item, (str, int, float, bool, tuple)) or item is None for item in values)
