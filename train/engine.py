"""What a training step runs on: devices, precision, and the way in which the network's steps are computed."""

import ctypes
import os
import platform
import shutil
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from spikingjelly.activation_based import surrogate
from torch import nn

from train.config import RunConfig
from train.metrics import pick_device
from train.networks import Network
from train.neurons import Norm, not_fusable, set_fused, set_stateless


PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed", "fp64": "64-true"}

# mallopt's numbers in glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def start(config: RunConfig) -> Fabric:
    """A launched Fabric on the asked devices.

    Raises ValueError for devices or a precision that this machine does not have, before anything is computed.
    """
    device = pick_device(config.device)
    check_precision(config.precision, device)
    devices, nodes = config.devices, config.nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has started the processes and says how many
        devices, nodes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])
    elif nodes > 1 and (missing := [n for n in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]):
        raise ValueError(f"--nodes {nodes}: start with torchrun, or set {', '.join(missing)} on every machine")
    if device == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(f"--devices {devices}: this machine has {torch.cuda.device_count()} CUDA devices")
    if device == "cpu":
        keep_freed_memory()
    fabric = Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision=PRECISIONS[config.precision],
    )
    fabric.launch()
    return fabric


def prepare(network: Network, config: RunConfig, *, device: str, model: nn.Module | None = None) -> nn.Module:
    """The module whose calls are training steps of `model`, a module around `network` or (None) the network itself.

    Sets `network` to the memory format, normalisation, checkpointing and engine that `config` asks for. Raises
    ValueError as `check`.
    """
    engine = check(network, config, device=device)
    if config.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, Norm):
            module.sync = config.sync_bn
    set_fused(network, engine == "fused" and network.config.spiking)
    network.stateless = set_stateless(network, engine == "compiled")
    network.segments = config.checkpoint_segments if network.config.spiking else 0
    if engine == "compiled":
        return cast(nn.Module, torch.compile(model or network))
    return model or network


def check(network: Network, config: RunConfig, *, device: str) -> str:
    """The engine that computes a network's steps: plain, fused or compiled.

    Raises ValueError for what `config` asks for and this network, device or machine does not have.
    """
    refused = not_fusable(network) if network.config.spiking else None
    engine = pick_engine(config.engine, device=device, precision=config.precision, not_fusable=refused)
    if engine == "compiled" and (config.compress_spikes or config.checkpoint_segments):
        raise ValueError(
            "--engine compiled decides by itself what it keeps: no --compress_spikes, --checkpoint_segments"
        )
    if engine == "compiled" and any(isinstance(module, surrogate.Rect) for module in network.modules()):
        raise ValueError(
            "--engine compiled: torch.compile cannot trace SpikingJelly's Rect surrogate; take plain or fused"
        )
    if config.checkpoint_segments and not network.divisible:
        raise ValueError(
            f"--checkpoint_segments: {network.config.name} is one module, which cannot be cut into segments"
        )
    for path, module in network.named_modules():
        if config.sync_bn and isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, Norm):
            raise ValueError(f"--sync_bn: {path} of {network.config.name} is a normalisation of another package")
    return engine


def pick_engine(asked: str, *, device: str, precision: str, not_fusable: str | None = None) -> str:
    """auto, plain, fused or compiled -> plain, fused or compiled.

    auto is fused on a CPU in fp32 (benchmarks/train_speed.py: as fast as compiled to 5 %, without the
    wait for a compiler) and fp64, and plain, which is SpikingJelly's own choice of kernels, elsewhere.
    not_fusable: what of the network the fused step cannot compute (train.neurons.not_fusable).
    Raises ValueError for an engine that this device, precision or machine does not have.
    """
    able = device == "cpu" and precision in ("fp32", "fp64")
    if asked == "auto":
        return "fused" if able and not_fusable is None else "plain"
    if asked == "fused" and not able:
        raise ValueError(
            f"--engine fused computes on a CPU in fp32 or fp64, not in {precision} on {device}; take plain"
        )
    if asked == "fused" and not_fusable is not None:
        raise ValueError(f"--engine fused cannot compute {not_fusable}; take plain")
    if asked == "compiled" and device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise ValueError("--engine compiled needs a C++ compiler (g++ or clang++); take fused, which needs none")
    return asked


def check_precision(precision: str, device: str) -> None:
    """Raise ValueError for a precision that the device lacks."""
    if precision == "fp16" and device == "cpu":
        raise ValueError("--precision fp16 needs a GPU; a CPU has fp32, bf16 and fp64")
    if precision == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"--precision bf16: {torch.cuda.get_device_name()} has no bf16; take fp16 or fp32")


def keep_freed_memory() -> None:
    """Let glibc's malloc keep freed activations for the next step instead of giving them back to the kernel.

    Otherwise every large activation is mapped, zeroed page by page and unmapped again in every step, which costs a
    student as much time as its neurons (docs/training.md). Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 256 << 20)):
            libc.mallopt(option, value)
