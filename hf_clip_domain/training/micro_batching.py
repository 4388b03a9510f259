"""Embedding a contrastive batch in micro-batches, with the gradient of the whole batch.

A contrastive loss needs all embeddings of the batch at once, but not all activations. Each micro-batch is embedded
under activation checkpointing, the embeddings are joined, and one loss is differentiated by one ordinary `backward`:
the activations of one micro-batch at a time are recomputed. The gradient is the full batch's, at the price of one
more forward pass. Because it is one ordinary graph it composes with loss scaling, LoRA, a learned temperature and
data parallel training, for which all micro-batches happen inside a single call of the wrapped model.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; the same gradient as Gao et al. 2021,
"Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache), without its second backward.
"""

from __future__ import annotations

import functools
import types

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.dual_encoder import find_logit_scale


def install_embedding_forward(model: nn.Module) -> None:
    """Teach `model` the call `model(**inputs, micro_batch_size=k)`; every other call stays as it was.

    The new call returns `{"image_embeds" (n, d), "text_embeds" (n, d), "logit_scale" ()}`, the scale already
    exponentiated. It has to be the model's own `forward`, since accelerate patches that with autocast and
    DistributedDataParallel prepares its gradient buckets around exactly one call a step.
    """
    if getattr(model, "_embeds_in_micro_batches", False):
        return
    original = model.forward

    @functools.wraps(original)
    def forward(self, *args, **kwargs):
        if "micro_batch_size" not in kwargs:
            return original(*args, **kwargs)
        size = kwargs.pop("micro_batch_size")
        image_embeds, text_embeds = embed_in_micro_batches(original, kwargs, size)
        # The scale leaves through the same door as the embeddings, so that data parallel wrappers know it is used.
        logit_scale = find_logit_scale(self)
        return {"image_embeds": image_embeds, "text_embeds": text_embeds, "logit_scale": logit_scale.exp()}

    model.forward = types.MethodType(forward, model)
    model._embeds_in_micro_batches = True


def embed_in_micro_batches(encode, inputs: dict, size: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and text embeddings of `inputs`, never holding the activations of more than `size` rows.

    Args:
        encode: a dual encoder's forward; its output has `image_embeds` and `text_embeds`.
        inputs: what it takes; tensors of `n` rows are cut along their first dimension.
        size: rows a micro-batch; `None` or at least `n` embeds all at once, with nothing recomputed.

    Returns:
        Two tensors of shape `(n, d)`.
    """
    n = len(inputs["pixel_values"])
    if size is None or size >= n:
        return _embed(encode, inputs)
    images, texts = [], []
    for start in range(0, n, size):
        chunk = {
            key: value[start : start + size] if torch.is_tensor(value) and value.ndim and len(value) == n else value
            for key, value in inputs.items()
        }
        if torch.is_grad_enabled():
            image, text = checkpoint(_embed, encode, chunk, use_reentrant=False)
        else:
            image, text = _embed(encode, chunk)
        images.append(image)
        texts.append(text)
    return torch.cat(images), torch.cat(texts)


def _embed(encode, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    output = encode(**inputs)
    image, text = getattr(output, "image_embeds", None), getattr(output, "text_embeds", None)
    if image is None or text is None:
        raise ClipDomainError(
            f"the model's output ({type(output).__name__}) has no image_embeds and text_embeds: ClipTrainer trains dual "
            "encoders such as CLIPModel, SiglipModel or VisionTextDualEncoderModel."
        )
    return image, text
