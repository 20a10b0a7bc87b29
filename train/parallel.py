"""Several processes that train together: sums, splits and statistics over them. With one process, nothing happens."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is."""
    return dist.get_rank() if processes() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that prints and writes files."""
    return rank() == 0


def starts_as_main() -> bool:
    """`is_main` before the processes know each other: by what torchrun, Fabric or the user told this one."""
    names = ["RANK"] if "RANK" in os.environ else ["LOCAL_RANK", "NODE_RANK"]
    return all(int(os.environ.get(name, "0")) == 0 for name in names)


def say(text: str) -> None:
    """Print in the main process."""
    if is_main():
        print(text, flush=True)


def barrier() -> None:
    """Wait until every process is here."""
    if processes() > 1:
        dist.barrier()


def own_part(batch_size: int) -> slice:
    """Which images of a global batch are this process's.

    Raises ValueError for a batch that cannot be split evenly over the processes.
    """
    if batch_size % processes():
        near = max(1, batch_size // processes()) * processes()
        raise ValueError(
            f"a batch of {batch_size} images cannot be split over {processes()} processes: "
            f"take a multiple, such as --optim.batch_size {near}"
        )
    size = batch_size // processes()
    return slice(rank() * size, (rank() + 1) * size)


def own_rows(n: int) -> slice:
    """Which of n rows are this process's: a block, the blocks in the order of the processes."""
    return slice(n * rank() // processes(), n * (rank() + 1) // processes())


def mean(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes; no gradient."""
    return all_reduce(values) / processes()


def largest(*values: int) -> list[int]:
    """For each number the largest that any process has."""
    if processes() == 1:
        return list(values)
    together = torch.tensor(values, device=device())
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return [int(value) for value in together.tolist()]


def all_reduce(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes; no gradient, and no waiting for a GPU."""
    if processes() == 1:
        return values
    total = values.to(device(), copy=True)
    dist.all_reduce(total)
    return total.to(values.device)


def share_buffers(network: nn.Module) -> None:
    """Give every process the main one's running statistics: without sync_bn each has seen other batches."""
    if processes() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def gather(values: Tensor, *, axis: int) -> Tensor:
    """The processes' tensors, which may differ in length along `axis`, one after the other along it."""
    if processes() == 1:
        return values
    parts: list[Tensor] = [torch.empty(0)] * processes()
    dist.all_gather_object(parts, values)
    return torch.cat(parts, axis)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        return all_reduce(values)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        return all_reduce(grads[0])


def device() -> torch.device:
    """Where the processes' backend exchanges tensors: this process's GPU under NCCL, otherwise the CPU."""
    nccl = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def synchronised_norm(norm: nn.BatchNorm2d, x: Tensor, *, axis: int) -> Tensor:
    """Batch normalisation in training mode with mean and variance over all processes; channels on `axis`.

    torch's SyncBatchNorm does the same on CUDA devices only. Every process has as many values (`own_part`). Sums are
    taken in float64, the rest in float32 at least. Updates the running statistics.
    """
    dims = [d for d in range(x.dim()) if d != axis]
    wide = x if x.dtype == torch.float64 else x.float()
    local = [values.sum(dims, dtype=torch.float64) for values in (wide, wide * wide)]
    sums: Tensor = _Sum.apply(torch.stack(local))
    count = processes() * (x.numel() // x.shape[axis])
    average = sums[0] / count
    variance = (sums[1] / count - average**2).clamp_min(0)
    update_running_statistics(norm, average.detach(), variance.detach(), count)
    scale = (variance + norm.eps).rsqrt() * norm.weight
    shift = norm.bias - average * scale
    shape = [-1 if d == axis else 1 for d in range(x.dim())]
    return (wide * scale.to(wide.dtype).view(shape) + shift.to(wide.dtype).view(shape)).to(x.dtype)


@torch.no_grad()
def update_running_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Move the running statistics towards a batch's mean and biased variance, [C], of `count` values."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    weight = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), weight)
    norm.running_var.lerp_((variance * (count / max(1, count - 1))).to(norm.running_var), weight)
