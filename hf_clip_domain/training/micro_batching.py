"""Embedding a contrastive batch in micro-batches, with the gradient of the whole batch.

A contrastive loss needs all embeddings of the batch at once, but not all activations. Micro-batches are embedded under
activation checkpointing, the embeddings are joined, and one loss is differentiated by one ordinary `backward`: the
activations of one micro-batch at a time are recomputed. The gradient is the full batch's, at the price of at most one
more forward pass: the last micro-batches, as many as memory allows, keep their activations and are not recomputed.
Because it is one ordinary graph it composes with loss scaling, LoRA, a learned temperature and data parallel training,
for which all micro-batches happen inside a single call of the wrapped model.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; the same gradient as Gao et al. 2021,
"Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache), without its second backward.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from hf_clip_domain import memory
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.dual_encoder import features, find_logit_bias, find_logit_scale
from hf_clip_domain.models.image_positions import accept_any_size
from hf_clip_domain.training.loss_module import LOSS_MODULE
from hf_clip_domain.training.recompute import recomputed

_WORDS = ("input_ids", "attention_mask", "position_ids")
_MULTIPLE = 8  # of lengths of captions
_MANY = 16  # micro-batches, of which recomputing one more part costs a hundredth of a step


@dataclass(frozen=True)
class MicroBatches:
    """How a contrastive batch is embedded.

    Attributes:
        size: rows embedded at once; `None` for the whole batch.
        kept: micro-batches whose activations are kept for the backward pass; those of the others are recomputed.
    """

    size: int | None
    kept: int = 1

    def halved(self, rows: int) -> MicroBatches | None:
        """With half the rows in memory, of a batch of `rows`; `None` where that is not possible."""
        size = rows if self.size is None else min(self.size, rows)
        if size > 1:
            return MicroBatches((size + 1) // 2, self.kept)
        return MicroBatches(1, self.kept // 2) if self.kept > 1 else None

    def at_most(self, held: int, rows: int) -> MicroBatches:
        """These, or smaller ones with no more than `held` rows in memory."""
        if self.rows_held(rows) <= held:
            return self
        size = min(self.size or rows, held)
        return MicroBatches(size, max(1, held // size))

    def rows_held(self, rows: int) -> int:
        """Rows whose activations are in memory at once, of a batch of `rows`."""
        return rows if self.size is None else min(rows, self.size * self.kept)


def install_embedding_forward(model: nn.Module, *, normalise: bool = True) -> None:
    """Teach `model` the call `model(**inputs, micro_batch_size=k, kept=1, image_sizes=None)`, and leave every other one.

    The new call returns `{"image_embeds" (n, d), "text_embeds" (n, d), "logit_scale" ()}`, the scale already
    exponentiated, and `"logit_bias" ()` and `"loss_parameters"` (those of the submodule `LOSS_MODULE`) where there are
    any. With `image_sizes` (pixels) the pictures are embedded at each of them: `image_embeds` is `(r, n, d)`. With
    `image_suffix` the inputs hold `image_features` (n, ...) in place of pixels, of which it makes the embeddings.

    It has to be the model's own `forward`, since accelerate patches that with autocast and DistributedDataParallel
    prepares its gradient buckets around exactly one call a step.

    Args:
        normalise: give embeddings of length 1; otherwise as the model projects them.
    """
    if "_plain_forward" not in vars(model):
        model._plain_forward = model.forward

    @functools.wraps(model._plain_forward)
    def forward(self, *args, **kwargs):
        original = self._plain_forward  # its own, also of a deep copy
        if "micro_batch_size" not in kwargs:
            return original(*args, **kwargs)
        size, kept = kwargs.pop("micro_batch_size"), kwargs.pop("kept", 1)
        image_sizes = kwargs.pop("image_sizes", None)
        if image_sizes is not None:
            accept_any_size(self)
        suffix = kwargs.pop("image_suffix", None)
        if suffix is not None:
            image = functools.partial(_from_stored, suffix)
        else:
            image = functools.partial(_from_pixels, self, image_sizes)
        if hasattr(self, "get_image_features") and hasattr(self, "get_text_features"):
            towers = (
                Tower(image, _parameters(self, "vision_model.", "visual_projection.")),
                Tower(functools.partial(_from_words, self), _parameters(self, "text_model.", "text_projection."), True),
            )
            image_embeds, text_embeds = embed_in_micro_batches(towers, kwargs, size, kept)
            if normalise:
                image_embeds, text_embeds = F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)
        else:
            both = Tower(functools.partial(_from_forward, original), _parameters(self))
            image_embeds, text_embeds = embed_in_micro_batches((both,), kwargs, size, kept)
        # What else the loss needs leaves through the same door, so that data parallel wrappers know it is used.
        outputs = {
            "image_embeds": image_embeds,
            "text_embeds": text_embeds,
            "logit_scale": find_logit_scale(self).exp(),
        }
        if (logit_bias := find_logit_bias(self)) is not None:
            outputs["logit_bias"] = logit_bias.view_as(logit_bias)
        if (loss := getattr(self, LOSS_MODULE, None)) is not None:
            outputs["loss_parameters"] = {name: value.view_as(value) for name, value in loss.named_parameters()}
        return outputs

    model.forward = types.MethodType(forward, model)


@dataclass(frozen=True)
class Tower:
    """What embeds a micro-batch.

    Attributes:
        encode: from the inputs to embeddings, rows second to last; or to a tuple of several such.
        parameters: those of its parameters that train.
        of_words: it reads captions alone. Its micro-batches are then of captions of like length, and carry no more padding
            than their own longest needs: the same embeddings, but for rounding, in less time.
    """

    encode: Callable[[dict], torch.Tensor | tuple[torch.Tensor, ...]]
    parameters: Sequence[nn.Parameter]
    of_words: bool = False


def embed_in_micro_batches(
    towers: Sequence[Tower], inputs: dict, size: int | None, kept: int = 1
) -> tuple[torch.Tensor, ...]:
    """The embeddings of `inputs` by each tower, never holding the activations of more than `kept * size` rows.

    Args:
        towers: each is recomputed by itself, so that the activations of one at a time are in memory.
        inputs: what they take; tensors of `n` rows are cut along their first dimension.
        size: rows a micro-batch; `None` or at least `n` embeds all at once, with nothing recomputed.
        kept: micro-batches, at least one, whose activations are kept rather than recomputed. They are the last ones:
            backward begins with those, so that their activations are gone before the first one is recomputed. Keeping
            a single one is therefore nearly free: it holds all towers at once, a recomputed one holds one at a time.
            Of many micro-batches, where that saves next to no time, only the last tower of the last one is kept.

    Returns:
        For each tower `(n, d)`, or `(r, n, d)` of images at several sizes.
    """
    n = len(inputs["image_features" if "image_features" in inputs else "pixel_values"])
    starts = range(0, n, n if size is None else min(size, n))
    chunks, orders = zip(*(_cut(tower, inputs, starts, n) for tower in towers), strict=True)
    lean = torch.is_grad_enabled() and kept == 1 and len(starts) >= _MANY
    found: list[list[tuple[torch.Tensor, ...]]] = [[] for _ in towers]
    for place in range(len(starts)):
        again = torch.is_grad_enabled() and place < len(starts) - kept
        for tower, own, parts in zip(towers, chunks, found, strict=True):
            if again or (lean and tower is not towers[-1]):
                embeddings = recomputed(tower.encode, own[place], tower.parameters)
            else:
                embeddings = tower.encode(own[place])
            parts.append(embeddings if isinstance(embeddings, tuple) else (embeddings,))
    if lean:  # what the forward passes left scattered in the heap would lie beside what the backward passes take
        memory.release_free_blocks()
    joined = []
    for parts, order in zip(found, orders, strict=True):
        for micro_batches in zip(*parts, strict=True):
            rows = torch.cat(micro_batches, dim=-2)
            joined.append(rows if order is None else rows.index_select(-2, order.argsort()))
    return tuple(joined)


def _cut(tower: Tower, inputs: dict, starts: range, n: int) -> tuple[list[dict], torch.Tensor | None]:
    """What the tower takes for each micro-batch, and the order of the rows where it is not their own."""
    mask = inputs.get("attention_mask")
    if tower.of_words and mask is not None and len(starts) > 1:
        words = {name: inputs[name] for name in _WORDS if name in inputs}
        order, lengths = by_length(mask)
        cuts = [(order[start : start + starts.step], lengths[start : start + starts.step][-1]) for start in starts]
        return [{name: value[rows, :length] for name, value in words.items()} for rows, length in cuts], order
    chunks = []
    for start in starts:
        rows = slice(start, start + starts.step)
        chunks.append(
            {
                key: value[rows] if torch.is_tensor(value) and value.ndim and len(value) == n else value
                for key, value in inputs.items()
            }
        )
    return chunks, None


def by_length(attention_mask: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Rows of captions in order of their length, and these lengths: up to the last token that is not padding.

    They are rounded up to a multiple of 8, as the collator's are, so that there are few shapes. A row in which nothing
    tells the end (padded on the left, or nothing but padding) has the full length.

    Args:
        attention_mask: `(n, t)`.
    """
    width = attention_mask.shape[1]
    mask = attention_mask.cpu()  # one wait for the device, not one a micro-batch
    last = width - mask.flip(1).ne(0).int().argmax(1)
    lengths = (-(-last // _MULTIPLE) * _MULTIPLE).clamp_max(width)
    order = lengths.argsort(stable=True)
    return order.to(attention_mask.device), lengths[order].tolist()


def _parameters(model: nn.Module, *own: str) -> list[nn.Parameter]:
    """Those that train, of the parts of the model that are named so; of all of it where no part is."""
    named = list(model.named_parameters())
    found = [parameter for name, parameter in named if any(part in name for part in own)]
    return [parameter for parameter in (found or model.parameters()) if parameter.requires_grad]


def _from_forward(forward, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    output = forward(**inputs)
    image, text = getattr(output, "image_embeds", None), getattr(output, "text_embeds", None)
    if image is None or text is None:
        raise ClipDomainError(
            f"the model's output ({type(output).__name__}) has no image_embeds and text_embeds: ClipTrainer trains dual "
            "encoders such as CLIPModel, SiglipModel or VisionTextDualEncoderModel."
        )
    return image, text


def _from_pixels(model: nn.Module, image_sizes: Sequence[int] | None, inputs: dict) -> torch.Tensor:
    pixels = inputs["pixel_values"]
    if image_sizes is None:
        return features(model.get_image_features(pixel_values=pixels))  # (n, d)
    views = (at_size(pixels, size) for size in image_sizes)
    return torch.stack([features(model.get_image_features(pixel_values=view)) for view in views])  # (r, n, d)


def _from_stored(suffix, inputs: dict) -> torch.Tensor:
    return suffix(inputs["image_features"])  # (n, d)


def _from_words(model: nn.Module, inputs: dict) -> torch.Tensor:
    words = {name: value for name, value in inputs.items() if name in _WORDS}
    return features(model.get_text_features(**words))  # (n, d)


def at_size(pixel_values: torch.Tensor, size: int) -> torch.Tensor:
    """Pictures resized to squares of `size` pixels: `(n, 3, h, w) -> (n, 3, size, size)`."""
    if pixel_values.shape[-2:] == (size, size):
        return pixel_values
    return F.interpolate(pixel_values, size=(size, size), mode="bicubic", antialias=True)
