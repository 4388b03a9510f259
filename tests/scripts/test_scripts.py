"""Every script starts, has the options that its first lines show, and, where seconds are enough, measures something."""

import ast
import importlib
import os
import re
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "scripts"
FILES = sorted(FOLDER.rglob("*.py"))
SCRIPTS = [path for path in FILES if path.parent == FOLDER and "__main__" in path.read_text(encoding="utf-8")]
PARTS = [path for path in FILES if path not in SCRIPTS]
# Small enough for seconds, and a word of what is printed. Those that are not named need data, a server or minutes.
QUICK = {
    "bench_attention": ("--tokens 64 --batch 1 --head_size 8 --budgets 1 --turns 1", "| 1 "),
    "bench_batches": ("--pairs 8 --rounds 1", "| in one thread |"),
    "bench_short_attention": ("--batch 2 --rounds 1", "| starter, pictures |"),
    "bench_monitor": ("--batch 2 --steps 1 --rounds 1", "with / without: "),
    "bench_picture_sizes": ("--sizes 64 --pictures 2 --rounds 1", "64"),
    "bench_recompute": ("--batch 4 --micro 2 --rounds 1", "| 1 of 2 kept |"),
    "bench_retrieval": ("--rows 300 --dim 8", "300"),
}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Beside its parts, as a script is started, but not anew; what it imports from there is forgotten after it."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # for which bench_attention would start itself again
    for name in ("execv", "execve"):
        monkeypatch.setattr(os, name, lambda *_: pytest.fail("this process would become another"))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(FOLDER):
            del sys.modules[name]


def start(path, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(path), *words])
    runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_starts_and_its_first_lines_name_its_options(path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        start(path, ["--help"], monkeypatch)
    assert end.value.code == 0
    shown = capsys.readouterr().out
    told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    commands = re.findall(rf"(?:python|launch) (?:\S+ )*?scripts/{path.name}(?:.*\\\n)*.*", told)
    assert commands, "the first lines give the command"
    for command in commands:
        own = re.split(r"\s#|\s--\s", command)[0]
        assert set(re.findall(r"(?<=\s)--[\w-]+", own)) <= set(re.findall(r"--[\w-]+", shown))


@pytest.mark.parametrize("path", PARTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_part_of_scripts_can_be_imported(path):
    try:
        importlib.import_module(".".join(path.relative_to(FOLDER).with_suffix("").parts).removesuffix(".__init__"))
    except ModuleNotFoundError as error:  # a peer's program, which runs in an environment made for it
        assert path.parent.name == "peers" and error.name in ("torchvision", "open_clip", "sentence_transformers")


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_small_measurement(name, monkeypatch, capsys):
    words, expected = QUICK[name]
    start(FOLDER / f"{name}.py", words.split(), monkeypatch)
    assert expected in capsys.readouterr().out
