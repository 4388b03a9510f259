"""Attention over few tokens in bfloat16 on a CPU: this package's batched products beside torch's kernel.

    python scripts/bench_short_attention.py
    python scripts/bench_short_attention.py --batch 16 --rounds 30

One call, forward and backward, at the shapes of common towers; captions are causal and some end early. Milliseconds are
medians of calls that take turns. The error is the largest of output and gradients, against float64, relative.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from hf_clip_domain.models.short_attention import short_attention

# Tokens, heads, width of a head, and whether it reads captions.
TOWERS = {
    "ViT-B/32, pictures": (50, 12, 64, False),
    "ViT-B/32, captions of 77": (77, 8, 64, True),
    "ViT-B/32, captions of 24": (24, 8, 64, True),
    "ViT-B/16, pictures": (197, 12, 64, False),
    "starter, pictures": (65, 3, 64, False),
}


def torchs(query, key, value, mask):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).contiguous()


WAYS = {"torch": torchs, "this package": short_attention}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="pictures or captions")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print("| | forward, ms | backward, ms | error | both, times as fast |\n|:--|--:|--:|--:|--:|")
    for tower, (tokens, heads, width, causal) in TOWERS.items():
        torch.manual_seed(0)
        shape = (options.batch, tokens, heads, width)
        parts = [torch.randn(shape, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3)]
        gradient = torch.randn(shape, dtype=torch.bfloat16)
        mask = None
        if causal:
            mask = torch.ones(tokens, tokens, dtype=torch.bool).tril().repeat(options.batch, 1, 1, 1)
            mask[::2, :, :, tokens // 2 :] = False
        true = call(torchs, [part.double() for part in parts], mask, gradient.double())[2]
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        errors = {}
        for _ in range(options.rounds + 1):
            for way, attend in WAYS.items():
                forward, backward, found = call(attend, parts, mask, gradient)
                times[way].append((forward, backward))
                errors[way] = max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, true, strict=True))
        middle = {
            way: [1000 * statistics.median(column) for column in zip(*seconds[1:], strict=True)]
            for way, seconds in times.items()
        }
        ratio = sum(middle["torch"]) / sum(middle["this package"])
        cells = [" / ".join(f"{middle[way][place]:.1f}" for way in WAYS) for place in (0, 1)]
        cells += [" / ".join(f"{errors[way]:.4f}" for way in WAYS), f"{ratio:.1f}"]
        print(f"| {tower} | " + " | ".join(cells) + " |", flush=True)


def call(attend, parts, mask, gradient):
    """Seconds forward and backward, and output with gradients."""
    parts = [part.detach().requires_grad_() for part in parts]
    start = time.perf_counter()
    output = attend(*parts, mask)
    middle = time.perf_counter()
    output.backward(gradient)
    end = time.perf_counter()
    return middle - start, end - middle, [output.detach(), *(part.grad for part in parts)]


if __name__ == "__main__":
    main()
