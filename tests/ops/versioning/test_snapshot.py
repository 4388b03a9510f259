"""A dataset kept with real git and DVC: once, whole, with its card, and brought back as it was."""

import json
import re
import shutil

import pytest

from hf_clip_domain import ClipEmbedder
from hf_clip_domain.cli.main import main
from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.data.versions import Pinned, content_of
from hf_clip_domain.data.versions.repository import dvc
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.ops.drift.reference import Reference
from hf_clip_domain.ops.versioning import DatasetCard, revision_of, snapshot, take_snapshot

SPLITS = ["train"] * 8 + ["validation"] * 4 + ["test"] * 4


def captions(source):
    return sorted(text for rows in load_pairs(source).values() for texts in rows["text"] for text in texts)


@pytest.fixture(scope="module")
def kept(repository, pairs, git, tmp_path_factory):
    """A repository whose data was kept twice, and then changed; `(root, first revision, second revision)`."""
    root = repository(tmp_path_factory.mktemp("kept") / "repository")
    data = pairs(root / "data" / "pairs", SPLITS)
    first = take_snapshot(str(data), push=True).revision
    pairs(data, ["train"] * 2, first=16)
    second = take_snapshot(str(data), message="Two more").revision
    (data / "0.png").unlink()
    pairs(data, ["train"], first=18)
    return root, first, second


@pytest.mark.slow
def test_an_unchanged_dataset_is_kept_once(repository, pairs, git, tmp_path, monkeypatch, capsys):
    root = repository(tmp_path / "repository")
    data = pairs(root / "data" / "pairs", [*SPLITS, "train"])
    shutil.copy(data / "1.png", data / "0.png")  # the same picture twice
    (data / "16.png").write_bytes(b"no picture")
    (root / "notes.txt").write_text("staged by the user")
    git(root, "add", "notes.txt")
    monkeypatch.chdir(root)
    assert main(["data", "snapshot", "data/pairs"]) == 0
    revision = capsys.readouterr().out.splitlines()[-1]
    committed = git(root, "show", "--format=%s", "--name-only", "HEAD").split("\n\n")
    assert committed[0] == "Snapshot of data/pairs: 8 train, 4 validation, 4 test, 1 set aside"
    assert committed[1].split() == ["data/.gitignore", "data/pairs.card.md", "data/pairs.dvc"]
    assert git(root, "status", "--porcelain").split("\n")[0] == "A  notes.txt"
    assert revision == f"dvc:{git(root, 'rev-parse', '--short=12', 'HEAD').strip()}:data/pairs"
    git(root, "commit", "--quiet", "--message", "Something else")
    assert main(["data", "snapshot", str(data)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == revision and printed[0].startswith("Unchanged")
    assert git(root, "log", "--oneline").count("\n") == 3
    card = DatasetCard.load(root / "data" / "pairs.card.md")
    assert f"md5: {card.content}" in (root / "data" / "pairs.dvc").read_text()
    figures = card.figures
    assert figures["rows"] == {"total": 17, "used": 16, "set_aside": 1, "left_out": 0}
    assert figures["duplicates"] == {"pictures": 1, "captions": 0, "pairs": 0}
    assert figures["set_aside"] == {"not a picture in a format that Pillow reads": 1}
    assert figures["labels"] == {"distinct": 3, "commonest": {"kind 0": 6, "kind 1": 5, "kind 2": 5}}
    assert figures["pictures"]["width"] == {"least": 32, "median": 32, "most": 32}
    assert "| train | 8 | 8 | 0 |" in card.text()


@pytest.mark.slow
def test_a_revision_brings_back_the_data_of_its_time(kept, monkeypatch, git):
    root, first, second = kept
    monkeypatch.chdir(root)
    assert captions(first) == sorted(f"shade number {number}" for number in range(16))
    assert captions(second) == sorted(f"shade number {number}" for number in range(18))
    commit = second.split(":")[1]
    for other in (f"dvc:{commit}", f"dvc:{commit}:./data/pairs", f"dvc:{commit}:{root / 'data' / 'pairs'}"):
        assert str(Pinned.find(other)) == second
    inside = Pinned.find(f"{second}/3.png").check_out()
    assert inside.read_bytes() == (root / "data" / "pairs" / "3.png").read_bytes()
    # A cache that somebody wrote into is made anew.
    (inside.parent / "4.png").write_bytes(b"")
    assert content_of(Pinned.find(second).check_out()) == Pinned.find(second).content


@pytest.mark.slow
def test_the_remote_has_what_was_pushed(kept, surroundings, git, tmp_path, monkeypatch):
    root, first, second = kept
    git(tmp_path, "clone", "--quiet", str(root), "clone")
    monkeypatch.chdir(tmp_path / "clone")  # DVC's cache is empty here
    shutil.rmtree(surroundings / "cache", ignore_errors=True)
    assert len(captions(first)) == 16
    with pytest.raises(ClipDomainError, match="dvc get failed"):  # which was not pushed
        Pinned.find(second).check_out()


@pytest.mark.slow
def test_changes_since_the_last_snapshot_are_told(kept):
    root, _, second = kept
    found = revision_of(str(root / "data" / "pairs"))
    assert found.revision == f"md5:{content_of(root / 'data' / 'pairs')}" and found.to_json()["changed"]
    assert "(1 new, 1 gone: 18.png, 0.png)" in found.warning and "data snapshot" in found.warning
    assert revision_of(second.replace(":data", f":{root}/data")).revision == second


def test_mistakes_are_told_in_one_sentence(kept, monkeypatch, git):
    root, first, second = kept
    tree = git(root, "mktree", "--missing").strip()  # an empty one
    git(root, "tag", "before", git(root, "commit-tree", tree, "-m", "nothing yet").strip())
    for source, said in [
        ("dvc:", "expected dvc:REVISION"),
        ("dvc:nowhere", "has no commit, tag or branch 'nowhere'"),
        ("dvc:HEAD:data/nothing", "DVC tracks no data/nothing at that revision; there is dvc:HEAD:data/pairs"),
        ("dvc:HEAD:data/pairs/none.png", "has no none.png at that revision"),
        ("dvc:HEAD~2", "say which of the data that DVC tracks there: none"),
        ("dvc:before", "DVC's own files are not part of that revision"),
    ]:
        monkeypatch.chdir(root)
        with pytest.raises(ClipDomainError, match=said):
            load_pairs(source)
    monkeypatch.chdir("/")
    with pytest.raises(ClipDomainError, match="there is no git repository here"):
        load_pairs(first)
    for source in (first, "owner/name", "shards/{0..9}.tar"):
        with pytest.raises(ClipDomainError, match="snapshot already|no such file|name the folder"):
            take_snapshot(source)


@pytest.mark.slow
def test_a_table_is_kept_with_its_pictures(repository, pairs, tmp_path):
    root = repository(tmp_path / "repository")
    data = pairs(root / "set", SPLITS)
    table = (data / "metadata.jsonl").rename(data / "mine.jsonl")
    revision = take_snapshot(str(table)).revision
    assert revision.endswith(":set/mine.jsonl") and (root / "set.mine.jsonl.card.md").is_file()
    assert revision_of(str(table)).revision == revision
    (data / "3.png").write_bytes((data / "4.png").read_bytes())
    assert "changed since" in revision_of(str(table)).warning
    pinned = revision.replace(":set", f":{root}/set")
    assert len({row["bytes"] or row["path"] for rows in load_pairs(pinned).values() for row in rows["image"]}) == 16
    shutil.copy(table, root / "outer.jsonl")
    (root / "outer.jsonl").write_text(json.dumps({"image": "set/1.png", "text": "one"}))
    with pytest.raises(ClipDomainError, match="at the root of the repository"):
        take_snapshot(str(root / "outer.jsonl"))
    pairs(root / "beside", SPLITS)
    with open(root / "beside" / "metadata.jsonl", "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"file_name": "../set/1.png", "text": "one", "split": "train"}) + "\n")
    with pytest.raises(ClipDomainError, match="would not bring it back"):
        take_snapshot(str(root / "beside"))


def test_without_dvc_the_content_is_the_revision(tmp_path, pairs, surroundings, without_dvc, capsys):
    data = pairs(tmp_path / "pairs", SPLITS)
    for begin in ("Wrote", "Unchanged"):
        assert main(["data", "snapshot", str(data)]) == 0
        first, note, revision = capsys.readouterr().out.splitlines()
        assert first.startswith(begin) and revision == f"md5:{content_of(data)}"
        assert 'pip install "hf-clip-domain[dvc]"' in note and "dvc init" in note
    assert revision_of(str(data)).to_json() == {"revision": revision, "content": revision[4:], "changed": False}
    (data / "3.png").unlink()
    assert "has changed since its last snapshot" in revision_of(str(data)).warning
    assert main(["data", "snapshot", str(data), "--push"]) == 1
    assert "--push needs DVC" in capsys.readouterr().err
    table = (data / "metadata.jsonl").rename(data / "mine.jsonl")
    before = take_snapshot(str(table)).revision
    (data / "4.png").write_bytes((data / "5.png").read_bytes())  # the pictures that a table names are part of it
    assert revision_of(str(table)).warning and take_snapshot(str(table)).revision != before


def test_where_dvc_is_used_and_missing_the_extra_is_named(kept, without_dvc, monkeypatch, surroundings):
    root, first, second = kept
    monkeypatch.chdir(root)
    shutil.rmtree(surroundings / "cache", ignore_errors=True)
    for call in (lambda: take_snapshot("data/pairs"), lambda: load_pairs(first)):
        with pytest.raises(ClipDomainError, match=r'pip install "hf-clip-domain\[dvc\]"'):
            call()
    assert revision_of("data/pairs").warning  # which needs no DVC


@pytest.mark.slow
def test_what_dvc_ignores_is_no_change_and_what_git_does_not_hold_is_told(repository, pairs, git, tmp_path):
    root = repository(tmp_path / "repository")
    git(root, "update-ref", "-d", "HEAD")  # whose user has not committed anything yet
    data = pairs(root / "pairs", SPLITS)
    (root / ".dvcignore").write_text("*.tmp\n")
    (data / "left.tmp").write_text("by an editor")
    dvc(["add", "pairs"], root)
    found = revision_of(str(data))
    assert found.revision == f"md5:{found.content}" and "pairs.dvc is not committed to git" in found.warning
    revision = take_snapshot(str(data)).revision
    assert revision_of(str(data)).revision == revision and not revision_of(str(data)).warning
    assert {".dvc/config", ".dvcignore", "pairs.dvc"} <= set(git(root, "ls-tree", "-r", "--name-only", "HEAD").split())
    assert captions(revision.replace(":pairs", f":{root}/pairs")) == captions(data)
    (data / "0.png").write_bytes((data / "1.png").read_bytes())
    assert "has changed since its last snapshot" in revision_of(str(data)).warning


def test_what_has_no_files_of_its_own():
    assert revision_of(None).revision.startswith("samples:")
    assert revision_of("owner/name", hub_revision="v2").revision == "hub:v2"


def test_a_stream_is_not_read_for_its_revision(tmp_path, pairs, surroundings):
    data = pairs(tmp_path / "pairs", SPLITS)
    assert revision_of(str(data), streaming=True).revision == "unknown"


@pytest.mark.slow
def test_the_drift_reference_is_made_once_and_kept_with_the_data(repository, pairs, git, tmp_path, monkeypatch):
    root = repository(tmp_path / "repository")
    data = pairs(root / "pairs", ["train"] * 10 + ["test"] * 60)
    embedder = ClipEmbedder.from_pretrained("starter")
    first = take_snapshot(str(data), embedder=embedder, model="starter")
    with monkeypatch.context() as patched:
        patched.delattr(snapshot, "make_reference")  # it is not called again
        again = take_snapshot(str(data), embedder=embedder, model="starter")
    assert (again.revision, again.new) == (first.revision, False) and not git(root, "status", "--porcelain")
    meta = Reference.load(root / "pairs.drift_reference.npz").meta
    assert meta["model"] == "starter" and first.revision.split(":")[0] == "dvc"
    assert (
        DatasetCard.load(root / "pairs.card.md").reference["rows"] == 62
    )  # two validation rows are carved out of training
    assert str(Pinned.find(f"dvc:HEAD:{root}/pairs")) == first.revision
    assert str(Pinned.find(f"dvc:HEAD:{root}/pairs.drift_reference.npz")).endswith(".npz")
    pairs(data, ["train"], first=70)
    assert "of earlier data" in " ".join(take_snapshot(str(data)).notes)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--min_rows", "9"], "the train split has 8 rows, fewer than --min_rows 9; the test split has 4 rows"),
        (["--min_rows", "2"], "1 of 17 rows cannot be used .1 x not a picture"),
        (["--min_rows", "2", "--max_bad_fraction", "0.1"], None),
        (["--max_bad_fraction", "1.5"], "expected a share"),
        (["--min_rows", "0"], "expected 1 or more"),
    ],
)
def test_validation_says_what_speaks_against_training(tmp_path, pairs, capsys, options, said):
    data = pairs(tmp_path / "pairs", [*SPLITS, "train"])
    (data / "16.png").write_bytes(b"no picture")
    status = main(["data", "validate", str(data), *options])
    error = capsys.readouterr().err
    assert status == (0 if said is None else 1)
    if said is not None:
        assert re.search(said, error)
