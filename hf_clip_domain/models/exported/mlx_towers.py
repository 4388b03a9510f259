"""The towers of CLIP and SigLIP in MLX, Apple's framework; imported only where MLX is.

Modules carry the names that transformers gives the weights, so that a state dict is loaded by name; only the kernel of
the patches lies otherwise, `(out, height, width, in)`.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

ACTIVATIONS = {
    "quick_gelu": lambda x: x * mx.sigmoid(1.702 * x),
    "gelu": nn.gelu,
    "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + mx.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))),
    "gelu_new": lambda x: 0.5 * x * (1 + mx.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))),
    "relu": nn.relu,
}


def _attend(query: mx.array, key: mx.array, value: mx.array, heads: int, mask: mx.array | None = None) -> mx.array:
    """`(b, t, c)` each -> `(b, t of the query, c)`."""
    b, t, c = query.shape
    query, key, value = (x.reshape(b, -1, heads, c // heads).transpose(0, 2, 1, 3) for x in (query, key, value))
    out = mx.fast.scaled_dot_product_attention(query, key, value, scale=(c // heads) ** -0.5, mask=mask)
    return out.transpose(0, 2, 1, 3).reshape(b, t, c)


class Attention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(config.hidden_size, config.hidden_size))

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        return self.out_proj(_attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, mask))


class Mlp(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = [Layer(config) for _ in range(config.num_hidden_layers)]

    def __call__(self, x: mx.array, mask: mx.array | None = None) -> mx.array:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class TextEmbeddings(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def __call__(self, ids: mx.array) -> mx.array:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class TextTower(nn.Module):
    """Ids `(b, t)` -> `(b, c)`: CLIP reads from left to right and pools the end token, SigLIP the last position."""

    def __init__(self, config: Any, siglip: bool) -> None:
        super().__init__()
        self.siglip = siglip
        self.end = None if siglip else config.eos_token_id
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if siglip:
            self.head = nn.Linear(config.hidden_size, config.projection_size)

    def __call__(self, ids: mx.array, mask: mx.array | None = None) -> mx.array:
        x = self.embeddings(ids)  # (b, t, c)
        seen = None if mask is None else mask.astype(mx.bool_)[:, None, None, :]
        if not self.siglip:
            places = mx.arange(ids.shape[1])
            causal = places[:, None] >= places[None, :]  # (t, t)
            seen = causal if seen is None else causal & seen  # (b, 1, t, t)
        x = self.final_layer_norm(self.encoder(x, seen))
        if self.siglip:
            return self.head(x[:, -1])
        # 2 stands in configurations written before transformers 4.31: there the end token has the largest id.
        end = ids.argmax(axis=1) if self.end == 2 else (ids == self.end).astype(mx.int32).argmax(axis=1)
        return x[mx.arange(len(x)), end]


class VisionEmbeddings(nn.Module):
    def __init__(self, config: Any, siglip: bool) -> None:
        super().__init__()
        patch = config.patch_size
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=patch, stride=patch, bias=siglip
        )
        count = (config.image_size // patch) ** 2
        if not siglip:
            self.class_embedding = mx.zeros(config.hidden_size)
        self.position_embedding = nn.Embedding(count + (not siglip), config.hidden_size)

    def __call__(self, pixels: mx.array) -> mx.array:
        x = self.patch_embedding(pixels).flatten(1, 2)  # (b, patches, c)
        if "class_embedding" in self:
            first = mx.broadcast_to(self.class_embedding, (len(x), 1, x.shape[2]))
            x = mx.concatenate([first, x], axis=1)
        return x + self.position_embedding.weight


class ProbeAttention(nn.Module):
    """torch's `MultiheadAttention`, its three projections in one matrix."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads, width = config.num_attention_heads, config.hidden_size
        self.in_proj_weight, self.in_proj_bias = mx.zeros((3 * width, width)), mx.zeros(3 * width)
        self.out_proj = nn.Linear(width, width)

    def __call__(self, probe: mx.array, x: mx.array) -> mx.array:
        weights, biases = self.in_proj_weight.split(3), self.in_proj_bias.split(3)
        query, key, value = (
            inputs @ weight.T + bias for inputs, weight, bias in zip((probe, x, x), weights, biases, strict=True)
        )
        return self.out_proj(_attend(query, key, value, self.heads))


class ProbeHead(nn.Module):
    """SigLIP's pooling: one learned query attends to all patches."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.probe = mx.zeros((1, 1, config.hidden_size))
        self.attention = ProbeAttention(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)

    def __call__(self, x: mx.array) -> mx.array:
        pooled = self.attention(mx.broadcast_to(self.probe, (len(x), 1, x.shape[2])), x)
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]


class VisionTower(nn.Module):
    """Pixels `(b, h, w, 3)` -> `(b, c)`."""

    def __init__(self, config: Any, siglip: bool) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config, siglip)
        if not siglip:
            self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if siglip:
            self.head = ProbeHead(config)

    def __call__(self, pixels: mx.array) -> mx.array:
        x = self.embeddings(pixels)
        if "head" in self:
            return self.head(self.post_layernorm(self.encoder(x)))
        return self.post_layernorm(self.encoder(self.pre_layrnorm(x))[:, 0])


class Towers(nn.Module):
    """Both towers with CLIP's projections, for a configuration of `CLIPModel` or `SiglipModel`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        siglip = config.model_type == "siglip"
        self.text_model = TextTower(config.text_config, siglip)
        self.vision_model = VisionTower(config.vision_config, siglip)
        if not siglip:
            self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
            self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)

    def embed_images(self, pixels: mx.array) -> mx.array:
        """`(b, 3, h, w)` -> `(b, d)`."""
        pooled = self.vision_model(pixels.transpose(0, 2, 3, 1))
        return self.visual_projection(pooled) if "visual_projection" in self else pooled

    def embed_texts(self, ids: mx.array, mask: mx.array | None = None) -> mx.array:
        """`(b, t)` -> `(b, d)`."""
        pooled = self.text_model(ids, mask)
        return self.text_projection(pooled) if "text_projection" in self else pooled


def quantize_towers(towers: Towers, skip: tuple[str, ...] = ()) -> None:
    """8-bit weights in groups of 64 (or 32) inputs, each with its own scale and offset, in place.

    Layers whose inputs are no multiple of 32, the tables of positions, and what `skip` names by a part of its path stay
    in float32.
    """

    def settings(path: str, module: nn.Module) -> bool | dict[str, int]:
        if not hasattr(module, "to_quantized") or "position_embedding" in path or any(part in path for part in skip):
            return False
        group = next((size for size in (64, 32) if module.weight.shape[-1] % size == 0), None)
        return group is not None and {"group_size": group, "bits": 8}

    nn.quantize(towers, class_predicate=settings)
