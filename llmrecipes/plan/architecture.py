"""A language model's sizes from its config.json: parameters, and the activations a layer keeps for the backward pass.

Knows only architectures whose layers have been checked against torch's memory tracker (`FAMILIES`); guesses nothing about
others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from llmrecipes.config import InputError
from llmrecipes.keys import UNKNOWN, Key, keys_of

# model_type -> its config class and what the config does not say: RMSNorm or LayerNorm and how many, gated MLPs, where
# biases are, RMSNorm on queries and keys, and the bytes that attention and MLP keep per byte of their inputs' width (see
# `Architecture.mlp_kept`).
FAMILIES = {
    "llama": {"config": "LlamaConfig"},
    "mistral": {"config": "MistralConfig"},
    "smollm3": {"config": "SmolLM3Config"},
    "qwen2": {"config": "Qwen2Config", "qkv_bias": True},
    "qwen3": {"config": "Qwen3Config", "qk_norm": True},
    "gemma3_text": {"config": "Gemma3TextConfig", "module": "gemma3", "qk_norm": True, "norms": 4, "float32_norms": True},
    "mixtral": {"config": "MixtralConfig", "mixture": True},
    "qwen3_moe": {"config": "Qwen3MoeConfig", "qk_norm": True, "mixture": True},
    "gpt2": {
        "config": "GPT2Config",
        "layer_norm": True,
        "biases": True,
        "fused_qkv": True,
        "mlp_kept": 2,
        "position_table": True,
    },
    "gpt_neox": {
        "config": "GPTNeoXConfig",
        "layer_norm": True,
        "biases": True,
        "fused_qkv": True,
        "mlp_kept": 2,
        "rotated_copies": 3,
        "parallel": True,
    },
}
# Activation functions -> values kept for the backward pass per value of their input, beside their output, by eager PyTorch:
# gelu and silu are one operator and keep their input, gelu_fast is written out in nine.
ACTIVATIONS = {"relu": 0, "tanh": 0, "quick_gelu": 2, "gelu_python": 3, "gelu_new": 4, "gelu_fast": 7}
ACTIVATIONS |= dict.fromkeys(("gelu", "gelu_pytorch_tanh", "silu", "swish", "mish", "relu2"), 1)
# Keys that transformers takes of `model_config` beside those of the config's class.
BESIDE_THE_CLASS = {"model_type", "torch_dtype", "num_labels", "output_attentions"}
# model_type of a composite config -> its class, which alone says whether the text model's embeddings are tied; in others
# the text model's config says so too.
COMPOSITES = {"gemma3": "Gemma3Config", "mistral3": "Mistral3Config"}
TIED = "tie_word_embeddings"
OTHER_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "num_experts": "num_local_experts",
    "hidden_act": "activation_function",
}


@dataclass(frozen=True)
class Architecture:
    """A decoder's sizes. Widths in values: `hidden` of the residual stream, `query` and `key` of all heads together."""

    family: str
    layers: int
    hidden: int
    heads: int
    head_dim: int
    query: int
    key: int
    width: int  # of the MLP, or of one expert
    vocabulary: int
    tied: bool
    context: int | None
    experts: int = 0
    active_experts: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    layer_norm: bool = False
    norms: int = 2  # of the residual stream in a layer: before attention and MLP, and in Gemma 3 after them too
    float32_norms: bool = False  # multiplied with their weights in float32
    window: int | None = None  # of sliding attention, in some layers or all: longer rows need a mask
    gated: bool = True
    fused_qkv: bool = False
    parallel: bool = False  # attention and MLP read the same residual stream
    mlp_kept: int = (
        4  # gate, its activation, up and their product; without a gate the input of the activation and its output
    )
    activation: str = "silu"
    rotated_copies: int = 0
    position_table: bool = False  # learned positions

    @property
    def linear_sizes(self) -> dict[str, tuple[int, int, int]]:
        """Name of a layer's linear module -> (inputs, outputs, number of such modules). Excludes experts, which share one
        tensor."""
        h, q, k, i = self.hidden, self.query, self.key, self.width
        if self.fused_qkv:
            attention = {"qkv": (h, q + 2 * k, 1), "out": (q, h, 1)}
        else:
            attention = {"q_proj": (h, q, 1), "k_proj": (h, k, 1), "v_proj": (h, k, 1), "o_proj": (q, h, 1)}
        if self.experts:
            return attention
        gates = {"gate_proj": (h, i, 1), "up_proj": (h, i, 1)} if self.gated else {"up": (h, i, 1)}
        return attention | gates | {"down_proj" if self.gated else "down": (i, h, 1)}

    @property
    def layer_matrices(self) -> int:
        """Number of weights in a layer's matrices, including experts and router."""
        linear = sum(n * inputs * outputs for inputs, outputs, n in self.linear_sizes.values())
        return linear + self.expert_weights + self.experts * self.hidden

    @property
    def expert_weights(self) -> int:
        """Number of weights in a layer's experts, without the router."""
        return self.experts * 3 * self.hidden * self.width

    @property
    def layer_parameters(self) -> int:
        biases = self.qkv_bias * (self.query + 2 * self.key) + self.out_bias * self.hidden
        if self.mlp_bias:
            biases += (self.width * (1 + self.gated)) + self.hidden
        norms = self.norms * self.hidden * (1 + self.layer_norm) + 2 * self.head_dim * self.qk_norm
        return self.layer_matrices + biases + norms

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def head(self) -> int:
        """Number of weights in the LM head; 0 if it is tied to the embedding."""
        return 0 if self.tied else self.embedding

    @property
    def trunk(self) -> int:
        """Number of parameters without the LM head."""
        rows = self.vocabulary + (self.context if self.position_table else 0)
        return self.layers * self.layer_parameters + self.hidden * (rows + 1 + self.layer_norm)

    @property
    def parameters(self) -> int:
        return self.trunk + self.head

    @property
    def active(self) -> int:
        """Number of parameters multiplied with each token: all but the input embeddings and the experts it is not routed
        to."""
        return self.active_in_layers + self.embedding

    @property
    def active_in_layers(self) -> int:
        """Those of them that are not the LM head's, which a classifier does not have."""
        idle = self.layers * (self.experts - self.active_experts) * 3 * self.hidden * self.width
        return self.layers * self.layer_parameters - idle


def text_model(config: dict) -> dict:
    """The part of a composite config, such as Gemma 3's, that describes its text model, tied as the whole says; any other
    config as it is."""
    part, kind, tied = config.get("text_config"), config.get("model_type"), config.get(TIED)
    if not (isinstance(part, dict) and part):
        return config
    whole = COMPOSITES.get(kind) if isinstance(kind, str) else None
    if whole and tied is None:
        tied = keys_of(f"transformers.models.{kind}.configuration_{kind}:{whole}")[TIED].default
    return part | ({TIED: tied} if whole or tied else {})


def read_architecture(config: dict, where: str) -> Architecture:
    """The sizes in `config`, the mapping of a config.json or of `model_config`; defaults are those of transformers.

    Raises:
        InputError: the architecture is unknown, or sizes are missing or not numbers.
    """
    config = text_model(config)
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(
            f"{where}: the architecture {family!r} is not one whose memory is known in closed form ({', '.join(FAMILIES)}); "
            "name its sizes in a config of one of these"
        )
    facts, defaults = {k: v for k, v in FAMILIES[family].items() if k not in ("config", "module")}, _defaults(family)
    if facts.get("fused_qkv"):  # GPT-2's and GPT-NeoX's layers read neither, though their configs may hold them
        config = {key: size for key, size in config.items() if key not in ("head_dim", "num_key_value_heads")}
    value = partial(_value, config, defaults)
    hidden, heads = value("hidden_size"), value("num_attention_heads")
    sizes = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": value("num_hidden_layers"),
        "vocab_size": value("vocab_size"),
        "num_key_value_heads": value("num_key_value_heads", heads),
    }
    experts = value("num_experts", 0) if facts.pop("mixture", False) else 0
    if experts:
        sizes["num_experts_per_tok"] = value("num_experts_per_tok")
        sizes["moe_intermediate_size"] = value("moe_intermediate_size") or value("intermediate_size")
    _check_sizes(sizes, config, value, where)
    head_dim = value("head_dim") or hidden // heads
    biases = facts.pop("biases", False)
    width, activation = sizes.get("moe_intermediate_size"), value("hidden_activation") or value("hidden_act")
    windowed = "sliding_window" in defaults and value("use_sliding_window", True)
    with_bias = lambda key: bool(value(key, biases)) if key in defaults else biases  # other classes ignore the key
    return Architecture(
        family=family,
        layers=sizes["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        head_dim=head_dim,
        query=heads * head_dim,
        key=sizes["num_key_value_heads"] * head_dim,
        width=width or value("intermediate_size") or 4 * hidden,
        vocabulary=sizes["vocab_size"],
        tied=bool(value(TIED, False)),
        context=value("max_position_embeddings"),
        experts=experts,
        active_experts=value("num_experts_per_tok", 0) if experts else 0,
        qkv_bias=facts.pop("qkv_bias", False) or with_bias("attention_bias"),
        out_bias=with_bias("attention_bias"),
        mlp_bias=with_bias("mlp_bias"),
        gated=not facts.get("layer_norm"),
        window=value("sliding_window") if windowed else None,
        mlp_kept=facts.pop("mlp_kept", 4) + ACTIVATIONS.get(activation, 1) - 1,
        activation=activation,
        parallel=facts.pop("parallel", False) and value("use_parallel_residual", True),
        **facts,
    )


def known_keys(family: str) -> set[str]:
    """The keys of `model_config` that a run takes for one of FAMILIES."""
    known = _defaults(family).keys() | BESIDE_THE_CLASS
    known |= {name for name, other in OTHER_NAMES.items() if other in known} - {"intermediate_size", "hidden_act"}
    known |= {other for name, other in OTHER_NAMES.items() if name == "num_experts" and name in known}
    if "rope_parameters" in known:
        known.add("rope_scaling")
    return known if FAMILIES[family].get("fused_qkv") else known | {"head_dim"}  # read by layers whose class lacks it


def _defaults(family: str) -> dict[str, Key]:
    """The keys of the family's config class."""
    module, name = FAMILIES[family].get("module", family), FAMILIES[family]["config"]
    return keys_of(f"transformers.models.{module}.configuration_{module}:{name}")


def _value(config: dict, defaults: dict[str, Key], key: str, otherwise=None):
    """`key` in `config`, also under its other name; `otherwise` if it is null there; else transformers' default, or
    `otherwise` if it has none."""
    names = [name for name in (key, OTHER_NAMES.get(key)) if name != "intermediate_size" or "n_inner" not in defaults]
    for name in names:
        if name in config:
            return otherwise if config[name] is None else config[name]
    found = [defaults[name].default for name in names if name in defaults]
    return otherwise if not found or found[0] is None or found[0] is UNKNOWN else found[0]


def _check_sizes(sizes: dict, config: dict, value: Callable, where: str) -> None:
    """InputError unless all sizes are whole numbers that fit together."""
    keys = ("head_dim", "intermediate_size", "max_position_embeddings", "num_experts", "sliding_window")
    given = {name: config[name] for key in keys for name in (key, OTHER_NAMES.get(key)) if config.get(name) is not None}
    for key, size in (sizes | given).items():
        if type(size) is not int or size < 1:
            raise InputError(f"{where}: {key}: {size!r} is not a whole number above 0")
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if hidden % heads and not value("head_dim"):
        raise InputError(f"{where}: num_attention_heads: {heads} does not divide {hidden} evenly")
    if heads % (shared := config.get("num_key_value_heads") or heads):
        raise InputError(f"{where}: num_key_value_heads: {shared} does not divide {heads} evenly")
    if (routed := sizes.get("num_experts_per_tok", 0)) > value("num_experts", routed):
        raise InputError(f"{where}: num_experts_per_tok: {routed} is more than the {value('num_experts')} experts")
    if value("add_cross_attention"):
        raise InputError(f"{where}: add_cross_attention: the sizes of cross attention are not known in closed form")
    if "moe_intermediate_size" in sizes and (value("mlp_only_layers") or value("decoder_sparse_step", 1) != 1):
        raise InputError(f"{where}: layers with and without experts in turn are not known in closed form")
