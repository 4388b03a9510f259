"""`hf-clip-domain data snapshot` and `data validate`: keep a dataset as it is now, and say whether to train on it."""

from __future__ import annotations

import argparse
from dataclasses import fields

from hf_clip_domain.errors import ClipDomainError


def add_versioning(actions) -> None:
    """Add both to the actions of `data`."""
    snapshot = actions.add_parser(
        "snapshot",
        help="Keep the dataset as it is now: DVC, a commit, a card.",
        description="Track a dataset with DVC, write its card beside it, commit both, and print the revision as the last "
        "line, for `train --dataset`. Without DVC the revision is a hash of the content. Unchanged data stays as it is.",
    )
    snapshot.add_argument("dataset", metavar="DATASET", help="Folder or file of pairs on this machine.")
    snapshot.add_argument("--message", help="Of the commit. Default: the sizes of the splits.")
    snapshot.add_argument("--push", action="store_true", help="Send the data to DVC's default remote (`dvc push`).")
    snapshot.add_argument(
        "--model", help="Also make the drift reference that this model needs; folder, Hub id, 'starter'."
    )
    snapshot.add_argument("--domain", help="How the model reads pairs. Default: the model's own domain, or general.")
    _add_reading(snapshot)
    snapshot.set_defaults(run=run_snapshot)
    validate = actions.add_parser(
        "validate",
        help="Say whether the dataset is fit to train on.",
        description="Read all pairs and fail where too many cannot be used or a split is too small.",
    )
    validate.add_argument("dataset", metavar="DATASET", help="As for train.")
    validate.add_argument("--max_bad_fraction", type=float, default=0.05, help="Of the rows. Default: 0.05.")
    validate.add_argument(
        "--min_rows", type=int, default=50, help="Of the training and the held-out split. Default: 50."
    )
    _add_reading(validate)
    validate.set_defaults(run=run_validate)


def run_snapshot(args: argparse.Namespace) -> int:
    """Keep the dataset, and print its revision; returns the exit status.

    Raises:
        ClipDomainError: nothing to keep, or what DVC and git refuse.
    """
    # Imported here: `data preview` needs neither models nor DVC.
    from hf_clip_domain.device import find_device
    from hf_clip_domain.embedder import ClipEmbedder
    from hf_clip_domain.ops.versioning import take_snapshot

    if args.domain and not args.model:
        raise ClipDomainError("--domain is for the drift reference: name its --model, or leave it out.")
    embedder = None
    if args.model:
        embedder = ClipEmbedder.from_pretrained(args.model, domain=args.domain, device=find_device())
    snapshot = take_snapshot(
        args.dataset,
        message=args.message,
        push=args.push,
        reading=_reading(args),
        embedder=embedder,
        model=args.model or "",
    )
    print(f"Wrote {snapshot.card}" if snapshot.new else f"Unchanged since it was kept last; its card: {snapshot.card}")
    print("\n".join([*snapshot.notes, snapshot.revision]))
    return 0


def run_validate(args: argparse.Namespace) -> int:
    """Print the figures, and what speaks against training on it; returns the exit status.

    Raises:
        ClipDomainError: something does.
    """
    from hf_clip_domain.ops.versioning import DatasetCard, describe, shortcomings

    if not 0 <= args.max_bad_fraction < 1:
        raise ClipDomainError(f"--max_bad_fraction {args.max_bad_fraction:g}: expected a share from 0 to below 1.")
    if args.min_rows < 1:
        raise ClipDomainError(f"--min_rows {args.min_rows}: expected 1 or more.")
    reading = _reading(args)
    figures = describe(args.dataset, reading)
    name = args.dataset.rstrip("/").rpartition("/")[2]
    print(DatasetCard(name, reading, figures).text())
    if found := shortcomings(figures, max_bad_fraction=args.max_bad_fraction, min_rows=args.min_rows):
        raise ClipDomainError(f"{args.dataset} is not fit to train on: {'; '.join(found)}.")
    return 0


def _add_reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reading, as for train")
    for role in ("image", "text", "label", "group"):
        group.add_argument(f"--{role}_column", help=f"Column of the {role}, when not found by name.")
    for name in ("validation", "test"):
        group.add_argument(f"--{name}_fraction", type=float, default=0.1, help="Held out if no split is given. 0.1.")
    group.add_argument("--seed", type=int, default=42, help="Of the split. Default: 42, as train's.")


def _reading(args: argparse.Namespace):
    from hf_clip_domain.ops.versioning import Reading

    return Reading(**{field.name: getattr(args, field.name) for field in fields(Reading)})
