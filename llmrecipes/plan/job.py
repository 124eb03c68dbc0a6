"""What a stage's YAML demands of a machine, in numbers: models, batch, precision, adapters, sharding."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from llmrecipes.config import InputError, nearest
from llmrecipes.keys.settings import Settings
from llmrecipes.plan.architecture import (
    ACTIVATIONS,
    BESIDE_THE_CLASS,
    FAMILIES,
    Architecture,
    known_keys,
    read_architecture,
    text_model,
)
from llmrecipes.plan.lookup import find_config, find_vocabulary
from llmrecipes.plan.rollouts import BYTES, Rollouts, read_rollouts
from llmrecipes.plan.topology import sharding

# Bytes of optimizer state per trained parameter; other optimizers are reported as unknown.
OPTIMIZERS = {
    "adamw_torch": 8,
    "adamw_torch_fused": 8,
    "adamw_hf": 8,
    "adamw_bnb_8bit": 2.03,
    "adamw_8bit": 2.03,
    "paged_adamw_32bit": 8,
    "paged_adamw_8bit": 2.03,
    "lion_32bit": 4,
    "lion_8bit": 1.02,
    "sgd": 0,
    "adafactor": 0.01,
}
# Names of modules -> those of `Architecture.linear_sizes`, in the families that have other names.
MODULES = {
    "gpt2": {"c_attn": ["qkv"], "c_fc": ["up"], "c_proj": ["out", "down"]},
    "gpt_neox": {"query_key_value": ["qkv"], "dense": ["out"], "dense_h_to_4h": ["up"], "dense_4h_to_h": ["down"]},
}
QUANTISED = {"load_in_4bit": 0.5 + 4 / 64, "load_in_8bit": 1.0}  # bytes per weight; blocks of 64 share a float32 scale
# What the closed form does not account for if a key is on: the key's value and what is missing.
NOT_COUNTED = {
    "torch_compile": (True, "fuses what eager PyTorch keeps: activations and logits are an upper bound"),
    "use_liger_kernel": (True, "its fused layers keep less: activations are an upper bound"),
    "activation_offloading": (True, "activations are counted as if they stayed on the GPU"),
    "attn_implementation": ("eager", "the attention's weights, rows by rows of each head, are not counted"),
    "lora_modules_to_save": (None, "these modules are trained whole; their gradients and states are not counted"),
    "lora_target_parameters": (None, "adapters on parameters, such as experts', are not counted"),
    "precompute_ref_log_probs": (True, "the reference reads each row once; its pass in every step is counted"),
    "use_dora": (True, "DoRA's magnitudes and their activations are not counted"),
    "parallelism_config": (None, "is not read: rows and layers are counted as if no GPUs shared them"),
    "use_transformers_paged": (True, "its paged cache takes the memory that is free; the KV cache is counted by its rows"),
    "use_transformers_continuous_batching": (True, "its paged cache takes the memory that is free"),
    "vllm_enable_sleep_mode": (True, "vLLM's share is counted as if it stayed during the update"),
}
# Keys of a model's config about parts whose sizes the closed form does not know.
PARTS_NOT_COUNTED = {
    "quantization_config": "its weights are quantised already and counted as if they were not",
    "vision_config": "parts beside the text model are not counted",
    "audio_config": "parts beside the text model are not counted",
}
CHEAP_LOGITS_BYTES = 1 << 30  # training.CHEAP_LOGITS_BYTES, repeated since that module imports torch
PLANNED = "plans are for pretrain, sft, reward, dpo, kto, grpo and ppo"


@dataclass(frozen=True)
class Lora:
    """Adapters on the linear modules `targets`, of rank `rank`."""

    rank: int
    targets: frozenset[str]
    dropout: float

    def parameters(self, a: Architecture) -> int:
        sizes = a.linear_sizes
        return a.layers * self.rank * sum(sizes[name][0] + sizes[name][1] for name in self.targets)


@dataclass(frozen=True)
class Job:
    """A training stage in numbers: everything that memory and work depend on."""

    architecture: Architecture
    head: str  # logits, chunked, score, rollouts
    rows: int  # sequences per example: pairs have two
    has_reference: bool
    batch: int
    accumulation: int
    length: int
    gpus: int
    weight_bytes: int
    autocast: bool
    optimizer: float | None
    checkpointing: bool
    padded: bool  # rows have a mask, or documents inside them that only a mask keeps apart
    lora: Lora | None = None
    quantised: float | None = None
    splits_quantised: bool = False  # FSDP2 shards 4-bit weights that are stored as floats alone
    sharded: int = 0  # ZeRO's stage: 1 optimizer states, 2 gradients too, 3 weights too (FSDP2)
    rollouts: Rollouts | None = None
    whole: bool = False  # the stage trains no adapters
    tiled_where_it_pays: bool = False  # SFT: TRL's tiled head unless the logits are small
    flattened: bool = False  # a mask keeps rows apart that the trainer has joined into one
    more_passes: int = 0  # forward passes per row without gradients: the reference's, KTO's for its KL
    unknown: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch on one GPU."""
        return self.batch * self.rows * self.length

    @property
    def trained(self) -> int:
        """Number of trained parameters of the model itself (without PPO's value model)."""
        if self.lora:
            return self.lora.parameters(self.architecture) + (self.head == "score") * self.architecture.hidden
        return self.architecture.trunk + self.architecture.hidden if self.head == "score" else self.architecture.parameters

    @property
    def compute_bytes(self) -> int:
        return 2 if self.autocast or self.weight_bytes == 2 else 4

    def changed(self, **values) -> "Job":
        job = replace(self, **values)
        if not job.tiled_where_it_pays:
            return job
        cheap = job.tokens * job.architecture.vocabulary * 12 <= CHEAP_LOGITS_BYTES
        return replace(job, head="logits" if cheap else "chunked")


def read_job(
    s: Settings, config_file: str | None, gpus: int, accelerate_config: str | None, prompt_tokens: int | None = None
) -> Job:
    """The job that the settings of a training stage describe.

    Raises:
        InputError: the stage trains nothing, or a model's config is out of reach.
    """
    if not s.trains:
        raise InputError(f"this stage trains no model; {PLANNED}")
    beside, unknown = Path(config_file).parent if config_file else None, []
    config, found = model_config(s, beside)
    a = read_architecture(config, found)
    lora = _read_lora(s, a)
    dtype = _read_dtype(s, config, found, unknown)
    fresh = bool(s["model_config"])
    ppo = "num_ppo_epochs" in s.keys
    weight_bytes = 4 if fresh or (ppo and not lora) else BYTES[dtype]
    optimizer = _optimizer_bytes(s, a, unknown)
    sharded = sharding(s, accelerate_config, unknown)
    unknown += _not_counted(s, a, config, found, sharded)
    if sharded and _autocast(s) and not lora:
        weight_bytes = 4  # FSDP2 makes trained weights float32 and DeepSpeed keeps a float32 copy, whatever `dtype` says
    head, rows, reference, more_passes = _method(s)
    rollouts = None
    if ppo or "num_iterations" in s.keys:
        rollouts = read_rollouts(s, a, gpus, beside, bool(lora), weight_bytes, prompt_tokens, unknown)
    length = rollouts.prompt + rollouts.response if rollouts else _length(s, a, unknown)
    joined = bool(s["packing"] or s["padding_free"])
    masked = _needs_mask(s, text_model(config), a, weight_bytes, length)
    job = Job(
        architecture=a,
        head=head,
        rows=rows,
        has_reference=reference and not lora,
        batch=s["per_device_train_batch_size"],
        accumulation=s["gradient_accumulation_steps"],
        length=length,
        gpus=gpus,
        weight_bytes=weight_bytes,
        autocast=_autocast(s),
        optimizer=optimizer,
        lora=lora,
        sharded=sharded,
        checkpointing=bool(
            s["activation_checkpointing"] if s["activation_checkpointing"] is not None else s["gradient_checkpointing"]
        ),
        padded=not ("muon_learning_rate" in s.keys or ppo or joined) or bool(s["reset_attention"]) and masked,
        flattened=joined and masked,
        quantised=next((size for key, size in QUANTISED.items() if s[key]), None),
        splits_quantised=bool(s["load_in_4bit"]) and s["bnb_4bit_quant_storage"] in BYTES,
        rollouts=rollouts,
        whole="muon_learning_rate" in s.keys,
        more_passes=more_passes,
        unknown=unknown,
    )
    return job.changed(tiled_where_it_pays="assistant_only_loss" in s.keys)


def _not_counted(s: Settings, a: Architecture, config: dict, found: str, sharded: int) -> list[str]:
    """What the keys that are on and the model's `config`, which was `found` there, have that the closed form does not."""
    keys = [f"{key}: {s[key]}: {text}" for key, (value, text) in NOT_COUNTED.items() if s[key] and value in (None, s[key])]
    parts = {key: text for key, text in PARTS_NOT_COUNTED.items() if config.get(key)}
    if text_model(config) is not config and not {"vision_config", "audio_config"} & parts.keys():
        parts["text_config"] = "the model's other parts, which transformers makes by its defaults, are not counted"
    if sharded == 3 and any(s[key] for key in QUANTISED):
        keys.append("accelerate_config: quantised weights were not tried sharded; without bnb_4bit_quant_storage: bfloat16 "
                    "each GPU holds them whole")  # fmt: skip
    if a.activation not in ACTIVATIONS:
        parts["hidden_act"] = f"what {a.activation} keeps for its backward pass is not known here; counted as GELU's"
    return keys + [f"{found}: {key}: {text}" for key, text in parts.items()]


def _read_dtype(s: Settings, config: dict, where: str, unknown: list[str]) -> str:
    dtype = s["dtype"] if s["dtype"] not in (None, "auto") else config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in BYTES:
        raise InputError(f"{where}: dtype: {dtype} is not one of {', '.join(BYTES)}; set `dtype`")
    if s["dtype"] == "auto" and "dtype" not in config and "torch_dtype" not in config:
        unknown.append("dtype: auto: the config does not say which; float32 is counted")
    return dtype


def _optimizer_bytes(s: Settings, a: Architecture, unknown: list[str]) -> float | None:
    """Bytes of the optimizer's states per trained parameter; None if they are not known."""
    optim = s.values.get("optim", "adamw_torch_fused")
    size = OPTIMIZERS.get(str(optim))
    if s["optimizer"] == "muon":
        hidden = a.layers * a.layer_matrices / a.parameters
        size = 4 * hidden + 8 * (1 - hidden)
    if size is None:
        unknown.append(f"optim: {optim}: the size of its states is not known here and not counted")
    if "paged" in str(optim):
        unknown.append(f"optim: {optim}: its states move to the CPU where memory ends; they are counted as if they stayed")
    return size


def _method(s: Settings) -> tuple[str, int, bool, int]:
    """(head on the trunk, sequences per example, whether there is a reference model, forward passes besides the trained
    one), recognised by the keys that the stage has."""
    if "num_ppo_epochs" in s.keys:
        return "rollouts", 1, True, 0
    if "num_iterations" in s.keys:  # GRPO
        return "chunked", 1, bool(s["beta"]), 0
    if "desirable_weight" in s.keys:  # KTO: policy and reference also read each answer after another prompt, for the KL
        return "chunked", 1, True, 3 if s["loss_type"] == "kto" else 1
    if "precompute_ref_log_probs" in s.keys:
        return "chunked", 2, True, 1
    if "center_rewards_coefficient" in s.keys:
        return "score", 2, False, 0
    if "assistant_only_loss" in s.keys:
        return "chunked", 1, False, 0
    if "muon_learning_rate" in s.keys:
        return "chunked" if s["fused_lm_head"] else "logits", 1, False, 0
    raise InputError(f"this stage's method is not one whose memory is known; {PLANNED}")


def model_config(s: Settings, beside: Path | None) -> tuple[dict, str]:
    """(config of the model to train, where it was found)."""
    if path := s["model_name_or_path"]:
        return find_config(path, "model_name_or_path", s["model_revision"], beside)
    if not s["model_config"]:
        raise InputError("`model_name_or_path` is missing; give a Hugging Face id or a stage's folder")
    config = dict(s["model_config"])
    if "vocab_size" not in config:
        tokenizer = s["tokenizer_name_or_path"] or ""
        config["vocab_size"] = find_vocabulary(tokenizer, beside)
        if config["vocab_size"] is None:
            raise InputError(
                f"tokenizer_name_or_path: {tokenizer} is not in reach, so the vocabulary is unknown; add vocab_size to "
                "model_config"
            )
    family = str(config.get("model_type"))
    for key in config if family in FAMILIES else ():
        if key not in (known := known_keys(family)):
            raise InputError(f"model_config: {family} has no key `{key}`{nearest(key, known - BESIDE_THE_CLASS)}")
    return config, "model_config"


def _length(s: Settings, a: Architecture, unknown: list[str]) -> int:
    length = s["max_length"] or a.context
    if length is None:
        raise InputError("max_length: neither the YAML nor the model's config says how long rows may be; set it")
    beyond = f"max_length: {length} is beyond the model's context of {a.context}"
    if a.context and length > a.context and "muon_learning_rate" in s.keys:  # pretraining, which refuses it
        raise InputError(f"{beyond}; lower it")
    if a.context and length > a.context and s.given("max_length"):
        unknown.append(f"{beyond}, to which a run lowers it, as is planned here")
    return min(length, a.context or length)


def _needs_mask(s: Settings, config: dict, a: Architecture, weight_bytes: int, length: int) -> bool:
    """Whether documents side by side are kept apart by a mask: `attention.why_masked` in so far as the settings tell."""
    if "flash" in (s["attn_implementation"] or ""):
        return False
    dropout = config.get("attention_dropout") or config.get("attn_pdrop")
    narrow = _autocast(s) or weight_bytes == 2
    return bool(a.window and a.window < length or dropout or not narrow or s["attn_implementation"] not in (None, "sdpa"))


def _autocast(s: Settings) -> bool:
    """Every GPU of gpus.yaml has bf16, so TRL's default and `auto` mean on."""
    return bool(s["fp16"]) or s["bf16"] in (True, "auto") or (s["bf16"] is None and "bf16" in s.keys)


def _read_lora(s: Settings, a: Architecture) -> Lora | None:
    if not s["use_peft"]:
        return None
    names = MODULES.get(a.family) or {name: [name] for name in a.linear_sizes}
    wanted, known = s["lora_target_modules"], f"name some of {', '.join(names)}"
    if wanted is None and (a.experts or a.family == "smollm3"):
        raise InputError(f"lora_target_modules: PEFT has no default for a {a.family}; {known}")
    if wanted is None:
        wanted = [next(iter(names))] if a.fused_qkv else ["q_proj", "v_proj"]
    elif wanted in ("all-linear", ["all-linear"]):
        if a.experts:
            raise InputError(f"lora_target_modules: all-linear reaches experts, whose adapters are not known here; {known}")
        wanted = list(names)
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if foreign := set(wanted) - set(names):
        raise InputError(
            f"lora_target_modules: {min(foreign)} is not a module of {a.family} whose size is known here; {known}"
        )
    targets = {name for module in wanted for name in names[module]}
    return Lora(s["lora_r"], frozenset(targets), s["lora_dropout"] or 0.0)
