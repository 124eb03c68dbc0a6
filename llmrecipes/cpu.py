"""What makes training on CPUs fast, for the whole process: the allocator, and attention's backward pass on short rows."""

import ctypes
import sys
import warnings
from functools import cache

import torch

ATTENTION_BACKWARD = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"
LONG, NARROW = 192, 32  # tokens, width of a head


def tune_cpu() -> None:
    """Tunes this process for training on a CPU; does nothing where there is an accelerator. To be called again freely."""
    if not torch.accelerator.is_available():
        keep_freed_memory()
        attend_backward_in_float32()


def keep_freed_memory() -> None:
    """Makes glibc keep up to 1 GiB of freed memory: every training step on a CPU frees large tensors and allocates the same
    again, and the kernel zeroes fresh memory page by page. Does nothing on other systems."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


@cache
def attend_backward_in_float32() -> torch.library.Library:
    """From now on SDPA's backward pass on a CPU computes bfloat16 rows of fewer than LONG tokens, or of heads at most NARROW
    wide, in float32 and rounds the gradients to bfloat16: on such it is 1.1 to 17 times as fast, and as exact or better.

    torch's kernel multiplies blocks of 32 queries (64 from 192 tokens on), and in bfloat16 calls oneDNN for each, whose
    set-up takes longer than such a product. Its forward pass has no such calls, and stays in bfloat16. The Library that is
    returned holds the replacement, which lasts as long as it does: it is kept here."""
    kernel = torch.library.get_kernel(ATTENTION_BACKWARD, "CPU")

    def backward(keys, gradient, query, key, value, output, logsumexp, dropout, is_causal, *, attn_mask=None, scale=None):
        given, dtype = (gradient, query, key, value, output), query.dtype
        if dtype == torch.bfloat16 and (query.shape[2] < LONG or query.shape[3] <= NARROW):
            given = [tensor.float() for tensor in given]
            attn_mask = None if attn_mask is None else attn_mask.float()
        gradients = kernel.call_boxed(keys, *given, logsumexp, dropout, is_causal, attn_mask=attn_mask, scale=scale)
        return tuple(tensor.to(dtype) for tensor in gradients)

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():  # that a kernel is replaced
        warnings.simplefilter("ignore")
        library.impl(ATTENTION_BACKWARD.partition("::")[2], backward, "CPU", with_keyset=True)
    return library
