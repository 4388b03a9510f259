"""No group and no picture on two sides."""

import pytest

from hf_clip_domain.data.splits import assign_splits


def assign(keys, given=None, validation=0.1, test=0.1, seed=0):
    return assign_splits(
        given or [None] * len(keys), keys, validation_fraction=validation, test_fraction=test, seed=seed
    )


def test_shares_are_about_right_and_depend_on_the_seed_alone():
    keys = [[f"picture:{index}"] for index in range(4000)]
    splits = assign(keys)
    assert splits == assign(keys) != assign(keys, seed=1)
    assert abs(splits.count("test") - 400) < 80 and abs(splits.count("validation") - 400) < 80


def test_more_rows_move_none_of_the_others():
    keys = [[f"picture:{index}"] for index in range(500)]
    assert assign(keys + [["picture:new"]])[:500] == assign(keys)


def test_rows_that_share_a_group_or_a_picture_stay_together():
    # A chain: 0 and 1 share a picture, 1 and 2 a group, 2 and 3 a picture.
    chain = [["picture:a", "group:1"], ["picture:a", "group:2"], ["picture:b", "group:2"], ["picture:b", "group:3"]]
    others = [[f"picture:{index}"] for index in range(200)]
    for seed in range(20):
        assert len(set(assign(chain + others, seed=seed)[:4])) == 1


def test_given_splits_win_and_leaking_training_rows_are_left_out():
    keys = [["picture:a"], ["picture:a"], ["picture:b"], ["picture:c"]]
    splits = assign(keys, given=["train", "test", "train", "validation"])
    assert splits == [None, "test", "train", "validation"]


@pytest.mark.parametrize("count", [3, 4, 10])
def test_a_handful_of_rows_fills_every_split(count):
    for seed in range(20):
        splits = assign([[f"picture:{index}"] for index in range(count)], seed=seed)
        assert set(splits) == {"train", "validation", "test"}


def test_one_single_group_is_training_whatever_the_seed(caplog):
    keys = [[f"picture:{i}", "group:all"] for i in range(5)]
    for seed in range(20):
        caplog.clear()
        assert set(assign(keys, seed=seed, validation=0.5, test=0.4)) == {"train"}
        assert "5 rows belong to one group" in caplog.text
    caplog.clear()
    assign(keys, validation=0, test=0)
    assert not caplog.text


def test_leaking_rows_are_counted(caplog):
    assert assign([["picture:a"], ["picture:a"], ["picture:b"]], given=["train", "test", "train"], validation=0) == [
        None,
        "test",
        "train",
    ]
    assert "1 rows share a picture or a group with a held-out split" in caplog.text
