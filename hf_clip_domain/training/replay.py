"""A step that runs out of memory is run again: the very same step, with half the micro-batch.

Nothing but the micro-batch changes. The random state and the gradients accumulated so far are put back first, so the
step's gradient is the one it would have had (bitwise at the same size; at dropout 0 to rounding at any size). Of
several processes all run the step again when one of them has to, see `agreement`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

from hf_clip_domain import memory
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.training.agreement import PeerFailed, RollCall
from hf_clip_domain.training.micro_batching import MicroBatches

Result = TypeVar("Result")
_SIGNS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "alloc_failed",
    "bad_alloc",
    "could not create a primitive",  # what oneDNN says, on CPUs, when it cannot allocate
    "could not create a memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, of torch on any device or of Python, says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | PeerFailed):
        return True
    if isinstance(error, RuntimeError):
        return should_reduce_batch_size(error) or any(sign in str(error).lower() for sign in _SIGNS)
    return False


def free_memory() -> None:
    """Give back what nobody uses: unreachable objects, the device's cache, the C library's heap."""
    gc.collect()
    clear_device_cache()
    memory.give_blocks_back()


class StepReplay:
    """Runs a step as often as it takes to fit, each time with half the micro-batch.

    Attributes:
        plan: the micro-batches of the next step; a shortage halves it for good.
        shortages: how often memory ran out.
        tell: called with a kind (`"out_of_memory"`, or `None`) and a sentence when the plan changes.
    """

    def __init__(self, plan: MicroBatches, tell: Callable[[str | None, str], None]) -> None:
        self.plan, self.tell = plan, tell
        self.shortages = 0

    def run(self, step: Callable[[], Result], *, model: nn.Module, rows: int, call: RollCall) -> Result:
        """`step()`, again with a smaller `plan` as often as it takes.

        Args:
            model: whose gradients the step adds to.
            rows: of the contrastive batch.
            call: by which the processes agree; it has the last word after a step.

        Raises:
            ClipDomainError: a single row does not fit.
        """
        start = StepStart(model)
        while True:
            try:
                result = step()
                call()
                return result
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if not isinstance(error, PeerFailed):
                    call.answer_failed()
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            # Outside of the except block, where nothing holds the failed step's activations any more.
            before, self.plan = self.plan, self._halved(rows, reason)
            start.restore(model)
            free_memory()
            self.shortages += 1
            self.tell(
                "out_of_memory",
                f"out of memory ({reason}): run again with a micro-batch of {self.plan.size} instead of "
                f"{before.size or rows}; the contrastive batch stays at {rows}.",
            )

    def _halved(self, rows: int, reason: str) -> MicroBatches:
        smaller = self.plan.halved(rows)
        if smaller is None:
            raise ClipDomainError(
                f"not even a micro-batch of one row fits in memory ({reason}): choose smaller pictures or a smaller "
                "model, or give --gradient_checkpointing true."
            )
        return smaller


class StepStart:
    """What a step begins with: the random states, and the gradients of earlier steps that are being accumulated."""

    def __init__(self, model: nn.Module) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
        self.mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def restore(self, model: nn.Module) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)
        if self.mps is not None:
            torch.mps.set_rng_state(self.mps)
        for name, parameter in model.named_parameters():
            kept = self.gradients.get(name)
            parameter.grad = None if kept is None else kept.clone()
