"""Work distributed over the processes of an `accelerate launch`; every process gets all results."""

import os
from collections.abc import Callable

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """This process's state within the launch; the first call joins the process group."""
    # accelerate passes its CPU setting in the environment, which PartialState does not read.
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.cuda.is_available()
    return PartialState(cpu=on_cpu)


def device() -> torch.device:
    """This process's GPU, or the CPU."""
    own = processes().device
    return own if own.type == "cuda" else torch.device("cpu")


def share(items: list, work: Callable[[list], list]) -> list:
    """`work(items)`, one result per item in order, with each of n processes working on every n-th item."""
    state = processes()
    if state.num_processes == 1:
        return work(items)
    own = items[state.process_index :: state.num_processes]
    parts = [None] * state.num_processes
    torch.distributed.all_gather_object(parts, work(own) if own else [])
    return [parts[i % len(parts)][i // len(parts)] for i in range(len(items))]


def once(work: Callable[[], object]) -> object:
    """Calls `work()` only in the first process and gives the result to all: for what must not be done twice, such as paid
    API calls."""
    state = processes()
    if state.num_processes == 1:
        return work()
    result = [work() if state.is_main_process else None]
    torch.distributed.broadcast_object_list(result, src=0)
    return result[0]
