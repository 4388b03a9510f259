"""`hf-clip-domain data`: keep data, check it, see what a domain makes of it, all before training on it."""

from __future__ import annotations

import argparse
from itertools import islice

from hf_clip_domain.cli.data_versions import add_versioning
from hf_clip_domain.cli.sources import samples_of
from hf_clip_domain.data.contact_sheet import save_contact_sheet
from hf_clip_domain.domains import Domain, load_domain
from hf_clip_domain.errors import ClipDomainError


def add_parser(subparsers) -> argparse.ArgumentParser:
    """Add `data` and its actions to the subparsers of the command line."""
    parser = subparsers.add_parser("data")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    preview = actions.add_parser(
        "preview",
        help="Draw a sheet of pairs: raw, as evaluated, as augmented.",
        description="Draw a sheet of pairs: raw, as evaluated, as augmented, with captions before and after cleaning.",
    )
    preview.add_argument("--domain", default="general", help="A domain's name, or the path of a YAML file.")
    preview.add_argument("--dataset", help="As for train. Default: the domain's embedded synthetic samples.")
    preview.add_argument("--image_column", help="Column of the picture, when not found by name.")
    preview.add_argument("--text_column", help="Column of the caption(s), when not found by name.")
    preview.add_argument("--output", help="PNG file to write. Default: preview-<domain>.png.")
    preview.add_argument("--count", type=_count, default=12, help="Pairs to show, 1 to 100. Default: 12.")
    preview.add_argument("--seed", type=int, default=0, help="Chooses the pairs and their training views.")
    preview.set_defaults(run=run)
    add_versioning(actions)
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the sheet and say where; returns the exit status.

    Raises:
        ClipDomainError: an unknown domain, unreadable data, or a file that cannot be written.
    """
    domain = load_domain(args.domain)
    rows = _rows(args, domain)
    output = args.output or f"preview-{domain.name}.png"
    try:
        file = save_contact_sheet(rows, domain, output, seed=args.seed)
    except OSError as error:
        raise ClipDomainError(f"--output {output} cannot be written: {error.strerror or error}.") from error
    print(f"Wrote {len(rows)} pairs as the {domain.name} domain treats them to {file.resolve()}")
    return 0


def _rows(args: argparse.Namespace, domain: Domain) -> list[dict]:
    if args.dataset is None:
        pairs = samples_of(domain, train=args.count, validation=1, test=1, seed=args.seed)
    else:
        # Imported here: the readers of all formats are not needed for the samples.
        from hf_clip_domain.data.loading import load_pairs

        pairs = load_pairs(
            args.dataset,
            image_column=args.image_column,
            text_column=args.text_column,
            streaming=True,
            seed=args.seed,
        )
    rows = pairs["train"] if "train" in pairs else next(iter(pairs.values()))
    rows = list(islice(rows.shuffle(seed=args.seed, **({"buffer_size": 500} if args.dataset else {})), args.count))
    if not rows:
        raise ClipDomainError(f"{args.dataset or domain.name}: no pairs to show.")
    return rows


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 100:
        raise argparse.ArgumentTypeError("expected 1 to 100 pairs")
    return number
