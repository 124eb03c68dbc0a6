"""Attention without a mask, for batches in which every token sees all tokens before it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# transformers makes no mask for a name that is not in its AttentionMaskInterface, and SDPA without a mask is causal.
WITHOUT_MASK = "sdpa_without_mask"
AttentionInterface.register(WITHOUT_MASK, sdpa_attention_forward)


@contextmanager
def without_mask(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block, `model` makes no attention mask. In compiled code transformers 5.23 makes one of (B, 1, T, T) even
    where nothing is padded, with which SDPA cannot use its causal kernels: twice the products, and T² bytes a row."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = WITHOUT_MASK
    try:
        yield
    finally:
        config._attn_implementation = before


@torch.no_grad()
def needs_no_mask(model: PreTrainedModel) -> bool:
    """Whether `model` computes the same inside `without_mask`, given no padding, cache or positions: its attention is SDPA
    on all earlier tokens, without windows or chunks."""
    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config._attn_implementation != "sdpa" or windows != [None, None] or kinds != {"full_attention"}:
        return False
    if "ACCELERATE_USE_FSDP" in os.environ or hasattr(next(model.parameters()), "ds_shape"):  # sharded: it cannot be tried
        return True
    ids = torch.arange(8, device=model.device)[None] % config.vocab_size
    was_training = model.training
    model.eval()
    masked = model(input_ids=ids, use_cache=False).logits
    with without_mask(model):
        unmasked = model(input_ids=ids, use_cache=False).logits
    model.train(was_training)
    return bool((masked - unmasked).abs().max() <= 1e-3 * masked.abs().max())
