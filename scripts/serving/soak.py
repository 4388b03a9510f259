"""Good requests, bad ones, clients that hang up, and models swapped under way, for as long as wished."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np

from hf_clip_domain.embedder import ClipEmbedder
from serving.inputs import caption
from serving.processes import loading, memory_of, ours, post, server

SWAPS = 3
TOLERANCE = 1e-4


def run(model: Path, files: list[str], seconds: float) -> int:
    """Print what happened; 0 when every answer was right."""
    texts = [caption(random.Random(number)) for number in range(100)]
    embedder = ClipEmbedder.from_pretrained(model)
    expected = model.parent / "expected.npz"
    embeds = [embedder.embed_texts(texts, progress=False), embedder.embed_images(files, progress=False)]
    np.savez(expected, embeds=np.concatenate([side.numpy() for side in embeds]))
    plan = {"kind": "mixed", "texts": texts, "files": files, "expected": str(expected), "clients": 32}
    # A cache for a part of what is asked: embeddings come from it and from the model, by turns.
    with (
        server(ours(model, "--cache", "0.1", "--queue", "256")) as (port, process),
        memory_of(process) as memory,
        loading(port, seconds=seconds, **plan) as result,
    ):
        # In the first half, so that the second shows whether requests alone make the memory grow.
        swaps, sizes = [], []
        for _ in range(SWAPS):
            time.sleep(seconds / (2 * SWAPS + 2))
            sizes.append(process.memory_info().rss)
            swaps.append(post(port, "/admin/reload"))
        time.sleep(seconds / (2 * SWAPS + 2))
        sizes.append(process.memory_info().rss)
        alive = process.is_running()
    alive = alive and "connections lost" not in result["counts"]
    statuses = {int(status): count for status, count in result["statuses"].items()}
    failed = {status: count for status, count in statuses.items() if status >= 500 and status != 503}
    counts = result["counts"]
    print(f"{seconds:g} seconds, {sum(statuses.values()):,} answers by status: {dict(sorted(statuses.items()))}")
    print(f"{counts.get('compared', 0):,} embeddings compared, largest difference {result['largest_error']:.1e}")
    print(f"{counts.get('bad refused', 0):,} of {counts.get('bad sent', 0):,} bad requests refused")
    print(f"{counts.get('left', 0):,} clients hung up; model swaps answered {swaps}; {_memory(memory)}")
    print("memory before the first swap and after each: " + ", ".join(f"{size / 2**20:.0f}" for size in sizes) + " MiB")
    right = not failed and result["largest_error"] <= TOLERANCE and counts.get("compared", 0) > 0
    right = right and counts.get("bad refused", 0) == counts.get("bad sent", 0) and swaps == [200] * SWAPS and alive
    print("every answer was right" if right else f"WRONG: failed {failed}, alive {alive}, {counts}")
    return 0 if right else 1


def _memory(samples: list[tuple[float, int]]) -> str:
    """Growth over the second half, when caches and allocators have their fill."""
    half = samples[len(samples) // 2 :]
    if len(half) < 4:
        return "memory: too short a time to tell"
    times, sizes = np.array(half, float).T
    slope = np.polyfit((times - times[0]) / 60, sizes / 2**20, 1)[0]
    return f"memory {sizes[-1] / 2**20:.0f} MiB, {slope:+.2f} MiB a minute over the second half"
