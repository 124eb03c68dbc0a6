"""Attention without a mask, for batches in which every token sees all tokens before it, or all those of its document; and in
two batched products, for short rows on a CPU in compiled code."""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llmrecipes.config import InputError
from llmrecipes.data.tables import say

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch < 2.10
    varlen_attn = None
KERNEL_KEYS = frozenset(inspect.signature(varlen_attn).parameters) if varlen_attn else ()

# transformers makes no mask for a name that is not in its AttentionMaskInterface, and SDPA without a mask is causal.
WITHOUT_MASK, BY_DOCUMENT, TRIAL = "sdpa_without_mask", "sdpa_by_document", "sdpa_by_document_trial"
# What TRL's collator of packed and padding-free rows passes beside positions, and transformers on to every layer.
BORDERS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def attend_by_document(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document, for transformers' AttentionInterface. On a GPU one call of torch's
    variable-length kernel, elsewhere a call of SDPA for each document: neither makes a mask, or products between documents.

    query (B, H, T, D), key and value (B, K, T, D), H a multiple of K; document i is the tokens `cu_seq_lens_q[i]` up to
    `cu_seq_lens_q[i + 1]` (int32) of the B·T tokens, the longest of `max_length_q`. Returns (B, T, H, D).

    Raises:
        NotImplementedError: this is not all that the layer's attention is, or no kernel computes it here.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    more = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if more or dropout:
        raise NotImplementedError(f"its attention has {more[0] if more else 'dropout'}")
    if cu_seq_lens_q is None:
        raise NotImplementedError("the borders of documents do not reach its layers")
    window = kwargs.get("sliding_window") or max_length_q
    if not causal or attention_mask is not None or query.shape[2] != key.shape[2] or max_length_q > window:
        raise NotImplementedError("its attention is not causal inside documents alone")
    rows, heads, length, _ = query.shape
    query, key, value = (given.transpose(1, 2).flatten(0, 1) for given in (query, key, value))  # (B·T, heads, width)
    attend = _by_kernel if _on_gpu(query) else _one_by_one
    out = attend(query, key, value, cu_seq_lens_q, max_length_q, scaling)
    return out.reshape(rows, length, heads, -1), None


def attend_and_go_back(module, query, key, value, *args, **kwargs) -> tuple[torch.Tensor, None]:
    """`attend_by_document`, whose backward pass is tried as well: on some GPUs a kernel has none for the widest heads."""
    with torch.enable_grad():
        given = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
        out, _ = attend_by_document(module, *given, *args, **kwargs)
        torch.autograd.grad(out.sum(), given)
    return out.detach(), None


AttentionInterface.register(WITHOUT_MASK, sdpa_attention_forward)
AttentionInterface.register(BY_DOCUMENT, attend_by_document)
AttentionInterface.register(TRIAL, attend_and_go_back)


def _on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda


def _by_kernel(query, key, value, borders: torch.Tensor, longest: int, scaling: float | None) -> torch.Tensor:
    if "scale" not in KERNEL_KEYS:  # new in torch 2.11
        raise NotImplementedError(f"torch {torch.__version__} has no torch.nn.attention.varlen with `scale`")
    kind = query.device.type  # autocast casts for SDPA, but not for this kernel
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    if dtype not in (torch.bfloat16, torch.float16):
        raise NotImplementedError(f"its kernel computes in bfloat16 and float16, not in {str(dtype).removeprefix('torch.')}")
    query, key, value = (given.to(dtype) for given in (query, key, value))
    shared = {"enable_gqa": query.shape[1] != key.shape[1]} if "enable_gqa" in KERNEL_KEYS else {}
    causal = {"window_size": (-1, 0), "scale": scaling}
    return varlen_attn(query, key, value, borders, borders, longest, longest, **causal, **shared)


def _one_by_one(query, key, value, borders: torch.Tensor, longest: int, scaling: float | None) -> torch.Tensor:
    lengths = borders.diff().tolist()
    shared = query.shape[1] != key.shape[1]
    parts = zip(*(given.transpose(0, 1)[None].split(lengths, dim=2) for given in (query, key, value)), strict=True)
    outs = [scaled_dot_product_attention(*part, is_causal=True, scale=scaling, enable_gqa=shared) for part in parts]
    return torch.cat(outs, dim=2)[0].transpose(0, 1)


SHORT = 128  # tokens; on longer rows SDPA's kernel for CPUs, which leaves out what causality hides, is as fast
UNSEEN = torch.full((SHORT, SHORT), -torch.inf).triu(1)  # added to scores: no token sees a later one
OTHER = ("softcap", "s_aux", "is_causal", "position_bias", "cache", "output_attentions")  # what attention may be told


def attend_in_products(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """transformers' SDPA attention. On a CPU compiled code computes it for unpadded rows of up to SHORT tokens in float32 as
    two batched products around a softmax, in modules marked by `in_products`: SDPA's kernel multiplies each row and head
    alone, in blocks of 32 queries.

    query (B, heads, T, width), key and value (B, key heads, T, width) -> (B, T, heads, width) and no weights."""
    (batch, heads, tokens, width), groups = query.shape, query.shape[1] // key.shape[1]
    usual = not getattr(module, "in_products", False) or dropout or not getattr(module, "is_causal", True)
    usual = usual or any(kwargs.get(name) is not None for name in OTHER)
    usual = usual or attention_mask is not None or query.device.type != "cpu" or not torch.compiler.is_compiling()
    usual = usual or not query.dtype == key.dtype == value.dtype == torch.float32
    if usual or not 1 < tokens == key.shape[2] <= SHORT:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    scale = width**-0.5 if scaling is None else scaling
    queries = (query * scale).reshape(-1, groups * tokens, width)
    scores = torch.bmm(queries, key.reshape(-1, tokens, width).transpose(1, 2)).view(-1, groups, tokens, tokens)
    weights = (scores + UNSEEN[:tokens, :tokens]).softmax(-1).view(-1, groups * tokens, tokens)
    output = torch.bmm(weights, value.reshape(-1, tokens, value.shape[3])).view(batch, heads, tokens, -1)
    return output.transpose(1, 2).contiguous(), None


@contextmanager
def attention_of(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Inside the block, the layers of `model` attend by the function of that name."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def without_mask(model: PreTrainedModel):
    """Inside the block, `model` makes no attention mask. In compiled code transformers 5.23 makes one of (B, 1, T, T) even
    where nothing is padded, with which SDPA cannot use its causal kernels: twice the products, and T² bytes a row."""
    return attention_of(model, WITHOUT_MASK)


@torch.no_grad()
def needs_no_mask(model: PreTrainedModel, in_training: bool = False) -> bool | None:
    """Whether `model` computes the same inside `without_mask`, given no padding, cache or positions: its attention is SDPA
    on all earlier tokens, without windows or chunks. None for shards, which can be tried `in_training` alone."""
    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config._attn_implementation != "sdpa" or windows != [None, None] or kinds != {"full_attention"}:
        return False
    if is_sharded(model) and not in_training:
        return None
    ids = torch.arange(8, device=model.device)[None] % config.vocab_size
    changed = ids.clone()
    changed[0, -1] = 0
    with evaluating(model):
        try:
            with without_mask(model):
                unmasked, later = (model(input_ids=row, use_cache=False).logits for row in (ids, changed))
        except Exception:  # Falcon's own code takes every name but "sdpa" for eager attention, which needs a mask
            return False
        # No token sees a later one: by the rounding of 16 bits at most, as where the experts of others change.
        if (unmasked - later)[:, :-1].norm() > 0.05 * (unmasked - later)[:, -1].norm():
            return False
        if is_sharded(model):  # perhaps in 16 bits, in which another kernel differs too
            return True
        masked = model(input_ids=ids, use_cache=False).logits
    return bool((masked - unmasked).abs().max() <= 1e-3 * masked.abs().max())


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether `model`, not yet in the hands of its trainer, is or will be in parts: then it computes nothing by itself."""
    return "ACCELERATE_USE_FSDP" in os.environ or hasattr(next(model.parameters()), "ds_shape")


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block, `model` is in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


# ---- Documents side by side ----


def borders_of(position_ids: torch.Tensor) -> dict[str, torch.Tensor | int]:
    """Where documents begin in the B·T tokens of `position_ids` (B, T), which are 0 at each beginning: `BORDERS`. For a
    collator: on a GPU it would wait for the device."""
    starts = (position_ids.flatten() == 0).nonzero().flatten()
    borders = torch.cat([starts, starts.new_tensor([position_ids.numel()])]).to(torch.int32)
    return dict(zip(BORDERS, (borders, borders, *[int(borders.diff().max())] * 2), strict=True))


@torch.no_grad()
def require_borders(
    model: PreTrainedModel, key: str, otherwise: str, collated: bool = False, in_training: bool = False
) -> None:
    """InputError, naming `key`, unless `model`, given positions that start again, takes a document behind another one for
    what it is alone. `otherwise`: what would happen. With `collated` it also gets what TRL's collator passes. Shards can
    be tried `in_training` alone: ByDocument does that."""
    if model.config._attn_implementation not in (None, "sdpa", "eager") or is_sharded(model) and not in_training:
        return
    document = torch.arange(4, device=model.device)[None] % model.config.get_text_config().vocab_size
    ids, places = document.repeat(1, 2), torch.arange(4, device=model.device).repeat(2)[None]
    more = borders_of(places) if collated else {}
    if collated:
        more["seq_idx"] = torch.arange(2, dtype=torch.int32, device=model.device).repeat_interleave(4)[None]
    why = ""
    with evaluating(model):
        alone = model(input_ids=document, use_cache=False).logits
        joined = model(input_ids=ids, use_cache=False).logits[:, 4:]
        try:
            together = model(input_ids=ids, position_ids=places, use_cache=False, **more).logits[:, 4:]
        except (TypeError, ValueError) as error:  # it takes no positions, or says itself what it lacks
            together, why = joined, f" ({str(error).strip().splitlines()[0]})" if isinstance(error, ValueError) else ""
    if not (together - alone).norm() < 0.1 * (joined - alone).norm():
        what = f"{model.config.model_type} does not recognise document boundaries from positions{why}"
        raise InputError(f"{key}: {what}: {otherwise}; leave it out")


@torch.no_grad()
def why_masked(model: PreTrainedModel) -> str | None:
    """Why `model` would not compute by document what it computes with a mask; None if it does, tried on three documents. To
    be called where and as it trains: on its device, in its precision, with its weights in shards or not."""
    config = model.config.get_text_config()
    dropout = [name for name, value in config.to_dict().items() if "drop" in name and "att" in name and value]
    if dropout:
        return f"{dropout[0]} is {getattr(config, dropout[0])}"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or getattr(config, "attention_chunk_size", None):
        return f"the model has layers of {min(kinds, default='chunked_attention')}"
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1]], device=next(model.parameters()).device)
    ids = torch.arange(places.shape[1], device=places.device)[None] % config.vocab_size
    given, borders, logits = {"input_ids": ids, "position_ids": places}, borders_of(places), {}
    try:
        with evaluating(model):
            for name, more in (("sdpa", {}), (WITHOUT_MASK, {}), (TRIAL, borders)):
                with attention_of(model, name):
                    logits[name] = model(**given, **more, use_cache=False).logits.float()
    except Exception as error:  # an architecture or a kernel that cannot: what can is left in use
        return str(error).strip().partition("\n")[0] or type(error).__name__
    masked, across = logits["sdpa"], (logits[WITHOUT_MASK] - logits["sdpa"]).norm()
    # In 16 bits the two differ by rounding: a tenth of what a look at other documents changes is far more.
    if not (logits[TRIAL] - masked).norm() < 0.1 * across:
        return "tried on three documents, the model computes something else"
    return None


class ByDocument:
    """For a Trainer: batches with `BORDERS` are attended by document, without a mask, in training (the backward pass too,
    which with activation checkpointing runs layers again) and evaluation. Where that does not hold, a line says so, and the
    mask that transformers makes of the positions stays."""

    _by_document: bool | None = None  # not known before the first such batch
    _borders = ("reset_attention", "it would do nothing")  # key, otherwise and collated of `require_borders`
    _is_tried = False

    def training_step(self, model, inputs, *args, **kwargs):
        with self._attention(inputs):
            return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model, inputs, *args, **kwargs):
        with self._attention(inputs):
            return super().prediction_step(model, inputs, *args, **kwargs)

    def _attention(self, inputs: dict):
        if BORDERS[0] not in inputs:
            return nullcontext()
        if not self._is_tried and is_sharded(self.model):
            with self.accelerator.autocast():
                require_borders(self.model, *self._borders, in_training=True)
        self._is_tried = True
        if self.model.config.get_text_config()._attn_implementation != "sdpa":
            return nullcontext()
        if self._by_document is None:
            self._by_document = self._can_do_without_mask()
        longer = self._window is not None and inputs[BORDERS[2]] > self._window
        return attention_of(self.model, BY_DOCUMENT) if self._by_document and not longer else nullcontext()

    def _can_do_without_mask(self) -> bool:
        parallel = self.accelerator.parallelism_config
        if parallel and (parallel.cp_enabled or parallel.sp_enabled):
            why = "a row is spread over several processes"
        elif self.args.torch_compile and not _on_gpu(next(self.model.parameters())):
            why = "without a GPU, torch_compile would compile anew for other lengths of documents"
        else:
            with self.accelerator.autocast():
                why = why_masked(self.model)
        fails = torch.tensor(float(why is not None), device=self.args.device)
        can = not self.accelerator.reduce(fails, "sum").item()
        window = f", but for those longer than the window of {self._window:,} tokens" if self._window is not None else ""
        done = f"each document by itself, without a mask{window}" if can else f"by a mask of documents: {why}"
        say(f"attention: {done}")
        return can

    @property
    def _window(self) -> int | None:
        return getattr(self.model.config.get_text_config(), "sliding_window", None)
