"""The card of an exported folder: what it is, how to load it, and the figures of its check."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load

from hf_clip_domain.models.exported.record import ExportRecord

_LIBRARIES = {"onnx": "onnx", "mlx": "mlx", "safetensors": "transformers"}


def write_export_card(folder: Path, record: ExportRecord, name: str, original: Path | None = None) -> None:
    """Write `README.md`; `name` is the folder's own, `original` the card of the source, whose licence holds on."""
    known = (metadata_load(original) if original is not None else None) or {}
    data = ModelCardData(
        license=known.get("license"),
        license_name=known.get("license_name"),
        library_name=_LIBRARIES[record.format],
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "hf-clip-domain", record.format, *(["int8"] if record.precision == "int8" else [])],
        base_model=record.source if record.source.count("/") == 1 else None,
        model_name=name,
    )
    check = record.check
    rows = "\n".join(
        f"| {key} | {100 * before:.1f} | {100 * after:.1f} |" for key, (before, after) in check["recall"].items()
    )
    kept = record.quantization.get("kept_in_float")
    text = f"""# {name}

`{record.source}` ({record.source_revision[:23]}) in the format {record.format}, {record.precision}\
{f", {', '.join(kept)} in float32" if kept else ""}, {sum(record.files.values()) / 2**20:.1f} MiB.

```python
from hf_clip_domain import ClipEmbedder

embedder = ClipEmbedder.from_pretrained("FOLDER")  # a local folder
scores = embedder.similarity(["picture.jpg"], ["one thing", "another"])
```

Compared with the original on {check["images"]} pictures and {check["texts"]} texts: least cosine of an embedding with
the original's {min(check["image_cosine"], check["text_cosine"]):.6f}, largest difference {check["difference"]:.1e},
recall within {check["retrieval_delta"]:.2f} points.

| (%) | original | exported |
|:--|--:|--:|
{rows}
"""
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")
