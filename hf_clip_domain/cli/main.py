"""`hf-clip-domain`: finds the command and hands it its arguments. Commands are imported only when used."""

from __future__ import annotations

import argparse
import importlib
import sys
from types import ModuleType

from hf_clip_domain import __version__
from hf_clip_domain.cli.errors import run_cleanly
from hf_clip_domain.mps_settings import prepare_mps

# The module of the same name holds a command. These take the hundred options of a training run, which come from
# dataclasses and are read by Hugging Face's own parser: `run(argv)`.
_OF_A_RUN = {
    "train": "Adapt a model: score, train, score again, save.",
    "tune": "Search the loss's settings by short runs.",
    "merge": "Between base and tuned model: adapted, and little forgotten.",
    "promote": "Let servers follow a better version of a registered model, if it passes the gate.",
}
# These add their own few: `add_parser(commands)`.
_COMMANDS = {
    "data": "Keep data with DVC, check it, look at it as the model will.",
    "evaluate": "Score any CLIP checkpoint on a dataset.",
    "doctor": "Say whether this machine trains right; the text to put into a bug report.",
    "compare": "Several models on several datasets, and which differences are real.",
    "embed": "Embed a corpus of any size into Parquet files, on many processes.",
    "export": "A model for ONNX Runtime or MLX, compared with the original.",
    "monitor": "Compare what a server was asked with what the model was adapted to.",
    "push": "Publish a run's folder or an export on the Hub, in one commit.",
    "register": "A run's folder as a version of a model that MLflow serves by itself.",
    "rollback": "Let servers go back to the version before the last promotion.",
    "serve": "Answer requests over HTTP: embeddings, similarity, classes, search.",
    "track": "Send the tracking server what it missed of a run.",
}
EXIT_CODES = "exit status: 0 done, 1 failed with one line on standard error, 2 wrong usage"


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    return run_cleanly(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv: list[str]) -> int:
    prepare_mps()  # before any command imports torch
    command = argv[0] if argv else ""
    if command in _OF_A_RUN:
        return _module(command).run(argv[1:])
    parser = argparse.ArgumentParser(
        prog="hf-clip-domain", description="Adapt CLIP to a domain, and prove what improved.", epilog=EXIT_CODES
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, told in {**_OF_A_RUN, **_COMMANDS}.items():
        if name == command:
            _module(name).add_parser(commands)
        else:
            commands.add_parser(name, help=told)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"hf_clip_domain.cli.{command}")


if __name__ == "__main__":
    sys.exit(main())
