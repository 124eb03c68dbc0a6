"""What makes training on CPUs fast: freed memory is kept, and attention's backward pass on short rows is float32."""

import sys

import pytest
import torch
from forked import run_python

from llmrecipes.cpu import attend_backward_in_float32


@pytest.mark.skipif(sys.platform != "linux" or torch.accelerator.is_available(), reason="only for CPUs under Linux")
def test_freed_memory_stays_with_the_process():
    # The process starts with glibc's defaults, whatever the machine's environment says.
    code = """
import ctypes, torch
from llmrecipes.cpu import keep_freed_memory
class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
for option, value in ((M_TRIM_THRESHOLD, 128 << 10), (M_MMAP_THRESHOLD, 128 << 10), (M_MMAP_MAX, 65536)):
    libc.mallopt(option, value)
keep_freed_memory()
before = libc.mallinfo2()
tensor = torch.zeros(16 << 20)
held = libc.mallinfo2()
del tensor
after = libc.mallinfo2()
print((held.hblkhd - before.hblkhd) >> 20, (after.arena - before.arena) >> 20)
"""
    mapped, grown = map(int, run_python("-c", code).stdout.split())
    # MiB that come from the system for this tensor alone, and by which the heap has grown when it is gone.
    assert mapped == 0 and grown > 60


@pytest.mark.skipif(torch.accelerator.is_available(), reason="only for CPUs")
@pytest.mark.parametrize(("tokens", "width", "dtype"), [(100, 64, "float32"), (250, 32, "float32"), (250, 64, "bfloat16")])
@pytest.mark.parametrize("masked", [False, True])
def test_short_rows_get_their_gradients_in_float32(tokens, width, dtype, masked):
    attend_backward_in_float32()
    torch.manual_seed(0)
    query, key, value, gradient = torch.randn(4, 2, 3, tokens, width).bfloat16()
    hidden = torch.ones(tokens, tokens).triu(1).bool()
    hidden[:, 7] = True  # as of padding
    mask = torch.zeros(tokens, tokens).masked_fill(hidden, -torch.inf).bfloat16() if masked else None
    mask = None if mask is None else mask.fill_diagonal_(0)
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=mask, is_causal=not masked, scale=0.2).backward(
        gradient
    )

    how = {"attn_mask": mask, "scale": 0.2}
    output, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, not masked, **how)
    given = [tensor.float() for tensor in (gradient, query, key, value, output)]
    how["attn_mask"] = None if mask is None else mask.float()
    wanted = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*given, logsumexp, 0.0, not masked, **how)
    equal = [torch.equal(leaf.grad, gradient.bfloat16()) for leaf, gradient in zip(leaves, wanted, strict=True)]
    assert equal == [dtype == "float32"] * 3
    assert all((leaf.grad - gradient).norm() < 0.01 * gradient.norm() for leaf, gradient in zip(leaves, wanted, strict=True))
