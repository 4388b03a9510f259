"""`--per_device_train_batch_size auto`: a contrastive batch for whoever has no wish.

More negatives make a better objective and fewer steps; on a small set too few steps an epoch cost more than negatives
gain. Memory hardly matters, since micro-batches bound it: only pixels and embeddings grow with the batch.
"""

from __future__ import annotations

STEPS_AN_EPOCH = 16  # at least
SMALLEST, LARGEST = 16, 4096  # pairs over all processes
SHARE_OF_ROOM = 0.1  # that the pixels of a batch, and of the one that is being prepared, may take


def choose_batch_size(pairs: int | None, *, processes: int, image_size: int, room: int) -> int:
    """Pairs a process contrasts at once: a power of two.

    Args:
        pairs: of the training split; `None` for a stream, of which nobody knows.
        processes: that train together.
        image_size: of the square pictures, in pixels.
        room: bytes of memory that are left to a process.
    """
    most = LARGEST if pairs is None else min(LARGEST, max(SMALLEST, pairs // STEPS_AN_EPOCH))
    bytes_of_a_pair = 2 * 3 * image_size**2 * 4  # float32, twice
    each = max(1, min(most // processes, int(SHARE_OF_ROOM * room) // bytes_of_a_pair))
    return 1 << (each.bit_length() - 1)
