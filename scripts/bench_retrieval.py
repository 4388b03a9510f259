"""Time and peak memory of scoring retrieval, with random embeddings.

    python scripts/bench_retrieval.py                          # 100,000 x 100,000 of 512 dimensions
    python scripts/bench_retrieval.py --rows 10000 50000 --captions 2

One line for each number of pictures: the seconds of ranking both ways (and of its
processors, which a busy machine does not stretch), the seconds of the bootstrap's 1,000 resamples,
the bare matrix product that cannot be done without (in blocks of the same size), and the peak of memory above what
the process held before the embeddings were made, so they count. `--captions` gives every picture as many texts. The
threads are torch's own: set OMP_NUM_THREADS to choose.
"""

from __future__ import annotations

import argparse
import time

import torch

from hf_clip_domain.evaluation.bootstrap import REPLICATES
from hf_clip_domain.evaluation.embedded import retrieval_replicates
from hf_clip_domain.evaluation.ranking import negatives_ahead
from hf_clip_domain.evaluation.retrieval import metrics_of, per_query
from hf_clip_domain.memory import MIB, Peak
from hf_clip_domain.similarity import cosine


def measure(rows: int, dim: int, captions: int, product: bool) -> None:
    torch.manual_seed(0)
    with Peak(torch.device("cpu")) as peak:
        image_embeds = torch.randn(rows, dim)
        text_embeds = image_embeds.repeat_interleave(captions, dim=0)
        text_embeds += 4 * torch.randn(rows * captions, dim)
        pairs = torch.stack([torch.arange(rows).repeat_interleave(captions), torch.arange(rows * captions)], dim=1)
        start, busy = time.perf_counter(), time.process_time()
        ahead = negatives_ahead(image_embeds, text_embeds, pairs, cosine, progress=None)
        metrics = metrics_of(pairs, ahead, rows, rows * captions)
        ranking, busy = time.perf_counter() - start, time.process_time() - busy
        start = time.perf_counter()
        for queries, counts in ((pairs[:, 0], ahead.texts), (pairs[:, 1], ahead.images)):
            retrieval_replicates(per_query(queries, counts), pairs[:, 0].numpy(), REPLICATES)
        bootstrap = time.perf_counter() - start
    bare = ""
    if product:
        start = time.perf_counter()
        for block in image_embeds.split(2048):
            for other in text_embeds.split(2048):
                block @ other.T
        bare = f"{time.perf_counter() - start:.1f}"
    print(
        f"| {rows:,} | {rows * captions:,} | {ranking:.1f} | {busy:.1f} | {bare} | {bootstrap:.1f} | {peak.above / MIB:,.0f} "
        f"| {metrics['image_to_text/mrr']:.3f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000], help="Pictures.")
    parser.add_argument("--dim", type=int, default=512, help="Dimensions of an embedding.")
    parser.add_argument("--captions", type=int, default=1, help="Texts a picture.")
    parser.add_argument("--product", action="store_true", help="Time the bare matrix product as well.")
    options = parser.parse_args()
    print("| pictures | texts | ranking (s) | its CPU time (s) | bare product (s) | bootstrap (s) | peak (MiB) | MRR |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for rows in options.rows:
        measure(rows, options.dim, options.captions, options.product)


if __name__ == "__main__":
    main()
