"""What training needs of a device, each thing asked by one function that gives the measured relative error.

The real code, small, on the device, against float64 on the CPU; `inf` stands for a wrong kind of answer.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel

from hf_clip_domain.losses.info_nce import InfoNCE
from hf_clip_domain.models.precision import DTYPES
from hf_clip_domain.training.micro_batching import install_embedding_forward

_CPU = torch.device("cpu")
_ROWS, _TOKENS, _SIDE = 8, 12, 16  # pairs, tokens and pixels of the small step


def loss_of_a_step(device: torch.device) -> float:
    """Micro-batched embedding and InfoNCE."""
    return _difference(_step(device)[0], _step(_CPU, torch.float64)[0])


def gradients_of_a_step(device: torch.device) -> float:
    """The same, differentiated; of the weight that is worst off."""
    return _worst_gradient(_step(device)[1], _step(_CPU, torch.float64)[1])


def gradients_at_several_sizes(device: torch.device) -> float:
    """Pictures and position tables made smaller and larger on the device (--image_sizes, --resolutions)."""
    sizes = [8, 24]
    return _worst_gradient(_step(device, image_sizes=sizes)[1], _step(_CPU, torch.float64, image_sizes=sizes)[1])


def attention_with_causal_mask(device: torch.device) -> float:
    """As in CLIP's text tower."""
    return _attention_error(device, torch.ones(_TOKENS, _TOKENS, dtype=torch.bool).tril(), is_causal=True)


def attention_with_padding_mask(device: torch.device) -> float:
    """Keys of the caption alone, not of its padding."""
    lengths = torch.arange(2, 2 + _ROWS)
    return _attention_error(device, (torch.arange(_TOKENS) < lengths[:, None])[:, None, None])


def attention_of_strided_inputs(device: torch.device) -> float:
    """Queries, keys and values that are views into one product, as some models make them."""
    return _attention_error(device, None, strided=True)


def product_with_transposed_left(device: torch.device) -> float:
    """`a.T @ b`, also added in place: in every linear layer's gradient, and in the loss's."""
    worst = 0.0
    for rows, left, right in ((5, 3, 4), (64, 33, 48), (257, 128, 130)):
        a, b = _random(rows, left), _random(rows, right)
        truth = a.double().T @ b.double()
        there, other = a.to(device), b.to(device)
        worst = max(worst, _difference(there.T @ other, truth))
        total = torch.zeros(left, right, device=device).addmm_(there.T, other)
        worst = max(worst, _difference(total, truth))
    return worst


def copies_to_the_device(device: torch.device) -> float:
    """Non-blocking ones, as the data loader's, read back."""
    batches = [_random(64, 3, _SIDE, _SIDE, seed=seed) for seed in range(8)]
    if device.type == "cuda":
        batches = [batch.pin_memory() for batch in batches]
    copies = [batch.to(device, non_blocking=True) for batch in batches]
    return 0.0 if all(torch.equal(copy.cpu(), batch) for copy, batch in zip(copies, batches, strict=True)) else math.inf


def loss_in_lower_precision(device: torch.device, name: str) -> float:
    """The step under autocast; fp16 with its gradients scaled and unscaled, of which none may be lost."""
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10) if name == "fp16" else None
    loss, gradients = _step(device, autocast=DTYPES[name], scaler=scaler)
    if not all(gradient.isfinite().all() for gradient in gradients.values()):
        return math.inf
    return _difference(loss, _step(_CPU, torch.float64)[0])


# What the checks are made of


def _step(
    device: torch.device, dtype: torch.dtype = torch.float32, *, image_sizes=None, autocast=None, scaler=None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of one micro-batched step of a small CLIP with fixed weights."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = CLIPModel(_config()).to(device=device, dtype=dtype)
    install_embedding_forward(model)
    sizes = {} if image_sizes is None else {"image_sizes": image_sizes}
    inputs = {name: value.to(device) for name, value in _batch(dtype).items()}
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        embeddings = model(**inputs, micro_batch_size=3, **sizes)
    # Under autocast accelerate converts the model's outputs back.
    images, texts = (embeddings[name].to(dtype) for name in ("image_embeds", "text_embeds"))
    loss = InfoNCE()(images, texts, logit_scale=embeddings["logit_scale"]).loss
    (loss if scaler is None else scaler.scale(loss)).backward()
    if scaler is not None:
        scaler.unscale_(torch.optim.SGD(model.parameters(), lr=1.0))
    return loss, {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def _config() -> CLIPConfig:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 97, "eos_token_id": 98, "pad_token_id": 0}
    return CLIPConfig(
        text_config={**tower, **words},
        vision_config={**tower, "image_size": _SIDE, "patch_size": 8},
        projection_dim=24,
    )


def _batch(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Captions of several lengths, padded."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 97, (_ROWS, _TOKENS), generator=generator)
    ends = torch.arange(_ROWS) % 6 + 5
    ids[torch.arange(_ROWS), ends] = 98
    mask = (torch.arange(_TOKENS) <= ends[:, None]).long()
    pixels = torch.randn(_ROWS, 3, _SIDE, _SIDE, generator=generator)
    return {"pixel_values": pixels.to(dtype), "input_ids": ids * mask, "attention_mask": mask}


def _attention_error(device: torch.device, mask, *, is_causal: bool = False, strided: bool = False) -> float:
    """Of torch's fused attention and its gradient from softmax(q k / sqrt(d)) v in float64."""
    heads, width = 4, 16
    joint = _random(_ROWS, _TOKENS, 3, heads, width)
    parts = joint.double().permute(2, 0, 3, 1, 4).requires_grad_()  # (3, n, heads, t, d)
    query, key, value = parts
    scores = query @ key.transpose(-1, -2) / width**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    truth = scores.softmax(-1) @ value
    truth.square().sum().backward()

    there = joint.to(device).permute(2, 0, 3, 1, 4)
    there = (there if strided else there.contiguous()).detach().requires_grad_()
    masks = {"is_causal": True} if is_causal else {"attn_mask": None if mask is None else mask.to(device)}
    found = F.scaled_dot_product_attention(*there, **masks)
    found.square().sum().backward()
    return max(_difference(found, truth), _difference(there.grad, parts.grad))


def _random(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _difference(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest difference, relative to the largest true number."""
    found, truth = found.detach().cpu().double(), truth.detach().cpu().double()
    return ((found - truth).abs().max() / truth.abs().max()).item()


def _worst_gradient(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    if found.keys() != truth.keys():
        return math.inf
    # A key's bias has no gradient but rounding: no weight is measured against less than a share of the largest.
    largest = max(value.abs().max().item() for value in truth.values())
    return max(
        (found[name].cpu().double() - value).abs().max().item() / max(value.abs().max().item(), 1e-3 * largest)
        for name, value in truth.items()
    )
