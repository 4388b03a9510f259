"""`hf-clip-domain embed MODEL DATASET --output DIR`: the embeddings of a corpus, by all processes of a launch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from tqdm.auto import tqdm

from hf_clip_domain.corpus import Corpus, ShardFolder, embed_shard
from hf_clip_domain.corpus.folder import share
from hf_clip_domain.corpus.identity import dataset_identity, model_identity
from hf_clip_domain.corpus.rows import SIDES
from hf_clip_domain.corpus.shards import DTYPES
from hf_clip_domain.device import find_device
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.precision import DTYPES as HALVES
from hf_clip_domain.models.precision import PRECISIONS

_DESCRIPTION = """Embed all pictures and texts of a dataset into Parquet files, in the order of its rows. Run again after
a kill, with any number of processes, it does what is missing. Many processes or machines: accelerate launch
recipes/embed.py MODEL DATASET --output DIR, with DIR on a disk that they share."""


def add_parser(commands) -> None:
    """Add `embed` to the commands."""
    parser = commands.add_parser(
        "embed", help="Embed a corpus of any size into Parquet files, on many processes.", description=_DESCRIPTION
    )
    add_arguments(parser)
    parser.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="Hub id, local folder, or 'starter'.")
    parser.add_argument("dataset", metavar="DATASET", help="As --dataset of train; pictures or texts alone will do.")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="Folder for the Parquet files and manifest.json."
    )
    parser.add_argument("--only", choices=SIDES, help="Embed only pictures, or only texts. Default: what there is.")
    parser.add_argument("--image_column", help="Column of the picture, when not found by name.")
    parser.add_argument("--text_column", help="Column of the text, when not found by name; of several, the first.")
    parser.add_argument("--key_column", help="Column that names a row. Default: the picture's path.")
    parser.add_argument("--streaming", action="store_true", help="Read Parquet, WebDataset and Hub data as they come.")
    parser.add_argument("--dataset_revision", help="Branch, tag or commit of a dataset on the Hub.")
    parser.add_argument("--batch_size", type=int, default=64, help="Pictures or texts embedded at once. Default: 64.")
    parser.add_argument("--shard_rows", type=int, default=10_000, help="Rows a Parquet file. Default: 10000.")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="To compute in. Default: fp32.")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="To store. Default: float32.")


def run(args: argparse.Namespace) -> int:
    """Embed what is missing of the dataset; returns the exit status.

    Raises:
        ClipDomainError: a model or dataset that cannot be read, or a folder that holds other embeddings.
    """
    if args.shard_rows < 1:
        raise ClipDomainError(f"--shard_rows {args.shard_rows}: expected at least 1.")
    if Path(args.dataset).expanduser().is_dir() and Path(args.output).resolve().is_relative_to(
        Path(args.dataset).expanduser().resolve()
    ):
        raise ClipDomainError(f"--output {args.output} lies in the dataset's folder, and would become part of it.")
    # Without an accelerator accelerate would take each of several processes for a run of its own, unless told of CPUs.
    use_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or find_device().type == "cpu"
    # A process that is done waits for the slowest, however long that takes.
    state = PartialState(cpu=use_cpu, timeout=timedelta(days=365))
    with state.local_main_process_first():  # downloads once a machine
        embedder = ClipEmbedder.from_pretrained(args.model, batch_size=args.batch_size)
        corpus = Corpus(
            args.dataset,
            image_column=args.image_column,
            text_column=args.text_column,
            key_column=args.key_column,
            only=args.only,
            streaming=args.streaming,
            revision=args.dataset_revision,
        )
    with ExitStack() as stack:
        identity = _by_main(state, lambda: _identity(args, embedder, corpus))
        folder = ShardFolder(args.output, identity)
        _by_main(state, lambda: stack.enter_context(folder.taken()) and None)
        done = _by_main(state, lambda: sorted(folder.done()))
        embedder.model.to(state.device, HALVES.get(args.precision, torch.float32))
        try:
            _embed_missing(embedder, corpus, folder, done, args.dtype, state)
        except ClipDomainError as error:
            if not state.is_main_process:  # whose own error the command prints
                print(f"hf-clip-domain: error in process {state.process_index}: {error}", file=sys.stderr)
            raise
        state.wait_for_everyone()
        counts = _by_main(state, lambda: folder.finish(corpus.count))
    if state.is_main_process:
        print(_summary(counts, args.output, before=len(done)))
    state.wait_for_everyone()  # who ends first would take the others down
    state.destroy_process_group()
    return 0


def _identity(args: argparse.Namespace, embedder: ClipEmbedder, corpus: Corpus) -> dict[str, Any]:
    return {
        "model": {"name": args.model, **model_identity(embedder)},
        "dataset": {"name": args.dataset, **dataset_identity(args.dataset, corpus, args.dataset_revision)},
        "sides": list(corpus.sides),
        "precision": args.precision,
        "dtype": args.dtype,
        "shard_rows": args.shard_rows,
    }


def _embed_missing(
    embedder: ClipEmbedder, corpus: Corpus, folder: ShardFolder, done: list[int], dtype: str, state: PartialState
) -> None:
    mine = share(done, state.process_index, state.num_processes)
    title = "rows" if state.num_processes == 1 else f"rows of process 1 of {state.num_processes}"
    with tqdm(desc=title, unit="row", delay=2, disable=not state.is_main_process) as bar:
        for number, rows in corpus.shards(folder.shard_rows, mine):
            folder.write(number, embed_shard(embedder, rows, corpus.sides, dtype=dtype, on_row=bar.update))


def _by_main(state: PartialState, work: Callable[[], Any]) -> Any:
    """What the main process returns, in every process; an error of the user's is raised in all of them."""
    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = work()
        except ClipDomainError as error:
            outcome[1] = str(error)
    if state.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ClipDomainError(outcome[1])
    return outcome[0]


def _summary(counts: dict[str, int], output: str, *, before: int) -> str:
    names = {"image_embeds": "pictures", "text_embeds": "texts"}
    embedded = " and ".join(f"{counts[name]:,} {what}" for name, what in names.items() if name in counts)
    there = f" ({before:,} were there before)" if before else ""
    return (
        f"{counts['rows']:,} rows in {counts['shards']:,} files{there}: {embedded} embedded; {counts['errors']:,} rows "
        f"with an error, which their column `error` tells. Saved to {output}."
    )
