"""The checks of the guides can fail."""

import pytest

from hf_clip_domain.errors import ClipDomainError
from tests.docs.blocks import Block, read_blocks
from tests.docs.commands import Unfit, check, split_commands
from tests.docs.test_blocks import a_domain, a_launch, a_message, ask, headings, some_metrics


def test_a_block_of_no_known_kind_is_an_error():
    with pytest.raises(ValueError, match=r"page.md:2: a block of the kind 'sh'"):
        read_blocks("page.md", "words\n```sh\nls\n```\n")
    with pytest.raises(ValueError, match=r"page.md:1: a block of the kind ''"):
        read_blocks("page.md", "```\nls\n```\n")
    with pytest.raises(ValueError, match="without an end"):
        read_blocks("page.md", "```text\nls\n")
    (block,) = read_blocks("page.md", "```python\n# mine.py, of mine\n1\n```\n")
    assert (block.where, block.kind, block.file) == ("page.md:1", "python", "mine.py")


def test_commands_are_split_as_a_shell_would():
    text = (
        "A=1 git init && \\\n  dvc init   # a note\n# all of it\npip install 'a[b]' --x '{c: 1}'\nexport D=2 ; make -n"
    )
    assert split_commands(text) == [
        ["git", "init"],
        ["dvc", "init"],
        ["pip", "install", "a[b]", "--x", "{c: 1}"],
        ["export", "D=2"],
        ["make", "-n"],
    ]


@pytest.mark.parametrize(
    "command",
    [
        "hf-clip-domain train --learning_rte 1e-5",
        "hf-clip-domain tune --auto_tune_minute 1",
        "hf-clip-domain train --adapter lara",
        "hf-clip-domain merge starter out",
        "hf-clip-domain promote plant --candidate 1 --forgeting_budget 1",
        "hf-clip-domain evaluate starter --splitt test",
        "hf-clip-domain data snapshoot pairs",
        "hf-clip-domain serve starter --prot 8000",
        "accelerate launch --num_process 2 --nothing recipes/finetune.py",
        "accelerate launch recipes/finetune.py --domian medical",
        "accelerate launch recipes/embed.py starter pairs.csv --outptu x",
        "torchrun --nnode_rank 0 recipes/finetune.py",
        "torchrun --nnodes 2 recipes/finetune.py --domian medical",
        "python scripts/bench_loss.py --sices 8",
        "python scripts/bench_los.py",
        "pip install hf-clip-domain[srve]",
        "pip install something",
        "make everything",
        "rm -r out",
    ],
)
def test_a_wrong_command_fails(command, workplace):
    (words,) = split_commands(command)
    with pytest.raises(Unfit):
        check(words)


def test_a_setting_that_a_command_refuses_fails(workplace):
    with pytest.raises(ClipDomainError, match="max_bad_fraction"):
        check("hf-clip-domain train --max_bad_fraction 2".split())


def test_a_path_that_the_server_does_not_have_fails(address):
    with pytest.raises(AssertionError):
        ask(["localhost:8000/v1/embedings", "-H", "content-type: application/json", "-d", '{"input": "a"}'], address)


def test_unknown_keys_fail(workplace):
    with pytest.raises(ClipDomainError, match="imagee"):
        a_domain(Block("page", 1, "yaml", "name: mine\nextends: industrial\nimagee: {}\n"))
    with pytest.raises(ClipDomainError):
        some_metrics(Block("page", 1, "yaml", "metrics: [{metric: detektion}]\n"))
    settings = "# cluster.yaml\ncompute_environment: LOCAL_MACHINE\ndistributed_type: NO\nnum_procesess: 2\n"
    (workplace / "cluster.yaml").write_text(settings)
    with pytest.raises(ValueError, match="num_procesess"):
        a_launch(Block("page", 1, "yaml", settings))
    message = '{"event": "improved", "run": "a", "text": "b", "time": "", "step": 1, "max_steps": 2, "metric": "m", "value": 1}'
    with pytest.raises(AssertionError):
        a_message(Block("page", 1, "json", message))


def test_headings_are_as_links_name_them():
    assert headings("# A b, `c`\n```text\n# no\n```\n## D-e\n") == {"a-b-c", "d-e"}
