"""From a file to `pixel_values`: pictures a second of this package beside transformers' processors, and the difference.

    python scripts/bench_data.py                          # the tables of docs/data.md, on synthetic pictures
    python scripts/bench_data.py --data FOLDER            # on the pictures under a folder
    python scripts/bench_data.py --before CHECKOUT        # besides: an older checkout of this package
    python scripts/bench_data.py --scale 0.1 --pictures 1 --rounds 1      # to try the script

Each way opens, decodes, resizes, crops and normalises the same files and stacks them to a batch: `ImageTransform`, as
evaluation, server and `ClipEmbedder` (`evaluation`) and training runs (`training`, with augmentation) call it;
transformers' CLIP processor for Pillow, which `AutoImageProcessor` gives without torchvision; and the one for
torchvision, where it can be imported (its pictures are decoded by Pillow too). The ways take turns, `--rounds` times, in
one process on one thread. Printed is CPU time, which other work on the machine changes little: the median of the
rounds, ratios as the median of the rounds' own with the least and the largest.

Differences from the Pillow processor are those of evaluation views in steps of 1/255, with the domain's `square` set to
crop: that processor always crops. The photographs are synthetic, areas with textures, grain and sharp outlines, about
0.2 to 0.3 bytes a pixel.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from data_path.pictures import found, synthetic
from data_path.stages import STAGES, stages_of
from PIL import Image, ImageOps
from torch.utils.data import default_collate
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hf_clip_domain.data.transforms import ImageTransform
from hf_clip_domain.domains import load_domain

Way = Callable[[list[Path]], torch.Tensor]  # files -> (n, 3, s, s)
EVALUATION, TRAINING, PILLOW = "evaluation", "training", "Pillow processor"
TORCHVISION, BEFORE = "torchvision processor", "before"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Folder of pictures; default: synthetic ones.")
    parser.add_argument("--before", type=Path, help="An older checkout of this package, such as a git worktree.")
    parser.add_argument("--domain", default="general")
    parser.add_argument("--size", type=int, default=224, help="Side of the model's square.")
    parser.add_argument("--pictures", type=int, default=3, help="Of each kind.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="Of the synthetic pictures' sides.")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    ways = make_ways(options)
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            kinds = synthetic(Path(folder), options.pictures, options.scale)
        else:
            kinds, sizes = found(options.data, options.pictures)
            if not kinds:
                parser.error(f"--data {options.data}: no pictures are there.")
            print("\n".join(f"{kind}: {size}." for kind, size in sizes.items()) + "\n")
        print_speeds({kind: measure(ways, files, options.rounds) for kind, files in kinds.items()}, kinds)
        print_differences(kinds, options)
        print_stages(kinds, ways, options.rounds)


def make_ways(options: argparse.Namespace) -> dict[str, Way]:
    plain = CLIPImageProcessorPil(size={"shortest_edge": options.size}, crop_size=options.size)
    transform = make_transform(options)
    ways = {
        EVALUATION: lambda files: default_collate([transform.evaluation(file) for file in files]),
        TRAINING: lambda files: default_collate(
            [transform.training(file, np.random.default_rng(place)) for place, file in enumerate(files)]
        ),
        PILLOW: processed_by(plain),
    }
    try:
        import torchvision  # noqa: F401
        from transformers.models.clip.image_processing_clip import CLIPImageProcessor

        ways[TORCHVISION] = processed_by(CLIPImageProcessor(size=plain.size, crop_size=plain.crop_size))
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        reason = next(line for line in str(error).splitlines() if line.strip()).strip()
        print(f"transformers' torchvision processor was not measured: {reason}\n")
    if options.before is not None:
        old = older_transform(options)
        ways[BEFORE] = lambda files: default_collate([old.evaluation(file) for file in files])
    return ways


def make_transform(options: argparse.Namespace, **image: str) -> ImageTransform:
    domain, plain = load_domain(options.domain), CLIPImageProcessorPil()
    domain = dataclasses.replace(domain, image=dataclasses.replace(domain.image, **image))
    return ImageTransform(domain, options.size, tuple(plain.image_mean), tuple(plain.image_std))


def older_transform(options: argparse.Namespace) -> ImageTransform:
    """Another checkout's transform beside this one's, in the same process."""

    def forget() -> dict[str, object]:
        names = [name for name in sys.modules if name.partition(".")[0] == "hf_clip_domain"]
        return {name: sys.modules.pop(name) for name in names}

    own = forget()
    sys.path.insert(0, str(options.before.resolve()))
    try:
        from hf_clip_domain.data.transforms import ImageTransform as Older
        from hf_clip_domain.domains import load_domain as load_older

        plain = CLIPImageProcessorPil()
        return Older(load_older(options.domain), options.size, tuple(plain.image_mean), tuple(plain.image_std))
    finally:
        sys.path.pop(0)
        forget()
        sys.modules.update(own)


def processed_by(processor) -> Way:
    def way(files: list[Path]) -> torch.Tensor:
        pictures = [Image.open(file) for file in files]
        for picture in pictures:
            ImageOps.exif_transpose(picture, in_place=True)
        return processor(images=pictures, return_tensors="pt")["pixel_values"]

    return way


def measure(ways: dict[str, Way], files: list[Path], rounds: int) -> dict[str, list[float]]:
    """CPU seconds a picture of each way in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(files[:1])
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            way(files)
            seconds[name].append((time.process_time() - start) / len(files))
    return seconds


def print_speeds(seconds: dict[str, dict[str, list[float]]], kinds: dict[str, list[Path]]) -> None:
    ways = list(next(iter(seconds.values())))
    others = [name for name in ways if name not in (EVALUATION, TRAINING)]
    print("Pictures a second, and how many times as many `evaluation` reads as another way:\n")
    row(["pictures", "KB", *ways, *(f"to {name}" for name in others)])
    row([":--", *["---:"] * (1 + len(ways) + len(others))])
    for kind, of in seconds.items():
        size = statistics.mean(file.stat().st_size for file in kinds[kind]) / 1000
        speeds = [f"{1 / statistics.median(of[name]):.1f}" for name in ways]
        row([kind, f"{size:,.0f}", *speeds, *(ratio(of[name], of[EVALUATION]) for name in others)])
    print()


def ratio(slow: list[float], fast: list[float]) -> str:
    each = [one / other for one, other in zip(slow, fast, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def print_differences(kinds: dict[str, list[Path]], options: argparse.Namespace) -> None:
    transform = make_transform(options, square="crop")
    plain = CLIPImageProcessorPil(size={"shortest_edge": options.size}, crop_size=options.size)
    steps = 255 * torch.tensor(plain.image_std).view(3, 1, 1)
    print("Difference from the Pillow processor in steps of 1/255:\n")
    row(["pictures", "mean", "mean of the worst picture", "largest of a pixel"])
    row([":--", *["---:"] * 3])
    processed = processed_by(plain)
    for kind, files in kinds.items():
        apart = [(transform.evaluation(file) - processed([file])[0]).abs() * steps for file in files]
        means, largest = [float(one.mean()) for one in apart], max(float(one.max()) for one in apart)
        row([kind, f"{statistics.mean(means):.2f}", f"{max(means):.2f}", f"{largest:.0f}"])
    print()


def beside_the_pillow_processor(kinds: dict[str, list[Path]], rounds: int) -> list[dict[str, float | str]]:
    """By kind how many times as fast `evaluation` reads, and by how many steps of 1/255 the pictures differ on average."""
    options = argparse.Namespace(domain="general", size=224, before=None)
    ways = {name: way for name, way in make_ways(options).items() if name in (EVALUATION, PILLOW)}
    transform, std = (
        make_transform(options, square="crop"),
        torch.tensor(CLIPImageProcessorPil().image_std).view(3, 1, 1),
    )
    found = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in `main`, and as in a loader's worker
    for kind, files in kinds.items():
        seconds = measure(ways, files, rounds)
        speeds = [slow / fast for slow, fast in zip(seconds[PILLOW], seconds[EVALUATION], strict=True)]
        pictures = torch.stack([transform.evaluation(file) for file in files])
        apart = 255 * ((pictures - ways[PILLOW](files)).abs() * std).mean().item()
        found.append({"kind": kind, "times": statistics.median(speeds), "apart": apart})
    torch.set_num_threads(threads)
    return found


def print_stages(kinds: dict[str, list[Path]], ways: dict[str, Way], rounds: int) -> None:
    print("Where the time goes, CPU milliseconds a picture:\n")
    row(["pictures", "way", *STAGES])
    row([":--", ":--", *["---:"] * len(STAGES)])
    for kind, files in kinds.items():
        for name in (EVALUATION, PILLOW):
            each = [stages_of(lambda way=ways[name], files=files: way(files)) for _ in range(rounds)]
            medians = [1000 * statistics.median(one[stage] for one in each) / len(files) for stage in STAGES]
            row([kind, name, *(f"{median:.2f}" for median in medians)])


def row(cells: list[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
