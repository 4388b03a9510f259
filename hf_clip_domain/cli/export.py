"""`hf-clip-domain export MODEL`: a model for ONNX Runtime or MLX, compared with the original before it counts."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_clip_domain.cli.sources import split_of
from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.data.samples import available_samples, load_samples
from hf_clip_domain.domains import Domain
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.exported.record import FORMATS
from hf_clip_domain.sharing.export import export_model
from hf_clip_domain.sharing.export.exporter import check_output, load_original


def add_parser(commands) -> None:
    """Add `export` to the commands."""
    parser = commands.add_parser(
        "export",
        help="A model for ONNX Runtime or MLX.",
        description="Write both towers in another format, and compare embeddings and retrieval with the original: an "
        "export that is not as good is not written.",
    )
    parser.add_argument("model", metavar="MODEL", help="Hub id, local folder, or 'starter'.")
    parser.add_argument(
        "--format", required=True, choices=FORMATS, help="onnx, mlx, or safetensors (a plain model, adapters merged)."
    )
    parser.add_argument(
        "--quantize", choices=["int8"], help="8-bit weights (onnx, mlx). Layers that need it stay in float32."
    )
    parser.add_argument("--output", required=True, help="Folder to write; an earlier export there is replaced.")
    parser.add_argument("--domain", help="A domain's name or YAML file. Default: the model's own.")
    parser.add_argument("--dataset", help="What to compare on, as for train. Default: the domain's embedded samples.")
    parser.add_argument("--image_column", help="Column of the picture, when not found by name.")
    parser.add_argument("--text_column", help="Column of the caption(s), when not found by name.")
    parser.add_argument("--split", default="test", help="Which split to compare on. Default: test.")
    parser.add_argument("--rows", type=int, default=500, help="Compare on so many rows at most. Default: 500.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, print the figures; returns the exit status.

    Raises:
        ClipDomainError: see `export_model`, or data to compare on that cannot be read.
    """
    output = Path(args.output)
    check_output(output)  # refused before anything is loaded
    if args.rows < 2:
        raise ClipDomainError(f"--rows {args.rows}: expected 2 or more.")
    embedder = load_original(args.model, args.domain)
    record = export_model(
        args.model,
        output,
        format=args.format,
        int8=args.quantize == "int8",
        pairs=_pairs(args, embedder.domain),
        embedder=embedder,
    )
    check = record.check
    print(
        f"Compared on {check['images']} pictures and {check['texts']} texts: least cosine "
        f"{min(check['image_cosine'], check['text_cosine']):.6f}, largest difference {check['difference']:.1e}, "
        f"recall within {check['retrieval_delta']:.2f} points."
    )
    print(
        f"Saved to {output} ({sum(record.files.values()) / 2**20:.1f} MiB): ClipEmbedder.from_pretrained({args.output!r})."
    )
    return 0


def _pairs(args: argparse.Namespace, domain: Domain | None):
    if args.dataset is None:
        # Whether two models embed alike can be seen on any pictures.
        name = domain.name if domain is not None and domain.name in available_samples() else "general"
        print(f"No --dataset: comparing on the embedded {name} samples, which are synthetic.")
        splits = load_samples(name, train=0, validation=0, test=args.rows)
    else:
        splits = load_pairs(args.dataset, image_column=args.image_column, text_column=args.text_column)
    rows = split_of(splits, args.split)
    return rows.select(range(min(args.rows, len(rows))))
