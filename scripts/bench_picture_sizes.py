"""What a pair costs at each picture size: to read its picture, to shrink it from the largest size, and to train on it.

    python scripts/bench_picture_sizes.py                              # the embedded scientific samples, the starter
    python scripts/bench_picture_sizes.py --dataset DATA/scientific --sizes 96 128 160 224

Milliseconds a pair, the fastest of interleaved rounds in one process: decoding and augmenting at that size; doing so at
the largest size and shrinking the batch afterwards, as `--resolutions` does; forward and backward pass. Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import numpy as np
import torch

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.data.samples import load_samples
from hf_clip_domain.data.transforms import ImageTransform
from hf_clip_domain.domains import load_domain
from hf_clip_domain.models.image_positions import at_image_size
from hf_clip_domain.models.image_sizes import image_settings
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.training.affordable import pair_timer
from hf_clip_domain.training.micro_batching import at_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", default="scientific")
    parser.add_argument("--dataset", help="default: the domain's embedded synthetic samples")
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 128, 160, 192, 224])
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = (load_pairs(options.dataset) if options.dataset else load_samples(options.domain, train=options.pictures))[
        "train"
    ]
    images = [rows[place]["image"] for place in range(min(options.pictures, len(rows)))]
    model, processor = load_model("starter")
    domain, largest = load_domain(options.domain), max(options.sizes)
    transforms = {
        size: ImageTransform(domain, *image_settings(at_image_size(model, processor, size)[1]))
        for size in options.sizes
    }
    seconds: dict[tuple[str, int], list[float]] = {}

    def timed(what: str, size: int, work):
        start = time.perf_counter()
        result = work()
        seconds.setdefault((what, size), []).append((time.perf_counter() - start) / len(images))
        return result

    def read(size: int) -> torch.Tensor:
        return torch.stack([transforms[size].training(image, np.random.default_rng(0)) for image in images])

    with tempfile.TemporaryDirectory() as folder:
        args = ClipTrainingArguments(folder, report_to=[])
        for _ in range(options.rounds):
            time_pair = pair_timer(model.to(args.device), processor, args)
            for size in options.sizes:
                pixels = timed("read", size, lambda size=size: read(size))
                large = pixels if size == largest else torch.rand(len(images), 3, largest, largest)
                timed("shrink", size, lambda size=size, large=large: at_size(large, size))
                seconds.setdefault(("train", size), []).append(time_pair(size))
    print("| pixels | read at this size | read at the largest and shrunk | train |\n|--:|--:|--:|--:|")
    fastest = {key: 1000 * min(values) for key, values in seconds.items()}
    for size in options.sizes:
        shrunk = fastest["read", largest] + (fastest["shrink", size] if size < largest else 0)
        print(f"| {size} | {fastest['read', size]:.1f} ms | {shrunk:.1f} ms | {fastest['train', size]:.1f} ms |")


if __name__ == "__main__":
    main()
