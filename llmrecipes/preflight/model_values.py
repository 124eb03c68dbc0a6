"""Values in a model's JSON files that no model has: of another type, out of range, or sizes that are not there at all."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmrecipes.keys.values import shown

DTYPES = "float16 bfloat16 float32 float64 half float double float8_e4m3fn float8_e5m2".split()
# Names of the width that architectures give their config; one of them is in every config.json that transformers writes.
WIDTHS = "hidden_size n_embd n_embed d_model dim embed_dim emb_dim embedding_dim embedding_size model_dim hidden_dim".split()


@dataclass(frozen=True)
class _Kind:
    """Keys whose value, where it is not null, must be `what`."""

    keys: str
    what: str
    accepts: Any  # value -> bool


def _is_count(value, least: int) -> bool:
    """Whether `value` is a whole number of at least that, or a list of such, one for each layer."""
    if isinstance(value, list):
        return all(one is None or _is_count(one, least) for one in value)
    return type(value) is int and value >= least


def _is_number(value) -> bool:
    if isinstance(value, list):  # one for each layer
        return all(map(_is_number, value))
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _is_id(value) -> bool:
    return type(value) is int


def _is_token(value) -> bool:
    return isinstance(value, str) or isinstance(value, dict) and isinstance(value.get("content"), str)


def _is_template(value) -> bool:
    named = value if isinstance(value, list) else []
    return (
        isinstance(value, (str, dict)) or bool(named) and all(isinstance(one, dict) and "template" in one for one in named)
    )


SIZE = _Kind(
    "hidden_size num_hidden_layers num_attention_heads vocab_size max_position_embeddings n_embd n_head n_layer n_positions "
    "n_ctx d_model n_layers n_heads num_layers num_heads",
    "a whole number of 1 or more",
    lambda value: _is_count(value, 1),
)
COUNT = _Kind(
    "intermediate_size num_key_value_heads head_dim n_inner d_ff d_kv moe_intermediate_size num_experts num_local_experts "
    "num_experts_per_tok sliding_window",
    "a whole number of 0 or more",
    lambda value: _is_count(value, 0),
)
NUMBER = _Kind(
    "rms_norm_eps layer_norm_eps layer_norm_epsilon norm_epsilon initializer_range rope_theta attention_dropout "
    "hidden_dropout resid_pdrop embd_pdrop attn_pdrop dropout hidden_dropout_prob attention_probs_dropout_prob",
    "a number of 0 or more",
    _is_number,
)
DTYPE = _Kind(
    "dtype torch_dtype",
    f"the name of a type, one of {', '.join(DTYPES)}",
    lambda value: all(name in DTYPES for name in (value.values() if isinstance(value, dict) else [value])),
)
SWITCH = _Kind(
    "tie_word_embeddings use_cache do_sample is_decoder is_encoder_decoder",
    "true or false",
    lambda value: isinstance(value, bool),
)
TOKEN_ID = _Kind("bos_token_id pad_token_id decoder_start_token_id", "a token's number", _is_id)
ENDS = _Kind(
    "eos_token_id",
    "a token's number or a list of these",
    lambda value: _is_id(value) or isinstance(value, list) and all(map(_is_id, value)),
)
DRAWING = (  # also in older config.json
    _Kind("temperature top_p min_p typical_p repetition_penalty", "a number of 0 or more", _is_number),
    _Kind(
        "max_length max_new_tokens min_length min_new_tokens num_return_sequences num_beams",
        "a whole number of 0 or more",
        lambda value: type(value) is int and value >= 0,
    ),
    _Kind("top_k", "a whole number", _is_id),
)
NAME = _Kind("model_type", "a text", lambda value: isinstance(value, str))
NAMES = _Kind("architectures", "a list of texts", lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v))
SIDES = _Kind("padding_side truncation_side", "left or right", lambda value: value in ("left", "right"))
OF_FILE = {
    "config.json": (NAME, NAMES, SIZE, COUNT, NUMBER, DTYPE, SWITCH, TOKEN_ID, ENDS, *DRAWING),
    "generation_config.json": (SWITCH, TOKEN_ID, ENDS, *DRAWING),
    "tokenizer_config.json": (
        _Kind("model_max_length", "a number above 0", lambda value: _is_number(value) and value > 0),
        _Kind("bos_token eos_token pad_token unk_token", "a token's text", _is_token),
        _Kind("add_bos_token add_eos_token add_prefix_space", "true or false", lambda value: isinstance(value, bool)),
        _Kind("chat_template", "a text", _is_template),
        _Kind("tokenizer_class", "a text", lambda value: isinstance(value, str)),
        SIDES,
    ),
}


def wrong_values(file: str, values: dict) -> Iterator[str]:
    """ "has `KEY`: VALUE where … is expected" for each such value of the JSON object in `file`, a name in OF_FILE; also of
    the part that writes of a model that also sees images, `text_config`."""
    for kind in OF_FILE.get(file, ()):
        for key in kind.keys.split():
            if values.get(key) is not None and not kind.accepts(values[key]):
                yield f"has `{key}`: {shown(values[key])} where {kind.what} is expected"
    inner = values.get("text_config") if file == "config.json" else None
    if isinstance(inner, dict):
        yield from (text.replace("`", "`text_config.", 1) for text in wrong_values(file, inner))


def lacks_sizes(values: dict) -> bool:
    """Whether a config.json names a kind of model but not how large it is: all sizes would be that kind's defaults, several
    gigabytes, whatever the weights beside it have. Not of models put together, nor of those with own code."""
    is_plain = "auto_map" not in values and not any(
        "model_type" in part for part in values.values() if isinstance(part, dict)
    )
    return is_plain and "model_type" in values and not any(name in values for name in WIDTHS)
