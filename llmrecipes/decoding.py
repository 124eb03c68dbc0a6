"""The model's side of decoding: a cache of keys and values, and the step that turns new tokens into logits."""

import inspect
from collections.abc import Callable, Mapping
from functools import cache

import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

from llmrecipes.config import InputError

CAPTURED_ATTENTION = ("sdpa", "eager")  # others unpad or plan on the CPU in each step


class GrowingDecoder:
    """Decodes with a cache that grows by a token in each step and loses the rows that end."""

    def __init__(self, model: PreTrainedModel):
        self.cache = DynamicCache(config=model.config)
        # Sliding windows and recurrent states have layers of their own.
        self.cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in self.cache.layers]
        self._forward = _forward_of(model, self.cache)

    def start(self, input_ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Prompts (B, T), padded on the left, their mask and positions -> logits (B, V) of the next token."""
        self._mask, self._positions = mask, position_ids[:, -1:]
        return self._forward(input_ids, mask, position_ids)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """The chosen tokens (B,) -> logits (B, V) of the next ones."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._positions = self._positions + 1
        return self._forward(tokens[:, None], self._mask, self._positions)

    def keep(self, rows: torch.Tensor) -> None:
        """Goes on with the given rows alone."""
        self.cache.reorder_cache(rows)  # unlike batch_select_indices, states of linear attention support it too
        self._mask, self._positions = self._mask[rows], self._positions[rows]


class StaticDecoder:
    """Decodes with a cache of fixed size. On an NVIDIA GPU the step is recorded once as a CUDA graph and then replayed,
    which takes one launch instead of hundreds: with small batches these take most of a step's time.

    Rows that end stay in the batch, where nobody reads their logits, until half of all have ended; what is left is then
    recorded anew. The same tokens as GrowingDecoder's up to rounding.
    """

    def __init__(self, model: PreTrainedModel, max_new_tokens: int):
        self._model, self._room, self._graph = model, max_new_tokens, None

    def start(self, input_ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """As GrowingDecoder's."""
        self.cache = StaticCache(config=self._model.config, max_cache_len=mask.shape[1] + self._room)
        self.cache.layers = [RecordableLayer(layer.max_cache_len) for layer in self.cache.layers]
        self._forward = _forward_of(self._model, self.cache)
        future = mask.new_zeros(len(mask), self._room)
        logits = self._forward(input_ids, torch.cat([mask, future], dim=1), position_ids)
        # Causality hides what is not there yet, so one mask serves every step.
        self._mask, self._positions = torch.cat([mask, 1 - future], dim=1), position_ids[:, -1:] + 1
        self._input_ids, self._live = input_ids[:, -1:].clone(), torch.arange(len(mask), device=mask.device)
        return logits

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """As GrowingDecoder's."""
        self._input_ids[self._live, 0] = tokens
        if not _on_gpu(self._input_ids):
            return self._advance()[self._live]
        if self._graph is None:
            self._record()
        self._graph.replay()
        return self._logits[self._live]

    def keep(self, rows: torch.Tensor) -> None:
        """As GrowingDecoder's."""
        self._live = self._live[rows]
        if 2 * len(self._live) > len(self._input_ids):
            return
        self._graph = None  # before the cache, whose memory it uses
        self.cache.reorder_cache(self._live)
        self._mask, self._positions, self._input_ids = (
            part[self._live] for part in (self._mask, self._positions, self._input_ids)
        )
        self._live = torch.arange(len(self._live), device=self._live.device)

    def _advance(self) -> torch.Tensor:
        """One step of all rows. Works on the same memory each time and reads no value on the CPU, so it can be recorded."""
        logits = self._forward(self._input_ids, self._mask, self._positions)
        self._positions += 1
        return logits

    def _record(self) -> None:
        device = self._input_ids.device
        main, side = torch.cuda.current_stream(device), _recording_stream(device)
        side.wait_stream(main)
        with torch.cuda.stream(side):  # first without recording: libraries choose their kernels, autocast casts weights
            self._advance()
        main.wait_stream(side)
        self._positions -= 1
        for layer in self.cache.layers:
            layer.cumulative_length -= 1
        self._graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: other threads may allocate pinned memory meanwhile.
            with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
                self._logits = self._advance()
        except RuntimeError as error:
            cause = error.__context__ or error  # to end a recording that failed raises once more
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            why = str(cause).partition("\n")[0]
            raise InputError(
                f"cache_implementation: static could not record a step of this {type(self._model).__name__} ({why}); "
                "leave it out"
            ) from error


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all recordings: cuBLAS keeps a workspace (32 MiB on Hopper) for each stream it has run on."""
    return torch.cuda.Stream(device)


def _on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cuda"


def static_remark(device: torch.device) -> str:
    """What is to be said about `cache_implementation: static` on this device; "" on a GPU, where it saves time."""
    return "" if device.type == "cuda" else "cache_implementation: static saves time on a GPU alone; here it only costs some"


def check_static(model: PreTrainedModel) -> None:
    """Raises InputError for a model whose steps StaticDecoder cannot decode."""
    what = f"cache_implementation: static is not for a {type(model).__name__}"
    layers = StaticCache(config=model.config, max_cache_len=1).layers
    if any(type(layer) is not StaticLayer for layer in layers) or _cache_argument(model) != "past_key_values":
        raise InputError(f"{what}, which has sliding windows or recurrent states; leave it out")
    if model.config._attn_implementation not in CAPTURED_ATTENTION:
        raise InputError(f"{what} with attn_implementation {model.config._attn_implementation}; use sdpa, or leave it out")
    if not model._can_compile_fullgraph or getattr(model, "is_quantized", False):
        raise InputError(f"{what}, whose steps depend on values or on kernels that were not tested; leave it out")


class RecordableLayer(StaticLayer):
    """StaticLayer for values of another type than the keys: under bf16 autocast rotary positions make keys float32."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.values = self.values.to(value_states.dtype)


class RoomyLayer(DynamicLayer):
    """Keys and values (B, heads, T, width) of a layer, in front of room for ROOM further tokens, which are written there;
    transformers' DynamicLayer copies all earlier tokens for each new one."""

    ROOM = 32
    whole = None  # keys and values with their room

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        start = self.get_seq_length()
        if start == 0:
            return super().update(key_states, value_states, *args, **kwargs)
        end = start + key_states.shape[-2]
        if self.whole is None or end > self.whole[0].shape[-2]:
            room = (0, 0, 0, end - start + self.ROOM)
            self.whole = [torch.nn.functional.pad(states, room) for states in (self.keys, self.values)]
        for whole, states in zip(self.whole, (key_states, value_states), strict=True):
            whole[..., start:end, :] = states
        self.keys, self.values = (whole[..., :end, :] for whole in self.whole)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        if self.whole is None:
            return super().reorder_cache(beam_idx)
        end = self.get_seq_length()
        self.whole = [whole.index_select(0, beam_idx) for whole in self.whole]
        self.keys, self.values = (whole[..., :end, :] for whole in self.whole)


def _forward_of(model: PreTrainedModel, cache: Cache) -> Callable:
    """(new token ids (B, t), mask (B, T) of all tokens, positions of the new ones (B, t)) -> logits (B, V) of the next
    token; also fills the cache. Not every architecture takes all of these (ALiBi models have no positions)."""
    accepted, cache_name = _accepted(model), _cache_argument(model)
    # The shape of router logits would not match the mask.
    extra = {"logits_to_keep": 1, "output_router_logits": False, cache_name: cache}
    extra = {name: value for name, value in extra.items() if name in accepted}

    def forward(input_ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        positions = {"position_ids": position_ids} if "position_ids" in accepted else {}
        # Mamba multiplies only the new tokens' states by the mask.
        seen = mask if cache_name == "past_key_values" else mask[:, -input_ids.shape[1] :]
        return model(input_ids=input_ids, attention_mask=seen, use_cache=True, **positions, **extra).logits[:, -1]

    return forward


def _accepted(model: PreTrainedModel) -> Mapping:
    """The arguments of the model's forward."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # PeftModel.forward takes **kwargs
    return inspect.signature(inner.forward).parameters


def _cache_argument(model: PreTrainedModel) -> str:
    """The name of the cache argument of the model's forward. Raises InputError if there is none: each token would be drawn
    without seeing those before it."""
    if model._supports_default_dynamic_cache():
        for name in ("past_key_values", "cache_params"):  # the latter: Mamba
            if name in _accepted(model):
                return name
    raise InputError(
        f"model: a {type(model).__name__} has no cache that transformers supports, so it cannot be sampled from"
    )
