"""A stand-in for CUDA graphs on CPUs. Like a graph, it records which operations run on which memory, and runs these again;
Python code between them, and what it read, is not part of it."""

from contextlib import contextmanager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmrecipes import decoding

# A stream that is recorded cannot wait for values of the GPU, nor for a copy of the CPU's (lift_fresh: torch.tensor).
WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.lift_fresh.default)


class Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls, self.before = [], {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        for argument, given in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and id(given) not in self.before:
                self.before[id(given)] = given, given.clone()
        self.calls.append((function, args, kwargs or {}, function(*args, **kwargs or {})))
        return self.calls[-1][-1]

    def undo(self) -> None:
        """A graph runs nothing while it is recorded."""
        for tensor, value in self.before.values():
            tensor.copy_(value)

    @torch.autocast("cpu", enabled=False)  # its casts are recorded
    def replay(self) -> None:
        for function, args, kwargs, result in self.calls:
            again = function(*args, **kwargs)
            if all(returned.alias_info is None for returned in function._schema.returns):
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(new)


def use_tapes(monkeypatch) -> list[Tape]:
    """Has StaticDecoder record Tapes; returns those recorded so far."""
    tapes = []

    @contextmanager
    def graph(tape, **_):
        with tape:
            yield
        tape.undo()
        tapes.append(tape)

    class Stream:
        def __init__(self, device):
            pass

        def wait_stream(self, other):
            pass

    monkeypatch.setattr(decoding, "_on_gpu", lambda tensor: True)
    for name, stand_in in {"CUDAGraph": Tape, "graph": graph, "Stream": Stream, "current_stream": Stream}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    return tapes
