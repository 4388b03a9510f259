"""Models in other formats, each compared with the model it was made of before it counts."""

from hf_clip_domain.sharing.export.exporter import export_model

__all__ = ["export_model"]
