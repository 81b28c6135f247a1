"""What a trial needs and what its device has free -> the trial begins, waits, or says who holds the memory.

A share of a GPU is Ray's bookkeeping: nothing keeps a neighbour, or a process that is not ours, from taking more.
"""

import time
from collections.abc import Callable

import psutil
import torch

from oneshot.models.placement import HEADROOM

WAIT_S = 120.0
LOOK_S = 2.0


class NoRoomError(MemoryError):
    """The memory that a trial needs stays taken; counted as out of memory, and so tried again."""


def wait_for_room(
    need_gib: float,
    free_gib: Callable[[], float],
    *,
    whose: Callable[[], str],
    wait_s: float = WAIT_S,
    look_s: float = LOOK_S,
) -> None:
    """Returns once so much is free: a trial that ended just now may still be giving its memory back.

    Raises:
        NoRoomError: it is not, after `wait_s`.
    """
    deadline_s = time.monotonic() + wait_s
    while (free := free_gib()) < need_gib:
        if time.monotonic() > deadline_s:
            raise NoRoomError(
                f"needs about {need_gib:.1f} GiB, {free:.1f} GiB are free after {wait_s:.0f} s ({whose()}); give "
                "trials a larger share of the GPU, or run fewer at a time"
            )
        time.sleep(look_s)


def free_gib(device: torch.device) -> float:
    """Of the device that computes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free) / 2**30
    return float(psutil.virtual_memory().available) / 2**30


def most_gib(device: torch.device, *, share: float) -> float:
    """What a trial may have of the device, or of its share of one, free or not: the plan's headroom is left out."""
    total = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else psutil.virtual_memory().total
    return float(total) / 2**30 * share * (1 - HEADROOM)


def holders(device: torch.device) -> str:
    """Who holds its memory, as far as that can be asked."""
    if device.type == "cuda":
        return " ".join(torch.cuda.list_gpu_processes(device).split())
    held = {process.pid: process.info["memory_info"] for process in psutil.process_iter(["memory_info"])}
    sizes = {pid: memory.rss for pid, memory in held.items() if memory is not None}
    largest = sorted(sizes, key=lambda pid: -sizes[pid])[:3]
    return ", ".join(f"pid {pid} {sizes[pid] / 2**30:.1f} GiB" for pid in largest)
