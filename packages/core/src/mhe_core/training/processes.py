"""Which device, and which process of how many: one answer for accelerate and torch.distributed.

Of several processes each calls :func:`make_accelerator`, and whatever follows, in the same order.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from torch import distributed as dist

from mhe_core.errors import UserError

__all__ = [
    "DeviceError",
    "end_processes",
    "from_main_process",
    "make_accelerator",
    "resolve_device",
]

T = TypeVar("T")

# What accelerate reads to find its processes and its device.
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "ACCELERATE_TORCH_DEVICE")


class DeviceError(UserError):
    """A device that is not here, or not for so many processes."""


def resolve_device(name: str = "auto") -> torch.device:
    """The device that ``--device`` asks for, on this machine and for this process.

    Args:
        name: ``auto``: a GPU where there is one, else the CPU; or ``cpu``, ``cuda``, ``cuda:1``,
            ``mps``, …. Of several processes on a machine, ``auto`` and ``cuda`` give each a GPU of
            its own.

    Raises:
        DeviceError: if there is no such device, or too few for the processes.
    """
    here = _local_processes()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        if here is None and not gpus and torch.backends.mps.is_available():
            return torch.device("mps")
        name = "cuda" if gpus and not parse_flag_from_env("ACCELERATE_USE_CPU") else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"expected --device auto, cpu, cuda or cuda:1, got {name}") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type == "cuda":
        return _gpu(device.index, gpus, here)
    if here is not None:
        raise DeviceError(f"expected --device auto, cpu or cuda with torchrun, got {name}")
    try:
        usable = device.type != "meta" and torch.zeros(1, device=device).item() == 0
    except Exception:  # torch raises many types for a device that is not there
        usable = False
    if not usable:
        raise DeviceError(f"expected --device as one that torch can use here, got {name}")
    return device


def _gpu(index: int | None, gpus: int, here: tuple[int, int] | None) -> torch.device:
    if not gpus:
        raise DeviceError("expected --device auto or cpu, as torch finds no GPU, got cuda")
    if here is not None:
        rank, processes = here
        if index is not None and processes > 1:
            raise DeviceError(f"expected --device auto, cpu or cuda for torchrun, got cuda:{index}")
        if processes > gpus:
            raise DeviceError(
                f"expected a GPU for each of {processes} processes, found {gpus}: start fewer, or "
                "give --device cpu"
            )
        index = rank if index is None else index
    if index is not None and index >= gpus:
        raise DeviceError(f"expected --device cuda:0 to cuda:{gpus - 1}, got cuda:{index}")
    return torch.device("cuda", index or 0)


def make_accelerator(device: str = "auto", amp: str = "no") -> Accelerator:
    """Device, mixed precision and processes, as the flags and the launcher say.

    Every call gives what it asks for, whatever an earlier one in this process was given: an
    earlier run's accelerator is not to be used any more. Processes are those of
    ``torch.distributed`` where it is initialized, else those of torchrun or ``accelerate launch``,
    which are then joined; the group ends with the program, or by :func:`end_processes`.

    Args:
        device: see :func:`resolve_device`.
        amp: mixed precision: no, bf16 or fp16.

    Raises:
        DeviceError: for a device that is not here.
    """
    found = resolve_device(device)
    joined = _group_exists()
    # accelerate keeps one state a process, and has no other way to begin anew.
    AcceleratorState._reset_state(reset_partial_state=True)
    several = _local_processes() is not None
    if found.type == "cuda":  # for kernels and pinned memory that go to the current one
        torch.cuda.set_device(found)
    with _environment(None if several and found.type == "cuda" else str(found)):
        accelerator = Accelerator(mixed_precision=amp, cpu=found.type == "cpu")
    if accelerator.num_processes != (dist.get_world_size() if _group_exists() else 1):
        raise UserError(
            f"expected accelerate's number of processes to be that of torch.distributed, "
            f"got {accelerator.num_processes} and {dist.get_world_size()}: start with torchrun"
        )
    if not joined and _group_exists():
        atexit.register(end_processes)
    return accelerator


def from_main_process(accelerator: Accelerator, ask: Callable[[], T]) -> T:
    """What ``ask`` returns on the main process, on all; so, too, a user's error that it raises."""
    answer: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            answer = [(ask(), None)]
        except (UserError, OSError) as its_error:
            answer = [(None, its_error)]
    if accelerator.num_processes > 1:
        broadcast_object_list(answer)
    value: T
    value, error = answer[0]
    if error is not None:
        raise error
    return value


def end_processes(*, failed: bool = False) -> None:
    """Leave the group of processes, if there is one; without, a process may abort at its exit.

    Args:
        failed: whether an exception brought us here, so that the others are somewhere else, and
            not to be waited for.
    """
    if not _group_exists():
        return
    group: Any = dist.group.WORLD
    if failed and dist.get_backend() == dist.Backend.NCCL and hasattr(group, "abort"):
        group.abort()
    dist.destroy_process_group()


def _group_exists() -> bool:
    return dist.is_available() and dist.is_initialized()


def _local_processes() -> tuple[int, int] | None:
    """This process's rank and their number on this machine; None for one that nobody launched."""
    if "LOCAL_RANK" in os.environ:
        rank = int(os.environ["LOCAL_RANK"])
        return rank, int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    if _group_exists():  # made by the program that calls us, which takes care of the machines
        return dist.get_rank(), dist.get_world_size()
    return None


@contextmanager
def _environment(device: str | None) -> Iterator[None]:
    """What accelerate is to read; afterwards, the environment is as it was."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    wanted: dict[str, str | None] = {"ACCELERATE_TORCH_DEVICE": device}
    if _group_exists() and "LOCAL_RANK" not in os.environ:
        rank, processes = str(dist.get_rank()), str(dist.get_world_size())
        wanted |= {"RANK": rank, "WORLD_SIZE": processes}
        wanted |= {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes}
    _set_environment(wanted)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
