"""Time and peak memory of a contrastive loss, dense and streamed, beside the matrix products that it cannot do without.

    python scripts/bench_loss.py                       # n = 2,048 to 32,768 pairs of 512 dimensions, float32
    python scripts/bench_loss.py --pairs 8192 --losses info_nce siglip hard

Each line is a process of its own: forward and backward of the loss on random embeddings, the best of `--repeats`. "MiB"
is the peak of resident memory less what the process held with the embeddings made, so the gradients count. The limit
is the bare products of the loss and its two gradients, three of n x n x d, in tiles of the same size, without one
exponential; whoever does not hold the matrix must take one of them twice. "dense" is the plain formula in torch; where
it would not fit in memory it is not run.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

GIB = 2**30
LOSSES = {
    "info_nce": {"name": "info_nce"},
    "groups": {"name": "info_nce"},
    "siglip": {"name": "siglip"},
    "hard": {"name": "info_nce", "negatives": {"kind": "hard", "ratio": 0.1}},
    "weighted": {"name": "info_nce", "negatives": {"kind": "weighted"}},
}


def measure(what: str, n: int, d: int, repeats: int) -> None:
    """In a child process: prints the seconds and the MiB above the inputs."""
    import torch
    import torch.nn.functional as F

    from hf_clip_domain.losses import build_loss
    from hf_clip_domain.losses.log_sum_exp import TILE

    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(n, d), dim=1).requires_grad_() for _ in range(2))
    scale = torch.tensor(50.0, requires_grad=True)
    targets = torch.arange(n) // 4 if what == "groups" else None
    if what not in ("dense", "limit"):
        settings = dict(LOSSES[what])
        loss = build_loss(settings.pop("name"), **settings)

    def step():
        if what == "limit":
            return _bare_products(image.detach(), text.detach(), TILE)
        if what == "dense":
            logits = scale * image @ text.T
            own = torch.arange(n)
            value = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        else:
            value = loss(image, text, logit_scale=scale, targets=targets).loss
        value.backward()
        image.grad = text.grad = None

    small = [tensor.detach()[:64] for tensor in (image, text)]
    (small[0] @ small[1].T).sum()  # load what is loaded at first use
    held = _resident()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(min(seconds), (peak - held) / 2**20)


def _bare_products(image, text, tile: int) -> None:
    import torch

    image_gradient, text_gradient = torch.zeros_like(image), torch.zeros_like(text)
    buffer = torch.empty(tile, tile)
    for top in range(0, len(image), tile):
        x = image[top : top + tile]
        for left in range(0, len(text), tile):
            y = text[left : left + tile]
            product = torch.mm(x, y.T, out=buffer) if len(x) == len(y) == tile else x @ y.T
            image_gradient[top : top + tile].addmm_(product, y)
            text_gradient[left : left + tile].addmm_(product.T, x)


def _resident() -> int:
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=["info_nce"])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return measure(options.child, options.pairs[0], options.dim, options.repeats)

    import psutil

    print("| pairs | what | seconds | times the limit | MiB above the inputs |\n|---:|:---|---:|---:|---:|")
    for n in options.pairs:
        fits = 5 * 4 * n * n < psutil.virtual_memory().available
        limit = None
        for what in ["limit", *(["dense"] if fits else []), *options.losses]:
            command = [sys.executable, __file__, "--pairs", str(n), "--dim", str(options.dim)]
            command += ["--repeats", str(options.repeats), "--child", what]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            seconds, mib = map(float, output.split())
            limit = limit or seconds
            print(f"| {n:,} | {what} | {seconds:.2f} | {seconds / limit:.2f} | {mib:,.0f} |", flush=True)
        if not fits:
            print(f"| {n:,} | dense | needs about {5 * 4 * n * n / GIB:.0f} GiB, not run | | |", flush=True)


if __name__ == "__main__":
    main()
