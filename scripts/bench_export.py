"""What an export costs and saves: size on disk, time for a picture and for a text against torch, and the figures of its
check.

    python scripts/bench_export.py [--model starter] [--domain scientific] [--rows 500] [--threads 1]

Works on the embedded samples; formats whose packages are missing are left out. All variants are timed interleaved in one
process, in turns, and the smallest of the turns counts; the ratios are to torch in the same process. Pictures are prepared
beforehand: their decoding costs the same for all. Batches of 16 pictures and of 64 texts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from hf_clip_domain.data.samples import load_samples
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.sharing.export import export_model

VARIANTS = [("safetensors", False), ("onnx", False), ("onnx", True), ("mlx", False), ("mlx", True)]
PICTURES, TEXTS = 16, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="starter")
    parser.add_argument("--domain", default="scientific")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pairs = load_samples(args.domain, train=0, validation=0, test=args.rows)["test"]
    torch_embedder = ClipEmbedder.from_pretrained(args.model, domain=args.domain, attention_slicing="off")
    pixels = torch.cat(list(torch_embedder._pixel_batches(pairs["image"][:PICTURES])))
    texts = [text for own in pairs["text"] for text in own][:TEXTS]
    embedders, records = {"torch": torch_embedder}, {}
    with tempfile.TemporaryDirectory() as folder:
        for format, int8 in VARIANTS:
            name = f"{format} {'int8' if int8 else 'float32'}"
            output = Path(folder) / name.replace(" ", "-")
            try:
                records[name] = export_model(
                    args.model, output, format=format, int8=int8, pairs=pairs, embedder=torch_embedder
                )
            except ClipDomainError as error:
                print(f"{name}: {error}")
                continue
            if format != "safetensors":
                embedders[name] = ClipEmbedder.from_pretrained(output, domain=args.domain)
        seconds = _timed(embedders, list(pixels), texts, args.turns)
    print(f"\n{args.model}, {args.threads} thread(s), {args.rows} pictures:\n")
    print(
        "| export | MiB | ms a picture | of torch | ms a text | of torch | least cosine | difference | points of recall |"
    )
    print("|:--|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name in ("torch", *records):
        picture, text = seconds.get(name, seconds["torch"])
        cells = [f"{picture * 1e3:.2f}", f"{picture / seconds['torch'][0]:.2f}"]
        cells += [f"{text * 1e3:.2f}", f"{text / seconds['torch'][1]:.2f}"]
        if name == "torch":
            print(f"| torch, float32 | | {' | '.join(cells)} | | | |")
            continue
        record = records[name]
        check, size = record.check, sum(record.files.values()) / 2**20
        if name not in seconds:
            cells = ["", "", "", ""]
        print(
            f"| {name} | {size:.1f} | {' | '.join(cells)} | {min(check['image_cosine'], check['text_cosine']):.6f} | "
            f"{check['difference']:.1e} | {check['retrieval_delta']:.2f} |"
        )


def _timed(embedders, pixels, texts, turns) -> dict[str, tuple[float, float]]:
    """Seconds a picture and a text, the best of the turns, after one to warm up."""
    found = {name: (float("inf"), float("inf")) for name in embedders}
    for turn in range(turns + 1):
        for name, embedder in embedders.items():
            start = time.perf_counter()
            embedder.embed_images(pixels, progress=False)
            middle = time.perf_counter()
            embedder.embed_texts(texts, progress=False)
            end = time.perf_counter()
            if turn:
                picture, text = found[name]
                found[name] = min(picture, (middle - start) / len(pixels)), min(text, (end - middle) / len(texts))
    return found


if __name__ == "__main__":
    main()
