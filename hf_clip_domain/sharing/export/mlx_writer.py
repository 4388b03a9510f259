"""Both towers as one file of weights for MLX."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.exported.mlx_model import MLX_FILE, MLX_MODELS


def write_mlx(model: nn.Module, folder: Path, *, int8: bool = False, kept_in_float: tuple[str, ...] = ()) -> None:
    """Write `mlx/model.safetensors`.

    Args:
        int8: 8-bit weights in groups, see `quantize_towers`; what `kept_in_float` names stays in float32.

    Raises:
        ClipDomainError: the model is neither CLIP nor SigLIP as transformers has them.
    """
    import mlx.core as mx

    from hf_clip_domain.models.exported.mlx_towers import ACTIVATIONS, Towers, quantize_towers

    config = model.config
    if config.model_type not in MLX_MODELS:
        raise ClipDomainError(
            f"--format mlx takes {' and '.join(MLX_MODELS)} models; this is a {config.model_type} model, which --format "
            "onnx takes."
        )
    for part in (config.text_config, config.vision_config):
        if part.hidden_act not in ACTIVATIONS:
            raise ClipDomainError(f"--format mlx has no activation {part.hidden_act!r}: take --format onnx.")
    towers, weights = Towers(config), []
    for name, tensor in model.state_dict().items():
        if name in ("logit_scale", "logit_bias"):
            continue
        if name.endswith("patch_embedding.weight"):
            tensor = tensor.permute(0, 2, 3, 1)  # (out, in, h, w) -> (out, h, w, in)
        weights.append((name, mx.array(tensor.detach().float().cpu().contiguous().numpy())))
    try:
        towers.load_weights(weights)
    except ValueError as error:
        first = str(error).strip().splitlines()[0]
        raise ClipDomainError(f"--format mlx: the weights are not those of a plain CLIP or SigLIP: {first}") from error
    if int8:
        quantize_towers(towers, kept_in_float)
    (folder / MLX_FILE).parent.mkdir(parents=True, exist_ok=True)
    towers.save_weights(str(folder / MLX_FILE))
