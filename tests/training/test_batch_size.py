"""A contrastive batch by itself: enough steps an epoch, within memory."""

import pytest

from hf_clip_domain.training.batch_size import choose_batch_size

PLENTY = 2**40


@pytest.mark.parametrize(
    ("pairs", "processes", "room", "expected"),
    [
        (1_000, 1, PLENTY, 32),  # 31 steps an epoch; 64 would give 15
        (1_024, 1, PLENTY, 64),
        (100, 1, PLENTY, 16),  # never fewer
        (10_000_000, 1, PLENTY, 4096),
        (10_000_000, 8, PLENTY, 512),  # all processes together
        (None, 1, PLENTY, 4096),
        (None, 1, 2**30, 64),  # a tenth of 1 GiB holds 89 pictures of 224 pixels twice
        (None, 1, 0, 1),
    ],
)
def test_the_batch_suits_pairs_and_memory(pairs, processes, room, expected):
    assert choose_batch_size(pairs, processes=processes, image_size=224, room=room) == expected
