"""A transformers `CLIPModel` as open_clip's `CLIP`, and its weights in both directions."""

from __future__ import annotations

import open_clip
import torch
from transformers import CLIPModel

_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def as_open_clip(model: CLIPModel) -> open_clip.CLIP:
    """The same function in open_clip's classes."""
    vision, text = model.config.vision_config, model.config.text_config
    made = open_clip.CLIP(
        embed_dim=model.config.projection_dim,
        vision_cfg={
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.hidden_size,
            "layers": vision.num_hidden_layers,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
        },
        text_cfg={
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
        },
        quick_gelu=vision.hidden_act == "quick_gelu",
        output_dict=True,
    )
    theirs = dict(made.named_parameters())
    with torch.no_grad():
        for name, pieces in _names(model).items():
            values = [dict(model.named_parameters())[piece] for piece in pieces]
            theirs[name].copy_(_to(name, torch.cat(values) if len(values) > 1 else values[0]).view_as(theirs[name]))
    return made


def hugging_face_names(made: open_clip.CLIP, model: CLIPModel, *, gradient: bool = False) -> dict[str, torch.Tensor]:
    """open_clip's parameters, or their gradients, by the names that `model` has for them."""
    ours, found = dict(model.named_parameters()), {}
    for name, parameter in made.named_parameters():
        value = parameter.grad if gradient else parameter.detach()
        if value is None:
            continue
        pieces = _names(model)[name]
        value = _to(name, value)
        for piece, part in zip(pieces, value.chunk(len(pieces)) if len(pieces) > 1 else [value], strict=True):
            found[piece] = part.reshape(ours[piece].shape).clone()
    return found


def _to(name: str, value: torch.Tensor) -> torch.Tensor:
    # open_clip multiplies with its two projections from the right, transformers has linear layers.
    return value.T if name in ("visual.proj", "text_projection") else value


def _names(model: CLIPModel) -> dict[str, list[str]]:
    """open_clip's name of every parameter, and the parameters of transformers that it is joined from."""
    names = {
        "logit_scale": ["logit_scale"],
        "positional_embedding": ["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": ["text_model.embeddings.token_embedding.weight"],
        "text_projection": ["text_projection.weight"],
        "visual.proj": ["visual_projection.weight"],
        "visual.conv1.weight": ["vision_model.embeddings.patch_embedding.weight"],
        "visual.class_embedding": ["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": ["vision_model.embeddings.position_embedding.weight"],
    }
    norms = {
        "ln_final": "text_model.final_layer_norm",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
    }
    towers = {
        "transformer": ("text_model", model.config.text_config.num_hidden_layers),
        "visual.transformer": ("vision_model", model.config.vision_config.num_hidden_layers),
    }
    for theirs, (ours, layers) in towers.items():
        for layer in range(layers):
            block = f"{ours}.encoder.layers.{layer}"
            for kind in ("weight", "bias"):
                attention = [f"{block}.self_attn.{which}_proj.{kind}" for which in "qkv"]
                names[f"{theirs}.resblocks.{layer}.attn.in_proj_{kind}"] = attention
            norms |= {f"{theirs}.resblocks.{layer}.{own}": f"{block}.{other}" for own, other in _BLOCK.items()}
    for own, other in norms.items():
        names |= {f"{own}.{kind}": [f"{other}.{kind}"] for kind in ("weight", "bias")}
    return names
