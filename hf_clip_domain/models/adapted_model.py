"""PEFT's model, saved with the two numbers of a dual encoder that no module of its own holds.

`logit_scale` and SigLIP's `logit_bias` are parameters of the model itself, which neither `modules_to_save` (modules
only) nor `target_parameters` (matrices only) takes. What stands in the adapter's file under a parameter's full name is
loaded by plain `PeftModel.from_pretrained` (as it does with `bias="all"`), so they are written there.
"""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file

_SCALARS = ("logit_scale", "logit_bias")


class AdaptedModel(PeftModel):
    """A dual encoder with an adapter; temperature and bias belong to the adapter."""

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs) -> None:
        # Embeddings are never adapted; "auto" would ask the Hub about the base model to find that out.
        kwargs.setdefault("save_embedding_layers", False)
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            file = Path(save_directory) / SAFETENSORS_WEIGHTS_NAME
            save_file({**load_file(file), **self._scalars()}, file, metadata={"format": "pt"})

    def _scalars(self) -> dict:
        named = self.named_parameters()
        return {name: value.detach().cpu().clone() for name, value in named if name.rpartition(".")[2] in _SCALARS}
