"""Peak memory of a run, and advice when memory runs out: what to change, and by how much, so that the same run fits;
the garbage collector out of the way of imports."""

import contextlib
import gc
import resource
import sys
from collections.abc import Iterator

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "No executable batch size found")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or this machine ran out of memory. (torch's CPU allocator raises a plain RuntimeError.)"""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)


def out_of_memory(error: BaseException, configs: tuple) -> str | None:
    """One line of advice for the run of `configs`, most effective keys first; None for any other error."""
    if not is_out_of_memory(error):
        return None
    value = lambda key: next((getattr(config, key) for config in configs if hasattr(config, key)), None)
    advice = []
    rows, accumulation = value("per_device_train_batch_size"), value("gradient_accumulation_steps")
    if rows and rows > 1:
        less = max(1, rows // 2)
        more = accumulation * rows / less
        same = f" with gradient_accumulation_steps: {more:g}, the same global batch," if more == int(more) else ""
        advice.append(f"per_device_train_batch_size: {less}{same} about halves what activations take")
    for key in ("per_device_generation_batch_size", "per_device_batch_size", "per_device_eval_batch_size"):
        if not rows and value(key) and value(key) > 1:
            advice.append(f"{key}: {max(1, value(key) // 2)} about halves what activations take")
    if rows and value("activation_checkpointing") is False:
        advice.append("activation_checkpointing: true keeps one activation per layer, for about a third more time")
    length = value("max_length")
    if rows and length and length > 256:
        advice.append(f"max_length: {length // 2} halves rows again (longer ones are cut)")
    if rows and not value("use_peft"):
        advice.append("use_peft: true (LoRA) saves 12 of 16 bytes per parameter (gradients and Adam's moments)")
    elif rows and not value("load_in_4bit"):
        advice.append("load_in_4bit: true (QLoRA) stores the weights in half a byte per parameter")
    where = "the GPU" if type(error).__name__ == "OutOfMemoryError" else "this machine"
    return f"{where} is out of memory; {'; '.join(advice) or 'use a smaller model or a larger machine'}"


def peak_memory_gib() -> float:
    """Peak memory of this process in GiB: of the GPU if it used one, otherwise of the machine."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 3)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """For a block that imports: libraries make 600,000 objects, and nearly all stay. To look through them again and again
    takes a fifth of the time of an import; they are then taken off the collector's lists, which shortens what it does later.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
