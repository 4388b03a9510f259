"""An exported folder: written beside its place, compared with the original, and moved there only if it is as good."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_clip_domain._optional import require
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation import RetrievalEvaluator
from hf_clip_domain.models.beside import CALIBRATION_FILE, file_beside, similarity_beside
from hf_clip_domain.models.dual_encoder import find_logit_bias, find_logit_scale
from hf_clip_domain.models.exported.loading import open_export
from hf_clip_domain.models.exported.record import EXPORT_FILE, FORMATS, ExportRecord, find_record
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.sharing.export.card import write_export_card
from hf_clip_domain.sharing.export.check import Parity
from hf_clip_domain.sharing.export.mlx_writer import write_mlx
from hf_clip_domain.sharing.export.onnx_writer import quantize_onnx, write_onnx
from hf_clip_domain.similarity import save_similarity

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "mlx": ("mlx.core",), "safetensors": ()}
# From all weights in 8 bits to fewer: first what makes the embedding, then what follows an activation, whose few large
# values cost the others their precision, then all of the MLPs.
_LAST = ("projection", "head")
KEPT_IN_FLOAT = ((), _LAST, (*_LAST, "mlp.fc2", "output.dense"), (*_LAST, "mlp.", "dense"))


def export_model(
    name_or_path: str,
    output: str | Path,
    *,
    format: str,
    int8: bool = False,
    pairs: Sequence[dict[str, Any]],
    embedder: ClipEmbedder | None = None,
    say: Callable[[str], None] = print,
) -> ExportRecord:
    """Export a model, compare it with the original on `pairs`, and put it to `output` if it passes.

    Args:
        name_or_path: Hub id, folder or `"starter"`; an adapter is merged.
        output: folder to make; one that holds an earlier export is replaced.
        format: `"onnx"`, `"mlx"`, or `"safetensors"` (a plain model for transformers).
        int8: 8-bit weights, for ONNX and MLX. Where retrieval suffers, sensitive layers stay in float32.
        pairs: rows with `image` and `text` to compare on, see `RetrievalEvaluator`.
        embedder: the model, where it is loaded already.
        say: told of every attempt.

    Raises:
        ClipDomainError: a model that cannot be exported so, missing packages, a folder in the way, or an export that is
            not as good as the original: says by how much, and leaves nothing behind.
    """
    output = Path(output)
    if format not in FORMATS:
        raise ClipDomainError(f"--format {format}: expected one of {', '.join(FORMATS)}.")
    if int8 and format == "safetensors":
        raise ClipDomainError("--quantize int8 is for --format onnx and mlx: transformers loads safetensors in float.")
    check_output(output)
    for package in PACKAGES[format]:
        require(package, extra=format)
    embedder = embedder or load_original(name_or_path)
    model = embedder.model.cpu()
    similarity = similarity_beside(name_or_path, model)
    evaluator = RetrievalEvaluator(pairs, embedder.processor, domain=embedder.domain, similarity=similarity)
    original, precision = evaluator.embed(model), "int8" if int8 else "float32"
    bias = find_logit_bias(model)
    with _beside(output) as folder:
        model.config.save_pretrained(folder)
        embedder.processor.save_pretrained(folder)
        save_similarity(similarity, folder)
        if embedder.domain is not None:
            embedder.domain.save(folder)
        if calibration := file_beside(name_or_path, model, CALIBRATION_FILE):
            shutil.copyfile(calibration, folder / CALIBRATION_FILE)
        companions = set(_files(folder))
        plain = folder / ".float32"  # the towers before quantisation
        if format == "onnx":
            write_onnx(model, plain if int8 else folder)
        unchecked = ExportRecord(
            format=format,
            precision=precision,
            logit_scale=find_logit_scale(model).item(),
            logit_bias=None if bias is None else bias.item(),
            source=Path(name_or_path).name if Path(name_or_path).exists() else name_or_path,
            source_revision=_revision(model),
            versions=_versions(format),
        )
        for kept in KEPT_IN_FLOAT if int8 else ((),):
            _write(model, folder, format, plain, int8, kept)
            record = replace(unchecked, quantization={"bits": 8, "kept_in_float": list(kept)} if int8 else {})
            parity = Parity.measure(original, evaluator.embed(_reload(folder, record)))
            faults = parity.faults(precision)
            if int8:
                what = f"all but {', '.join(kept)}" if kept else "all layers"
                say(f"int8, {what}: {parity.sentence()}")
            if not faults:
                break
        if faults:
            raise ClipDomainError(
                f"the {format} export of {name_or_path} is not as good as the original: {'; '.join(faults)}. Nothing was "
                f"written to {output}." + (" Export it without --quantize int8." if int8 else "")
            )
        shutil.rmtree(plain, ignore_errors=True)
        sizes = {name: size for name, size in _files(folder).items() if name not in companions}
        record = replace(record, check=parity.to_json(), files=sizes)
        record.save(folder)
        write_export_card(folder, record, output.resolve().name, file_beside(name_or_path, model, "README.md"))
    return record


def load_original(name_or_path: str, domain: str | None = None) -> ClipEmbedder:
    """The model to export, as it embeds.

    Raises:
        ClipDomainError: it cannot be loaded, or is an export itself.
    """
    record = find_record(name_or_path)
    if record is not None and record.format != "safetensors":
        raise ClipDomainError(f"{name_or_path} is an {record.format} export already: export {record.source} again.")
    return ClipEmbedder.from_pretrained(name_or_path, domain=domain, attention_slicing="off", device="cpu")


def check_output(output: Path) -> None:
    """Refuse to replace anything but an earlier export.

    Raises:
        ClipDomainError: a file, or a folder with something else in it.
    """
    if output.is_file():
        raise ClipDomainError(f"--output {output} is a file; expected a folder.")
    if output.is_dir() and any(output.iterdir()) and not (output / EXPORT_FILE).is_file():
        raise ClipDomainError(f"--output {output} is not empty and holds no earlier export: give another folder.")


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """A folder next to `output` that takes its place when all went well, and is gone otherwise."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as holder:
        folder = Path(holder) / "new"
        folder.mkdir()
        yield folder
        if output.is_dir():
            output.rename(Path(holder) / "earlier")
        folder.rename(output)


def _write(model: Any, folder: Path, format: str, plain: Path, int8: bool, kept: tuple[str, ...]) -> None:
    if format == "mlx":
        write_mlx(model, folder, int8=int8, kept_in_float=kept)
    elif format == "safetensors":
        model.save_pretrained(folder)
    elif int8:
        quantize_onnx(plain, folder, kept)


def _reload(folder: Path, record: ExportRecord) -> Any:
    """The written model, read as anyone will."""
    if record.format == "safetensors":
        return load_model(folder)[0]
    return open_export(folder, record)


def _files(folder: Path) -> dict[str, int]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _revision(model: Any) -> str:
    """The commit of a model of the Hub; the weights' own digest for any other."""
    commit = getattr(model.config, "_commit_hash", None)
    if commit:
        return commit
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def _versions(format: str) -> dict[str, str]:
    packages = [name.partition(".")[0] for name in PACKAGES[format]]
    return {name: importlib.metadata.version(name) for name in ("hf-clip-domain", "torch", "transformers", *packages)}
