"""What `--help` shows: the commands by what they are for, a line and an example each."""

from __future__ import annotations

import argparse
import textwrap

EXIT_CODES = "exit status: 0 done, 1 failed with one line on standard error, 2 wrong usage"
# By purpose: the command, what it does, and how it is called.
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "adapt": {
        "train": (
            "Adapt a model: score, train, score again, save.",
            "hf-clip-domain train --domain medical --dataset pairs.csv --output_dir outputs/mine",
        ),
        "tune": (
            "Search the loss's settings by short runs.",
            "hf-clip-domain tune --domain medical --dataset pairs.csv --auto_tune_minutes 20",
        ),
        "merge": (
            "Between base and tuned model: adapted, and little forgotten.",
            "hf-clip-domain merge openai/clip-vit-base-patch32 outputs/mine --output outputs/merged",
        ),
    },
    "look and measure": {
        "data": (
            "Look at pairs as the model will, check them, keep them with DVC.",
            "hf-clip-domain data preview --domain medical --dataset pairs.csv",
        ),
        "evaluate": (
            "Score any CLIP checkpoint on a dataset.",
            "hf-clip-domain evaluate outputs/mine --domain medical --dataset pairs.csv --html report.html",
        ),
        "compare": (
            "Several models on several datasets, and which differences are real.",
            "hf-clip-domain compare starter outputs/mine --datasets medical=pairs.csv scientific",
        ),
        "doctor": (
            "Say whether this machine trains right; the text to put into a bug report.",
            "hf-clip-domain doctor",
        ),
    },
    "use and share": {
        "serve": (
            "Answer requests over HTTP: embeddings, similarity, classes, search.",
            "hf-clip-domain serve outputs/mine --port 8000",
        ),
        "embed": (
            "Embed a corpus of any size into Parquet files, on many processes.",
            "hf-clip-domain embed outputs/mine photos.csv --output embeddings",
        ),
        "export": (
            "A model for ONNX Runtime or MLX, compared with the original.",
            "hf-clip-domain export outputs/mine --format onnx --output exports/mine",
        ),
        "push": (
            "Publish a run's folder or an export on the Hub, in one commit.",
            "hf-clip-domain push outputs/mine --repo_id me/clip-mine --dry_run",
        ),
    },
    "keep in production": {
        "register": (
            "A run's folder as a version of a model that MLflow serves by itself.",
            "hf-clip-domain register outputs/mine --name scans",
        ),
        "promote": (
            "Let servers follow a better version, if it passes the gate.",
            "hf-clip-domain promote scans --candidate outputs/mine",
        ),
        "rollback": (
            "Let servers go back to the version before the last promotion.",
            "hf-clip-domain rollback scans",
        ),
        "monitor": (
            "Compare what a server was asked with what the model was adapted to.",
            "hf-clip-domain monitor outputs/mine --statistics statistics --output drift",
        ),
        "track": (
            "Send the tracking server what it missed of a run.",
            "hf-clip-domain track outputs/mine",
        ),
    },
}
# Of actions within a command.
ACTIONS = {
    "data preview": "hf-clip-domain data preview --domain medical --dataset pairs.csv --output pairs.png",
    "data snapshot": "hf-clip-domain data snapshot data/pairs --push",
    "data validate": "hf-clip-domain data validate pairs.csv",
}


class HelpFormatter(argparse.HelpFormatter):
    """Wraps paragraphs, and leaves lines that begin with spaces as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = textwrap.dedent(text).strip("\n").split("\n\n")
        return "\n\n".join(self._block(block, width, indent) for block in blocks)

    def _block(self, block: str, width: int, indent: str) -> str:
        if any(line.startswith("  ") for line in block.splitlines()):
            return block
        return textwrap.fill(" ".join(block.split()), width, initial_indent=indent, subsequent_indent=indent)


def overview() -> str:
    """All commands, for the description of `hf-clip-domain --help`."""
    lines = ["Adapt CLIP to a domain, and prove what improved."]
    for purpose, commands in COMMANDS.items():
        lines += ["", f"{purpose}:", *(f"  {name:<10} {told}" for name, (told, _) in commands.items())]
    return "\n".join([*lines, "", "`hf-clip-domain COMMAND --help` tells more, with an example."])


def epilog(command: str, more: str | None = None) -> str:
    """What stands below the options of a command, or of an action in it (`"data preview"`)."""
    examples = {name: example for commands in COMMANDS.values() for name, (_, example) in commands.items()}
    return f"example:\n  {(examples | ACTIONS)[command]}\n\n{more or EXIT_CODES}"


def complete(parser: argparse.ArgumentParser, command: str) -> None:
    """Give a command's parser, and those of its actions, the example and the layout."""
    parser.formatter_class, parser.epilog = HelpFormatter, epilog(command, parser.epilog)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                complete(inner, f"{command} {name}")
