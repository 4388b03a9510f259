"""`hf-clip-domain rollback NAME`: the champion before is the champion again."""

from __future__ import annotations

import argparse

from hf_clip_domain.cli.promote import write_decision
from hf_clip_domain.ops.promotion import CHAMPION, ROLLED_BACK, Decision, find_return, now, roll_back


def add_parser(commands) -> None:
    """Add `rollback` to the commands."""
    parser = commands.add_parser(
        "rollback",
        description=f"Let the alias {CHAMPION} mean the version before the last promotion; a second call changes nothing.",
    )
    parser.add_argument("name", metavar="NAME", help="Of the registered model.")
    parser.add_argument("--to", metavar="VERSION", help="Another version that has been champion.")
    parser.add_argument("--output", help="JSON file for what was done; promotion.json in it where it is a folder.")
    parser.add_argument("--dry_run", action="store_true", help="Say what would happen; change nothing.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Roll back; returns the exit status.

    Raises:
        ClipDomainError: see `find_return`.
    """
    current, target = find_return(args.name, args.to)
    if current.number == target.number:
        print(f"Version {current.number} of {args.name} is the {CHAMPION} already; nothing to go back from.")
        return 0
    decision = Decision(args.name, target.number, current.number, ROLLED_BACK, [], {}, args.dry_run, now())
    if not args.dry_run:
        roll_back(current, target)
    write_decision(decision, args.output)
    would = "would be" if args.dry_run else "is"
    print(f"models:/{args.name}@{CHAMPION} {would} version {target.number} again, in place of {current.number}.")
    return 0
