"""The architecture's rule: a room imports only what lies below it. And no file outgrows its idea."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_clip_domain"
# From the ground up; rooms of one level do not import each other unless listed in NEIGHBOURS.
LEVELS = [
    {
        "errors",
        "types",
        "similarity",
        "_optional",
        "memory",
        "device",
        "mps_settings",
        "notification",
        "charts",
        "page",
    },
    {"domains", "data", "models", "losses"},
    {"embedder", "arguments"},
    {"training", "evaluation", "corpus", "serving"},
    {"sharing"},
    {"ops"},
    {"cli"},
]
NEIGHBOURS = {
    ("data", "domains"),
    ("similarity", "errors"),
    ("_optional", "errors"),
    ("types", "errors"),
    ("device", "errors"),
    ("notification", "errors"),
}
# Rooms that may know no more than this of what lies below them: a loss sees no model, production no training stack.
ONLY = {
    "domains": {"errors"},
    "losses": {"errors", "types", "similarity"},
    "embedder": {"errors", "similarity", "domains", "data", "models"},
    "arguments": {"errors", "models", "notification"},
    "corpus": {"errors", "data", "models", "embedder"},
    "serving": {"errors", "types", "similarity", "_optional", "device", "memory", "data", "models", "embedder"},
}
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [node.module] if node.module != "hf_clip_domain" else [f"hf_clip_domain.{a.name}" for a in node.names]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("hf_clip_domain."):
                yield name.split(".")[1]


def allowed(room, other):
    if room == other or other == "__version__":
        return True
    below = LEVEL[other] < LEVEL[room] or (room, other) in NEIGHBOURS
    return below and other in ONLY.get(room, LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_what_lies_below(path):
    room = room_of(path)
    assert room in LEVEL, f"{room} is a new room: give it a level"
    wrong = {other for other in imported_rooms(path) if not allowed(room, other)}
    assert not wrong


def test_the_rule_can_fail():
    assert not allowed("training", "evaluation") and not allowed("losses", "models") and not allowed("data", "cli")
    assert not allowed("serving", "losses") and not allowed("serving", "arguments") and allowed("serving", "embedder")


def test_files_stay_small():
    long = {str(path): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: lines for name, lines in long.items() if lines > 350}


def test_importing_the_package_loads_no_framework():
    program = (
        "import sys, hf_clip_domain; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_server_loads_no_training_stack():
    program = (
        "import sys, hf_clip_domain.serving.app as app, hf_clip_domain.serving.run; "
        "from hf_clip_domain.serving.settings import Settings; app.create_app(Settings()); "
        "rooms = ('training', 'evaluation', 'losses', 'arguments', 'cli'); "
        "heavy = ['datasets', 'transformers.trainer', *(f'hf_clip_domain.{room}' for room in rooms)]; "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves():
    import hf_clip_domain

    for name in hf_clip_domain.__all__:
        assert getattr(hf_clip_domain, name) is not None
    with pytest.raises(AttributeError):
        _ = hf_clip_domain.NoSuchName
