"""`hf-clip-domain push FOLDER --repo_id OWNER/NAME`: publish a model on the Hub, in one commit."""

from __future__ import annotations

import argparse

from hf_clip_domain.sharing.hub import check_repo_id, push_folder
from hf_clip_domain.sharing.publication import Publication


def add_parser(commands) -> None:
    """Add `push` to the commands."""
    parser = commands.add_parser(
        "push",
        help="Publish a run's folder or an export on the Hub, in one commit.",
        description="Upload model, processor, card, report and plots; checkpoints, logs and everything unknown stay. The "
        "token is that of `hf auth login`, or HF_TOKEN.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="Output folder of a run, of merge, or of export.")
    parser.add_argument("--repo_id", required=True, help="owner/name on the Hub, or name for one of your own.")
    parser.add_argument("--dry_run", action="store_true", help="Show files, sizes and card; send nothing.")
    parser.add_argument("--private", action="store_true", default=None, help="Make a new repository private.")
    parser.add_argument("--revision", help="Branch to commit to, made if there is none. Default: main.")
    parser.add_argument("--message", default="Model, card and report", help="The commit's message.")
    parser.add_argument(
        "--exclude", nargs="+", default=[], metavar="PATTERN", help="Leave out besides, such as retrieval_sample.png."
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show or push; returns the exit status.

    Raises:
        ClipDomainError: see `Publication.of` and `push_folder`.
    """
    check_repo_id(args.repo_id)
    publication = Publication.of(args.folder, args.exclude)
    print(describe(publication))
    if args.dry_run:
        print(f"\nThe card:\n\n{publication.card()}\nNothing was sent (--dry_run).")
        return 0
    url = push_folder(publication, args.repo_id, message=args.message, private=args.private, revision=args.revision)
    print(f"Published: {url}")
    return 0


def describe(publication: Publication) -> str:
    """The files with their sizes, what is changed in them, and what stays."""
    sizes = publication.sizes()
    lines = [f"{len(sizes)} files, {sum(sizes.values()) / 2**20:.1f} MiB:"]
    for name, size in sizes.items():
        changed = "  (without this machine's paths)" if isinstance(publication.files[name], bytes) else ""
        lines.append(f"  {size:>13,}  {name}{changed}")
    if publication.left_out:
        lines.append(f"Left out: {', '.join(publication.left_out)}.")
    if "retrieval_sample.png" in sizes:
        lines.append("retrieval_sample.png shows pictures of the test data: --exclude it if these must stay private.")
    return "\n".join(lines)
