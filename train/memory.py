"""Less memory for a training step: spikes kept as bytes, and segments of the network computed twice."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from train.neurons import IF, LIF, PLIF, Norm


@contextmanager
def spikes_as_bytes(network: nn.Module, compress: bool) -> Iterator[None]:
    """While open, what a forward pass of `network` keeps of spikes for the way back is uint8, a quarter of float32.

    The gradients stay the same bit for bit: a spike is 0 or 1. Nothing happens unless `compress`.
    """
    if not compress:
        yield
        return
    spikes: dict[int, StorageWeakRef] = {}

    def mark(_module: nn.Module, _inputs: Any, out: Tensor) -> None:
        storage = out.untyped_storage()
        spikes[storage.data_ptr()] = StorageWeakRef(storage)

    def pack(kept: Tensor) -> Tensor | tuple[Tensor, torch.dtype]:
        known = spikes.get(kept.untyped_storage().data_ptr())
        # The address of freed spikes may by now be that of something else.
        if known is None or known.expired():
            return kept
        return kept.to(torch.uint8), kept.dtype

    def unpack(kept: Tensor | tuple[Tensor, torch.dtype]) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept[0].to(kept[1])

    hooks = [module.register_forward_hook(mark) for module in network.modules() if isinstance(module, LIF | PLIF | IF)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def in_segments(body: nn.Sequential, x: Any, segments: int) -> Any:
    """body(x), keeping only what stands between `segments` runs of its children; the rest is computed again on the
    way back (Chen et al. 2016). Gradients and running statistics are those of body(x)."""
    children = list(body)
    for start, end in pairwise(len(children) * i // segments for i in range(segments + 1)):
        segment = nn.Sequential(*children[start:end])
        x = checkpoint(segment, x, use_reentrant=False, context_fn=partial(ordinary_and_again, segment))
    return x


def ordinary_and_again(segment: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds the first and the second forward pass of a segment."""
    return nullcontext(), once_more(segment)


@contextmanager
def once_more(segment: nn.Module) -> Iterator[None]:
    """A second forward pass of a segment: from resting membranes, and without counting its batch twice."""
    buffers = [b for m in segment.modules() if isinstance(m, Norm) for b in m.buffers()]
    before = [b.clone() for b in buffers]
    functional.reset_net(segment)
    try:
        yield
    finally:  # the recomputation ends by an exception as soon as it has what it needs
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
