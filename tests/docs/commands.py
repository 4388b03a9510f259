"""Shell commands of the guides, each read by the real parser of the program that it calls."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable
from unittest.mock import patch

from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from hf_clip_domain.cli import merge, promote
from hf_clip_domain.cli.main import main
from hf_clip_domain.cli.options import parse_options
from tests.docs.blocks import ROOT

# Programs that are not this project's: known by name, and not looked into.
FOREIGN = {"airflow", "cp", "dvc", "export", "git", "hf", "mkdir", "mlflow", "source"}
_FOREIGN_CALLS = [["accelerate", "config"], ["python", "-m", "venv"], ["airflow/bin/pip", "install"]]
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


class Unfit(AssertionError):
    """A command that its program would refuse, or that no rule here knows."""


class Parsed(Exception):
    """Ends a program after it has read its options."""


def split_commands(text: str) -> list[list[str]]:
    """The commands of a block as words; comments and settings of the environment (`NAME=value`) are left out."""
    text = re.sub(r"(^|\s)#(\s.*)?$", "", text.replace("\\\n", " "), flags=re.MULTILINE)
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";&|\n"):
            commands.append([])
        elif commands[-1] or not _ASSIGNMENT.match(word):
            commands[-1].append(word)
    return [command for command in commands if command]


def check(words: list[str]) -> None:
    """Have the program's own parser read the command.

    Raises:
        Unfit: it would be refused, or nothing here knows the program.
    """
    try:
        _reader(words)()
    except SystemExit as stop:
        if stop.code:
            raise Unfit(f"{shlex.join(words)}: refused by its parser") from stop
    except Parsed:
        pass


def _reader(words: list[str]) -> Callable[[], object]:
    program, rest = words[0], words[1:]
    if program in FOREIGN or any(words[: len(call)] == call for call in _FOREIGN_CALLS):
        return lambda: None
    if program == "hf-clip-domain":
        return lambda: read_options(rest)
    if words[:2] == ["accelerate", "launch"]:
        return lambda: _launched(launch_command_parser(), words[2:])
    if program == "torchrun":
        return lambda: _launched(get_args_parser(), rest)
    if program == "python" and rest and rest[0].endswith(".py"):
        return lambda: read_script(rest[0], rest[1:])
    if program == "pip" and rest[:1] == ["install"]:
        return lambda: _extras(rest[1:])
    if program == "make":
        return lambda: _targets(rest)
    raise Unfit(f"{shlex.join(words)}: no rule of tests/docs/commands.py knows this program")


def read_options(words: list[str]) -> None:
    """The options of `hf-clip-domain`, by the command itself up to where its work would begin."""
    # No registry is asked: which model it is has nothing to do with the options.
    words = ["starter" if word.startswith("models:/") else word for word in words]
    command, rest = (words[0], words[1:]) if words else ("", [])
    if command in ("train", "tune"):
        parse_options(rest)
    elif command == "merge":
        merge._parse(rest)
    elif command == "promote":
        parse_options(promote._parse(rest)[1])
    else:
        _until_parsed(main, words)


def read_script(script: str, words: list[str]) -> None:
    """The options of a script of this repository, by its own `main` up to where its work would begin."""
    path = ROOT / script
    if not path.is_file():
        raise Unfit(f"{script}: no such file")

    def call() -> None:
        with patch.object(sys, "argv", [script, *words]), patch.object(sys, "path", [str(path.parent), *sys.path]):
            runpy.run_path(str(path), run_name="read_only")["main"]()

    _until_parsed(call)


def _until_parsed(function: Callable, *arguments: object) -> None:
    def parse_args(parser, args=None, namespace=None):
        real(parser, args, namespace)
        raise Parsed

    def execute(*_):
        raise Unfit("the script would have replaced this process before reading its options")

    real = argparse.ArgumentParser.parse_args
    with patch.object(argparse.ArgumentParser, "parse_args", parse_args), patch.object(os, "execv", execute):
        if (status := function(*arguments)) != 0:
            raise Unfit(f"{shlex.join(map(str, arguments[0]))}: status {status} before its options were read")


def _launched(parser: argparse.ArgumentParser, words: list[str]) -> None:
    known = parser.parse_args(words)
    script, rest = known.training_script, known.training_script_args
    rest = rest[1:] if rest[:1] == ["--"] else rest
    if script == "recipes/finetune.py":
        parse_options(rest)
    elif script == "recipes/embed.py":
        read_options(["embed", *rest])
    else:
        read_script(script, rest)


def _extras(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words:
        if named := re.fullmatch(rf"{project['name']}\[(.*)\]", word):
            unknown = set(named[1].split(",")) - set(project["optional-dependencies"])
            if unknown:
                raise Unfit(f"{word}: no extra {', '.join(sorted(unknown))}")
        elif word not in ("bitsandbytes", "torchao"):
            raise Unfit(f"pip install {word}: not this project, nor a package that the guides may name")


def _targets(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        if not re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE):
            raise Unfit(f"make {word}: no such target")
