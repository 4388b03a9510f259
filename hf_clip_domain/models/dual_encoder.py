"""What differs between dual encoders (CLIP, SigLIP, VisionTextDualEncoder), asked in one way."""

from __future__ import annotations

from torch import nn

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


def text_padding(model: nn.Module) -> str:
    """How captions are padded: to the `"longest"` of the batch, or to `"max_length"` where the last token is pooled.

    CLIP pools at the end token and BERT at the first, so padding beyond the caption changes nothing; SigLIP pools the
    very last position and was trained with captions padded to its full length.
    """
    return "max_length" if model.config.model_type.startswith("siglip") else "longest"
