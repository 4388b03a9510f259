"""Every code block of README.md and docs does what it shows; the rules stand in blocks.py."""

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from transformers import TrainerState

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.cli.main import main
from hf_clip_domain.domains import load_domain
from hf_clip_domain.training.news import RunNews
from tests.docs.blocks import KINDS, ROOT, pages, read_blocks
from tests.docs.commands import check, split_commands

# After a training command's own options, so that it takes seconds; a model of the Hub is the starter.
SMALL = ["--smoke", "--max_steps", "2", "--probe_rows", "20", "--eval_resolutions", "none", "--precision", "fp32"]
OFFLINE = {"openai/clip-vit-base-patch32": "starter"}
# What a Python block is run with in place of what it shows, so that it takes seconds and needs no network. Each must
# be there.
IN_PLACE = {
    "docs/training.md": {
        "per_device_train_batch_size=256": 'per_device_train_batch_size=16, max_steps=2, report_to="none"'
    },
    "docs/feature_cache.md": {
        'feature_cache="auto"': 'feature_cache="cache", use_cpu=True, max_steps=2, report_to="none"'
    },
    "docs/embedding.md": {"reshape(-1, 512)": "reshape(-1, 192)"},
    "docs/deployment/README.md": {'"http://127.0.0.1:8000", api_key="clip-..."': "ADDRESS"},
}


def of_kind(*kinds):
    return [page for page in pages() if any(block.kind in kinds for block in read_blocks(page))]


def keep_named_files(page, folder):
    for block in read_blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text)
            yield block


def test_every_block_is_of_a_kind_that_is_checked():
    found = [block for page in pages() for block in read_blocks(page)]
    assert len(found) > 60 and {block.kind for block in found} <= set(KINDS)


@pytest.mark.parametrize("page", of_kind("bash", "bash run"))
def test_commands_are_read_by_their_own_parsers(page, workplace, address):
    list(keep_named_files(page, workplace))
    for block in read_blocks(page):
        if block.kind.startswith("bash"):
            for words in split_commands(block.text):
                if words[0] == "curl":
                    ask(words[1:], address)
                else:
                    check(words)


def ask(words, address):
    """What curl would: sent to a real server, unless it is another program's (MLflow's at port 5001)."""
    url, values = None, {"-H": [], "-d": [], "-F": []}
    words = iter(words)
    for word in words:
        if word in values:
            values[word].append(next(words))
        else:
            assert not word.startswith("-") and url is None, word
            url = word
    if ":5001/" in url:
        return
    path = re.fullmatch(r"(?:localhost|127\.0\.0\.1):8000(/.*)", url)[1]
    fields = [value.split("=", 1) for value in values["-F"]]
    files = [(name, open(value[1:], "rb")) for name, value in fields if value.startswith("@")]
    answer = httpx.post(
        address + path,
        headers=dict(header.split(": ", 1) for header in values["-H"]),
        content="".join(values["-d"]) or None,
        data={name: [v for n, v in fields if n == name] for name, value in fields if not value.startswith("@")},
        files=files or None,
        timeout=60,
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.slow
@pytest.mark.parametrize("page", of_kind("bash run"))
def test_commands_marked_run_do_what_they_say(page, workplace):
    list(keep_named_files(page, workplace))
    for block in read_blocks(page):
        if block.kind == "bash run":
            for words in split_commands(block.text):
                assert words[0] == "hf-clip-domain", f"{block.where}: only this project's commands are run"
                words = [OFFLINE.get(word, word) for word in words[1:]]
                if words[0] in ("train", "merge"):
                    start = ["--model_name_or_path", "starter"] if words[0] == "train" else []
                    words += [*start, *SMALL]
                assert main(words) == 0, f"{block.where}: {shlex.join(words)}"


@pytest.mark.slow
@pytest.mark.parametrize("page", of_kind("python"))
def test_python_is_run(page, workplace, request):
    names = {"__name__": "guide"}
    text = [block for block in read_blocks(page) if block.kind == "python"]
    assert all(any(shown in block.text for block in text) for shown in IN_PLACE.get(page, {}))
    prepare(page, names, request)
    for block in text:
        code = block.text
        for shown, run in IN_PLACE.get(page, {}).items():
            code = code.replace(shown, run)
        exec(compile("\n" * block.line + code, ROOT / page, "exec"), names)
    after(page, names)


def prepare(page, names, request):
    """The little that a page takes for granted."""
    if page == "docs/deployment/README.md":
        names["ADDRESS"] = request.getfixturevalue("address")
    if page == "docs/embedding.md":
        assert main(["embed", "outputs/my-model", "photos.csv", "--output", "embeddings"]) == 0
    if page == "docs/towers.md":
        from hf_clip_domain.models.loading import load_model

        for part in load_model("towers"):
            part.save_pretrained("out")


def after(page, names):
    """What is to be there then."""
    if page == "README.md":
        assert names["scores"].shape == (1, 2) and names["probabilities"].sum() == pytest.approx(1)
    if page == "docs/drift.md":
        assert list(Path("statistics").glob("window-*.npz"))
    if page == "docs/feature_cache.md":
        assert names["trainer"].state.global_step == 2 and list(Path("cache").iterdir())
    if page == "docs/training.md":
        assert names["trainer"].state.global_step == 2
        from transformers import CLIPModel

        CLIPModel.from_pretrained("out")


def a_message(block):
    shown, sent = json.loads(block.text), []
    arguments = ClipTrainingArguments(shown["run"], use_cpu=True, metric_for_best_model=shown["metric"])
    news = RunNews(arguments)
    news.notifier = SimpleNamespace(send=sent.append)
    state = TrainerState(global_step=shown["step"], max_steps=shown["max_steps"], best_metric=0.1401)
    news.on_train_begin(arguments, state, None)
    news.on_evaluate(arguments, state, None, metrics={f"eval_{shown['metric']}": shown["value"]})
    assert {**sent[-1], "time": ""} == {**shown, "time": ""}


def a_domain(block, **settings):
    with open("page.yaml", "w") as stream:
        yaml.safe_dump({**settings, **yaml.safe_load(block.text)}, stream)
    return load_domain("page.yaml")


def some_metrics(block):
    assert a_domain(block, name="page", extends="industrial").metrics


def a_pod(block):
    container = yaml.safe_load(block.text)
    assert {container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")} == {
        "/readyz",
        "/healthz",
    }
    check(["hf-clip-domain", *container["args"]])


def a_launch(block):
    load_config_from_file(block.file)


# What loads the YAML and JSON blocks of a page, in their order.
FORMATS = {
    "docs/domains.md": [a_domain],
    "docs/evaluation.md": [some_metrics],
    "docs/many_processes.md": [a_launch, a_launch],
    "docs/monitoring.md": [a_message],
    "docs/peers.md": [a_domain],
    "docs/serving.md": [a_pod],
}


@pytest.mark.parametrize("page", of_kind("yaml", "json"))
def test_yaml_and_json_are_what_would_be_loaded(page, workplace):
    list(keep_named_files(page, workplace))
    found = [block for block in read_blocks(page) if block.kind in ("yaml", "json")]
    for block, load in zip(found, FORMATS[page], strict=True):
        load(block)


def headings(text):
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if not re.match(r"\w+:", target):
            file, _, heading = target.partition("#")
            there = folder / file if file else ROOT / page
            assert there.exists(), f"{page}: {target}"
            assert not heading or heading in headings(there.read_text()), f"{page}: {target}"


def test_every_guide_stands_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    for page in pages():
        if page.startswith("docs/") and page != "docs/README.md":
            name = page.removeprefix("docs/")
            assert f"({name})" in index or name == "deployment/README.md", name


def test_options_named_in_the_text_exist():
    """`--words` within sentences: of some command, script or tool; a misspelt one is found here."""
    known = known_options()
    unknown = {}
    for page in pages():
        text = re.sub(r"^ *```.*?^ *```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
        for span in re.findall(r"`([^`]+)`", text):
            for option in re.findall(r"(?<!\S)--[a-z][\w-]*", span):
                if option not in known:
                    unknown.setdefault(option, page)
    assert not unknown


def known_options():
    files = [*(ROOT / "hf_clip_domain/cli").glob("*.py"), *(ROOT / "scripts").glob("*.py")]
    found = {option for file in files for option in re.findall(r'"(--[a-z][\w-]*)"', file.read_text())}
    from accelerate.commands.launch import launch_command_parser

    from hf_clip_domain.cli.options import _parser
    from hf_clip_domain.serving.settings import fields

    parsers = [_parser(), launch_command_parser()]
    found |= {option for parser in parsers for action in parser._actions for option in action.option_strings}
    return found | {f"--{name}" for name in fields()}
