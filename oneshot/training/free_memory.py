"""A trial's need and its device's free memory -> the trial starts, waits, or fails and names who holds the memory.

A share of a GPU is only Ray's bookkeeping: another trial or a foreign process can take more than its share.
"""

import gc
import logging
import time
from collections.abc import Callable

import psutil
import torch

from oneshot.errors import first_line
from oneshot.models.placement import HEADROOM

log = logging.getLogger(__name__)

WAIT_S = 120.0
LOOK_S = 2.0


class NoRoomError(MemoryError):
    """The memory that a trial needs did not become free; counted as out of memory, and so tried again."""


def wait_for_room(
    need_gib: float,
    free_gib: Callable[[], float],
    *,
    holders: Callable[[], str],
    wait_s: float = WAIT_S,
    look_s: float = LOOK_S,
) -> None:
    """Wait until `need_gib` are free: a trial that has just ended may still be freeing its memory.

    Raises NoRoomError: they are not free after `wait_s`; the message has the text of `holders()`.
    """
    deadline_s = time.monotonic() + wait_s
    while (free := free_gib()) < need_gib:
        if time.monotonic() > deadline_s:
            raise NoRoomError(
                f"needs about {need_gib:.1f} GiB, but only {free:.1f} GiB are free after {wait_s:.0f} s ({holders()}); "
                "give trials a larger share of the GPU, or run fewer at a time"
            )
        time.sleep(look_s)


def release(device: torch.device) -> None:
    """Give memory that this process no longer uses back to the device, so that it counts as free."""
    gc.collect()
    if device.type == "cuda":
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:  # after an error on the device every call fails; the worker will leave
            log.warning("cannot free the GPU's memory: %s", first_line(error))


def free_gib(device: torch.device) -> float:
    """Return the free memory of the device."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return float(free) / 2**30


def most_gib(device: torch.device, *, share: float) -> float:
    """Return the memory that a trial may use of its share of the device, free or not, without the plan's headroom."""
    total = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else psutil.virtual_memory().total
    return float(total) / 2**30 * share * (1 - HEADROOM)


def memory_holders(device: torch.device) -> str:
    """Return text that names the processes with most of the device's memory."""
    if device.type == "cuda":
        return " ".join(torch.cuda.list_gpu_processes(device).split())
    memories = {process.pid: process.info["memory_info"] for process in psutil.process_iter(["memory_info"])}
    sizes = {pid: memory.rss for pid, memory in memories.items() if memory is not None}
    largest = sorted(sizes, key=lambda pid: -sizes[pid])[:3]
    return ", ".join(f"pid {pid} {sizes[pid] / 2**30:.1f} GiB" for pid in largest)


def pop_gpu_peak_gib() -> float:
    """Return the most GPU memory that tensors have held since the last call, and begin a new measurement."""
    if not torch.cuda.is_available():
        return 0.0
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return peak
