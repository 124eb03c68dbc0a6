"""`head_dim` of a new model whose config class has no such key: whether its attention takes it, and its layers bear it."""

import inspect
from pathlib import Path

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from llmrecipes.config import InputError


def attention_reads_head_dim(config: PreTrainedConfig) -> bool:
    """Whether a config class without `head_dim` (Qwen3-MoE's, OLMo's, Granite's, ...) is of a model whose attention takes it
    all the same. GPT-NeoX's code, for one, reads it for rotary positions alone."""
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    code = Path(inspect.getfile(model)).read_text(encoding="utf-8") if inspect.isclass(model) else ""
    return 'self.head_dim = getattr(config, "head_dim"' in code


def require_fitting_heads(policy: PreTrainedModel) -> None:
    """InputError if the layers of a new model fail with its `head_dim`: OLMoE's and BitNet's have norms as wide as
    hidden_size behind projections that follow head_dim."""
    trains = policy.training
    try:
        with torch.no_grad():
            policy.eval()(input_ids=torch.ones((1, 2), dtype=torch.long, device=policy.device), use_cache=False)
    except RuntimeError:  # shapes
        config = policy.config
        fits = config.hidden_size // config.num_attention_heads
        raise InputError(
            f"model_config: head_dim: {config.head_dim} does not fit the layers of {config.model_type}, which need "
            f"hidden_size / num_attention_heads = {fits}; leave it out"
        ) from None
    policy.train(trains)
