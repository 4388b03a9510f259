"""Embedding a micro-batch that keeps nothing but its result, and is done again when its gradient is asked for.

torch's `checkpoint` does so by keeping the graph without its tensors. On a CPU the many small blocks of that graph come to
lie between the large ones, which the C library then cannot use again: the peak was twice as high as it had to be. There
the graph ends with the micro-batch, as in GradCache (Gao et al. 2021), inside one function whose inputs are the parameters,
so that to autograd it is an ordinary operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_clip_domain.losses.gather import is_distributed


def recomputed(
    encode: Callable[[dict], torch.Tensor | tuple[torch.Tensor, ...]], chunk: dict, parameters: Sequence[nn.Parameter]
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """`encode(chunk)`, with the same gradient of `parameters`; random draws and autocast are the same both times.

    Args:
        encode: from the inputs of a micro-batch to tensors that depend on `parameters` alone, not on other tensors that
            want a gradient.
        parameters: all that it uses and that train; without any, nothing is ever recomputed.
    """
    if not parameters:
        return encode(chunk)
    # Of several processes the weights may be sharded, and are then not the tensors that the towers compute with.
    if is_distributed() or any(parameter.device.type != "cpu" for parameter in parameters):
        return checkpoint(encode, chunk, use_reentrant=False)
    results = _Recomputed.apply(encode, chunk, *parameters)
    return results if len(results) > 1 else results[0]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, encode, chunk: dict, *parameters: nn.Parameter) -> tuple[torch.Tensor, ...]:
        ctx.encode, ctx.chunk, ctx.parameters = encode, chunk, parameters
        ctx.random = torch.get_rng_state()
        ctx.autocast = {"enabled": torch.is_autocast_enabled("cpu"), "dtype": torch.get_autocast_dtype("cpu")}
        # With a graph, which ends here, since towers may choose another way without; and with weights lowered anew, since
        # those that are kept would bring that graph to the other micro-batches.
        with torch.enable_grad(), torch.autocast("cpu", **ctx.autocast, cache_enabled=False):
            results = encode(chunk)
        return tuple(result.detach() for result in (results if isinstance(results, tuple) else (results,)))

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor):
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.autocast("cpu", **ctx.autocast):
            torch.set_rng_state(ctx.random)
            results = ctx.encode(ctx.chunk)
        results = results if isinstance(results, tuple) else (results,)
        pairs = [
            (result, gradient) for result, gradient in zip(results, gradients, strict=True) if result.requires_grad
        ]
        if not pairs:
            return None, None, *(None for _ in ctx.parameters)
        outputs, given = zip(*pairs, strict=True)
        return None, None, *torch.autograd.grad(outputs, ctx.parameters, given, allow_unused=True)
