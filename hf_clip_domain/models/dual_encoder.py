"""What differs between dual encoders (CLIP, SigLIP, VisionTextDualEncoder), asked in one way."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedConfig

from hf_clip_domain.errors import ClipDomainError


def find_logit_scale(model: nn.Module) -> nn.Parameter:
    """The learned temperature, a logarithm, of a model or of one wrapped by PEFT or data parallel training.

    Raises:
        ClipDomainError: the model has none.
    """
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] == "logit_scale":
            return parameter
    raise ClipDomainError(
        f"{type(model).__name__} has no logit_scale: expected a dual encoder such as CLIPModel, SiglipModel or "
        "VisionTextDualEncoderModel."
    )


def find_logit_bias(model: nn.Module) -> nn.Parameter | None:
    """The model's own learned bias of the logits: SigLIP has one, CLIP has none."""
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] == "logit_bias":
            return parameter
    return None


def embedding_width(model: nn.Module) -> int:
    """Dimensions of the space that images and texts share."""
    width = getattr(model.config, "projection_dim", None) or getattr(model.config.text_config, "projection_size", None)
    if width is None:
        raise ClipDomainError(f"{type(model).__name__} does not tell the dimensions of its embeddings.")
    return width


def features(output: Any) -> torch.Tensor:
    """The projected, not normalised embeddings `(n, d)` in what `get_image_features`/`get_text_features` return."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def text_padding(model: nn.Module) -> str:
    """How captions are padded: to the `"longest"` of the batch, or to `"max_length"` where the last token is pooled.

    CLIP pools at the end token and BERT at the first, so padding beyond the caption changes nothing; SigLIP pools the
    very last position and was trained with captions padded to its full length.
    """
    return "max_length" if model.config.model_type.startswith("siglip") else "longest"


def loading_classes(config: PreTrainedConfig) -> tuple[str, str]:
    """The names in `transformers` of the classes that load a saved model and its processor."""
    if config.model_type == "clip":
        return "CLIPModel", "CLIPProcessor"
    return "AutoModel", "AutoProcessor"


def loading_import(config: PreTrainedConfig) -> str:
    """The import without which `transformers` does not know the saved model; empty where it does."""
    return "import hf_clip_domain.models.towers" if config.model_type == "clip_domain_towers" else ""


def check_dual_encoder(config: PreTrainedConfig, name: str) -> None:
    """Refuse a configuration whose model does not embed images and texts into one space; before any weights are read.

    Raises:
        ClipDomainError: what kind of model `name` is, and which kinds are expected.
    """
    model_class = MODEL_MAPPING.get(type(config), None)
    embeds_both = all(hasattr(model_class, f"get_{side}_features") for side in ("image", "text"))
    if not embeds_both:
        raise ClipDomainError(
            f"{name} is a {config.model_type} model, no dual encoder of images and texts: expected CLIP, SigLIP or a "
            "vision-text-dual-encoder."
        )
    if getattr(config.vision_config, "image_size", None) is None:
        raise ClipDomainError(
            f"{name} is a {config.model_type} model that reads pictures as patches of any shape: expected one that "
            "reads squares of one size, such as CLIP, or SigLIP in a fixed size."
        )
