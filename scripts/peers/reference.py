"""The gradient of CLIP's loss on the whole batch, in float64 and by nothing but `CLIPModel` and autograd.

The batch is embedded in pieces without gradients, the loss is differentiated by the embeddings, and every piece is
embedded again and takes its share: the chain rule, which is exact (Gao et al. 2021, GradCache).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, CLIPModel

from peers.work import Work

PIECE = 16


def float64_gradient(work: Work) -> dict[str, torch.Tensor]:
    """By parameter; captions are padded to 77, every other caption and picture of the batch is a negative."""
    pixels, texts = work.batch_inputs()
    words = AutoTokenizer.from_pretrained(work.model)(
        texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    model = CLIPModel.from_pretrained(work.model, dtype=torch.float64)
    pieces = [slice(start, start + PIECE) for start in range(0, len(texts), PIECE)]

    def embed(piece: slice) -> tuple[torch.Tensor, torch.Tensor]:
        output = model(pixel_values=pixels[piece].double(), **{name: value[piece] for name, value in words.items()})
        return output.image_embeds, output.text_embeds

    with torch.no_grad():
        embedded = [embed(piece) for piece in pieces]
    images, captions = (torch.cat(part).requires_grad_() for part in zip(*embedded, strict=True))
    logits = model.logit_scale.exp() * images @ captions.T
    truth = torch.arange(len(texts))
    ((F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2).backward()
    for piece in pieces:
        torch.autograd.backward(embed(piece), (images.grad[piece], captions.grad[piece]))
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def relative_error(found: dict[str, torch.Tensor], true: dict[str, torch.Tensor]) -> tuple[float, float | None]:
    """Of the towers' gradient (norm of the difference by the norm), and of the temperature's, if it has one.

    Raises:
        ValueError: a parameter of the towers has no gradient.
    """
    towers = [name for name in true if name != "logit_scale"]
    if missing := set(towers) - set(found):
        raise ValueError(f"no gradient of {sorted(missing)[:3]}")
    difference = sum((found[name].double() - true[name]).square().sum() for name in towers)
    norm = sum(true[name].square().sum() for name in towers)
    scale = None
    if "logit_scale" in found:
        scale = ((found["logit_scale"].double() - true["logit_scale"]) / true["logit_scale"]).abs().item()
    return (difference / norm).sqrt().item(), scale
