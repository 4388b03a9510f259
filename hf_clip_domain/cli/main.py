"""`hf-clip-domain`: finds the command and hands it its arguments. Commands are imported only when used."""

from __future__ import annotations

import argparse
import sys

from hf_clip_domain import __version__
from hf_clip_domain.cli.errors import run_cleanly
from hf_clip_domain.mps_settings import prepare_mps

EXIT_CODES = "exit status: 0 done, 1 failed with one line on standard error, 2 wrong usage"


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    return run_cleanly(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv: list[str]) -> int:
    prepare_mps()  # before any command imports torch
    if argv[:1] == ["train"]:  # its hundred options come from dataclasses, read by Hugging Face's own parser
        from hf_clip_domain.cli.train import run

        return run(argv[1:])
    if argv[:1] == ["tune"]:
        from hf_clip_domain.cli.tune import run

        return run(argv[1:])
    if argv[:1] == ["merge"]:
        from hf_clip_domain.cli.merge import run

        return run(argv[1:])
    parser = argparse.ArgumentParser(
        prog="hf-clip-domain", description="Adapt CLIP to a domain, and prove what improved.", epilog=EXIT_CODES
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("train", help="Adapt a model: score, train, score again, save.", add_help=False)
    commands.add_parser("tune", help="Search the loss's settings by short runs.", add_help=False)
    commands.add_parser("merge", help="Between base and tuned model: adapted, and little forgotten.", add_help=False)
    command = argv[0] if argv else ""
    if command == "data":
        from hf_clip_domain.cli.data import add_parser

        add_parser(commands)
    else:
        commands.add_parser("data", help="Look at data as the model will.")
    if command == "evaluate":
        from hf_clip_domain.cli.evaluate import add_parser

        add_parser(commands)
    else:
        commands.add_parser("evaluate", help="Score any CLIP checkpoint on a dataset.")
    if command == "doctor":
        from hf_clip_domain.cli.doctor import add_parser

        add_parser(commands)
    else:
        commands.add_parser("doctor", help="Say whether this machine trains right; the text to put into a bug report.")
    if command == "compare":
        from hf_clip_domain.cli.compare import add_parser

        add_parser(commands)
    else:
        commands.add_parser("compare", help="Several models on several datasets, and which differences are real.")
    if command == "monitor":
        from hf_clip_domain.cli.monitor import add_parser

        add_parser(commands)
    else:
        commands.add_parser("monitor", help="Compare what a server was asked with what the model was adapted to.")
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
