"""`hf-clip-domain`: finds the command and hands it its arguments. Commands are imported only when used."""

from __future__ import annotations

import argparse
import importlib
import sys
from types import ModuleType

from hf_clip_domain import __version__
from hf_clip_domain.cli.errors import run_cleanly
from hf_clip_domain.cli.help import COMMANDS, EXIT_CODES, HelpFormatter, complete, overview
from hf_clip_domain.mps_settings import prepare_mps

# The module of the same name holds a command. These take the hundred options of a training run, which come from
# dataclasses and are read by Hugging Face's own parser: `run(argv)`. The others add their own few:
# `add_parser(commands)`.
_OF_A_RUN = ("train", "tune", "merge", "promote")


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    return run_cleanly(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv: list[str]) -> int:
    prepare_mps()  # before any command imports torch
    command = argv[0] if argv else ""
    if command in _OF_A_RUN:
        return _module(command).run(argv[1:])
    parser = argparse.ArgumentParser(
        prog="hf-clip-domain",
        usage="%(prog)s [-h] [--version] COMMAND ...",
        description=overview(),
        epilog=EXIT_CODES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", prog=parser.prog, help=argparse.SUPPRESS
    )
    for name in (name for group in COMMANDS.values() for name in group):
        if name == command:
            _module(name).add_parser(commands)
            complete(commands.choices[name], name)
        else:
            commands.add_parser(name)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"hf_clip_domain.cli.{command}")


if __name__ == "__main__":
    sys.exit(main())
