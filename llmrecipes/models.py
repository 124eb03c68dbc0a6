"""Policies and reward models, built from a config or loaded from any Hugging Face folder or id."""

import dataclasses
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.utils import enable_tf32, is_torch_tf32_available
from trl import get_quantization_config

from llmrecipes.adapters import merge_all, read_chain
from llmrecipes.config import InputError, ModelArguments
from llmrecipes.data.gguf import local_model
from llmrecipes.data.tables import say
from llmrecipes.encoders import only_pooler_is_new, pad_before_positions, require_own_padding
from llmrecipes.head_sizes import attention_reads_head_dim, require_fitting_heads
from llmrecipes.sharding import make_shardable
from llmrecipes.templates import end_of_turn
from llmrecipes.tokenizers import diagnose, load_tokenizer, loading, require_path
from llmrecipes.tokens.extension import grow_embeddings, is_extension, read_extension


def build_policy(model_config: dict, tokenizer: PreTrainedTokenizerBase, **kwargs) -> PreTrainedModel:
    """A new causal language model from `model_config`: `model_type` and the keys of its config.

    The vocabulary and the special tokens come from the tokenizer.
    """
    config = dict(model_config)
    model_type = config.pop("model_type", None)
    if model_type is None:
        raise InputError("model_config: `model_type` is missing; name an architecture, e.g. llama")
    try:
        built = AutoConfig.for_model(model_type)
        unknown = [key for key in config if not hasattr(built, key)]
        only_in_code = unknown == ["head_dim"] and attention_reads_head_dim(built)
        if unknown and not only_in_code:
            raise InputError(f"model_config: {model_type} has no key `{unknown[0]}`")
        config.setdefault("vocab_size", len(tokenizer))
        built = AutoConfig.for_model(
            model_type,
            **config,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        policy = AutoModelForCausalLM.from_config(built, **kwargs)
    except (ValueError, TypeError, ImportError, StrictDataclassError) as error:
        raise InputError(f"model_config: {' '.join(str(error).split())}") from error
    if only_in_code:
        require_fitting_heads(policy)
    require_causal(built, "model_config")
    make_shardable(policy)
    check_vocabulary(policy, tokenizer, "model_config")
    policy.generation_config.pad_token_id = tokenizer.pad_token_id
    policy.generation_config.eos_token_id = tokenizer.eos_token_id
    return policy


def require_causal(config: PreTrainedConfig, where: str) -> None:
    """InputError for an encoder (BERT, RoBERTa, XLM), which transformers loads as a language model although each token sees
    those after it, so that it would be trained on answers that it reads."""
    is_decoder = any(getattr(config, name, False) for name in ("is_decoder", "is_encoder_decoder", "causal"))
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not is_decoder:
        raise InputError(
            f"{where}: {config.model_type} is an encoder, in which each token sees those after it, so it would read the "
            "answers that it is to write; use a decoder, such as Llama (trained as one, its config says is_decoder: true)"
        )


def load_policy(
    model: ModelArguments,
    tokenizer: PreTrainedTokenizerBase | None = None,
    trust_remote_code: bool = False,
    may_grow: bool = False,
) -> PreTrainedModel:
    """The causal language model of `model_name_or_path` with the dtype, attention and quantisation of `model`; an adapter is
    merged into its base. Generation stops at the token that ends an answer in the tokenizer's chat template.

    may_grow: whether a tokenizer that extends the model's own may give it new tokens, which then have to be learned.
    """
    policy = _load(AutoModelForCausalLM, model, tokenizer, trust_remote_code, may_grow=may_grow)
    if tokenizer is not None:
        end_at_turns(policy, tokenizer, model.model_name_or_path)
    return policy


def end_at_turns(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Makes generation stop at the token that ends an answer in the tokenizer's chat template."""
    if (end := end_of_turn(tokenizer)) is not None:
        stop_at(policy, {end}, tokenizer, where)


def load_reward_model(
    model: ModelArguments, tokenizer: PreTrainedTokenizerBase | None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Sequence classifier with one label: a reward model, or a policy's trunk with a new head; an adapter is merged into its
    base."""
    reward_model = _load(AutoModelForSequenceClassification, model, tokenizer, trust_remote_code, num_labels=1)
    if tokenizer is not None:
        require_own_padding(reward_model, tokenizer, model.model_name_or_path)
        reward_model.config.pad_token_id = tokenizer.pad_token_id
    return reward_model


def load_merged(
    model: ModelArguments, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, list[str]]:
    """(merged model, its sources) for the adapter in `model_name_or_path`; a classifier if the adapter is for one.

    Quantised weights are first dequantised to `dtype`: these are the values QLoRA trained on, and they are not rounded
    again.

    Raises:
        InputError: `model_name_or_path` is a full model, which has nothing to merge.
    """
    whole, *adapters = read_chain(require_path(model), model.model_revision)
    if not adapters:
        raise InputError(f"model_name_or_path: {model.model_name_or_path} is a full model, so there is nothing to merge")
    is_classifier = "SEQ_CLS" in str(adapters[-1].adapter.task_type)
    kind = (AutoModelForSequenceClassification, {"num_labels": 1}) if is_classifier else (AutoModelForCausalLM, {})
    merged = _load(kind[0], model, tokenizer, trust_remote_code, dequantise=True, **kind[1])
    if is_classifier:
        merged.config.pad_token_id = tokenizer.pad_token_id
    return merged, [source.path for source in (whole, *adapters)]


def stand_in(
    model: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    trust_remote_code: bool = False,
    auto_class=AutoModelForCausalLM,
) -> PreTrainedModel:
    """A stand-in for `model` in a preview: its context length and stop tokens, without loading weights."""
    whole, *adapters = read_chain(require_path(model), model.model_revision)
    path = local_model(whole.path)
    with loading(path, "config"):
        config = AutoConfig.from_pretrained(path, revision=whole.revision, trust_remote_code=trust_remote_code)
    if auto_class is AutoModelForCausalLM:
        require_causal(config, model.model_name_or_path)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_labels": 1}
    small = AutoConfig.for_model("llama", vocab_size=len(tokenizer), **sizes)
    small.max_position_embeddings = getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    made = auto_class.from_config(small)
    if made.can_generate():
        made.generation_config.eos_token_id = config.get_text_config().eos_token_id
        for source, place in ((whole, path), *((adapter, adapter.path) for adapter in adapters)):
            with suppress(OSError):
                made.generation_config = GenerationConfig.from_pretrained(place, revision=source.revision)
        end_at_turns(made, tokenizer, model.model_name_or_path)
    return made


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, where: str | None) -> None:
    """InputError if the tokenizer can produce ids that the model has no embedding for."""
    rows = num_embeddings(model)
    if len(tokenizer) > rows:
        raise InputError(
            f"{where}: the tokenizer has {len(tokenizer)} tokens, the model only {rows}; they do not belong together"
        )


def num_embeddings(model: PreTrainedModel) -> int:
    """How many token ids the model has an embedding for."""
    weight = model.get_input_embeddings().weight
    return getattr(weight, "ds_shape", weight.shape)[0]  # DeepSpeed ZeRO-3 keeps the full shape there


def context_length(model: PreTrainedModel) -> int | None:
    """Longest sequence in tokens that the model's positions allow; None if its config does not say."""
    longest, pad = getattr(model.config.get_text_config(), "max_position_embeddings", None), pad_before_positions(model)
    return longest if longest is None or pad is None else longest - pad - 1


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that end a response: the tokenizer's EOS and those in the model's generation config."""
    configured = getattr(model.generation_config, "eos_token_id", None) if model.generation_config else None
    configured = configured if isinstance(configured, list) else [configured]
    return sorted({i for i in [tokenizer.eos_token_id, *configured] if i is not None})


def stop_at(model: PreTrainedModel, ends: set[int], tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Makes generation also stop at `ends`, the tokens that end answers in the template or the data, and says so."""
    stops = eos_token_ids(model, tokenizer)
    if new := sorted(ends - set(stops)):
        model.generation_config.eos_token_id = sorted({*stops, *new})
        say(
            f"{where}: answers end in {', '.join(tokenizer.convert_ids_to_tokens(new))}, at which generation did not stop; "
            "generation_config.json now includes it"
        )


def make_writable(config: GenerationConfig, where: str) -> None:
    """Adds `do_sample: true` to generation settings that give a temperature or the like without it, as those of Vicuna and
    the first Llama 2 do: transformers reads them, but refuses to write them once a token id in them has changed.

    Raises:
        InputError: transformers would refuse to write them for another reason.
    """
    if config.pad_token_id is not None and config.pad_token_id < 0:  # the first Llama's -1: none
        config.pad_token_id = None
    if config.temperature == 0:  # which means greedy decoding, and which sampling refuses
        config.do_sample, config.temperature, config.top_p, config.top_k = False, None, None, None
    try:
        config.validate(strict=True)
        return
    except ValueError:
        config.do_sample = True
    try:
        config.validate(strict=True)
    except ValueError as error:
        told = " ".join(str(error).split())[:200]
        raise InputError(f"{where}: its generation_config.json could not be written again: {told}") from None
    say(f"{where}: generation_config.json has settings for sampling without do_sample: true, which is set from now on")


def warn_of_rounding(model: torch.nn.Module) -> None:
    """Warns if trained weights have 16 bits: AdamW moves a weight by about the learning rate per step, but a bfloat16 number
    can only move by about 1/256 of itself or not at all."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kinds = {str(parameter.dtype).removeprefix("torch.") for parameter in trained if parameter.dtype.itemsize == 2}
    if kinds and not hasattr(model, "peft_config"):
        say(
            f"warning: weights are trained in {', '.join(sorted(kinds))}, in which most updates at a small learning rate "
            "are rounded away; leave `dtype` out (float32) and compute in 16 bits by `bf16: true`, or train an "
            "adapter"
        )


def multiply_in_tf32(args: TrainingArguments) -> None:
    """Where float32 trains on a GPU that has TF32, lets matrix products use it, unless `tf32` is given: their inputs are
    rounded to 10 bits of mantissa, the sums stay float32."""
    wanted = args.tf32
    if wanted is None and not (args.bf16 or args.fp16 or args.use_cpu) and is_torch_tf32_available():
        enable_tf32(wanted := True)
        say("matrix products are in TF32; `tf32: false` keeps float32")
    if wanted is not None and not args.use_cpu and is_torch_tf32_available():
        # The older setting of the same. Where it differs, torch raises as soon as it is read, as inductor does when it
        # autotunes; and for a compiled model in float32 accelerate has turned TF32 on, whatever `tf32` is.
        torch.set_float32_matmul_precision("high" if wanted else "highest")


def load_weights(source: str | Path, target: PreTrainedModel) -> None:
    """Loads the weights in the folder `source` into `target` through from_pretrained, which knows the names they are saved
    under: those of GPT-NeoX's head and of mixtures' experts are others than the model's own."""
    kinds = {value.dtype for value in target.state_dict().values() if value.is_floating_point()}
    dtype = kinds.pop() if len(kinds) == 1 else torch.float32  # which holds all the others exactly
    target.load_state_dict(type(target).from_pretrained(source, dtype=dtype).state_dict())


def count_parameters(model: PreTrainedModel) -> int:
    """Number of parameters, all shards of ZeRO-3 together."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())


def _load(
    auto_class,
    model: ModelArguments,
    tokenizer,
    trust_remote_code: bool,
    dequantise: bool = False,
    may_grow: bool = False,
    **kwargs,
) -> PreTrainedModel:
    path = require_path(model)
    quantization = get_quantization_config(model)
    if quantization is not None:
        device = PartialState().device
        # With several processes on CPUs the device is `cpu:0`, which device_map does not accept.
        place = "cpu" if device.type == "cpu" else device
        kwargs |= {"quantization_config": quantization, "device_map": {"": place}}
    with loading(path, "model"):
        whole, *adapters = read_chain(path, model.model_revision)
        _check_generation_config(local_model(whole.path))
        load = partial(
            auto_class.from_pretrained,
            local_model(whole.path),
            revision=whole.revision,
            attn_implementation=model.attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            **kwargs,
        )
        dtype = model.dtype if model.dtype in ("auto", None) else getattr(torch, model.dtype)
        loaded, found = load(dtype=dtype, output_loading_info=True)
        _require_weights(loaded, found["missing_keys"], path, whole.path)
        make_shardable(loaded)
        is_quantised = getattr(loaded, "is_quantized", False)
        rounded = adapters and not is_quantised and loaded.dtype != torch.float32
        exact = load(dtype=torch.float32).parameters() if rounded else ()
    if is_quantised and dequantise:
        loaded = loaded.dequantize()
        # A model stored in 4 bits remembers to save its weights as they were stored, which transformers cannot do.
        loaded._weight_conversions = None
    loaded = merge_all(loaded, adapters, exact)
    loaded.name_or_path = loaded.config._name_or_path = path  # the name of a new adapter's base: not a path in the cache
    if auto_class is AutoModelForCausalLM:
        require_causal(loaded.config, path)
    if loaded.can_generate():
        make_writable(loaded.generation_config, path)
    if is_quantised and not dequantise:
        keep_trainable(loaded)
    if tokenizer is not None:
        if new := new_tokens(model, tokenizer):
            if not may_grow:
                raise InputError(
                    f"{tokenizer.name_or_path}: has {len(new)} tokens more than {path} has learned; "
                    "recipes/pretrain.py trains them, from the mean of their parts"
                )
            grow_embeddings(loaded, new, path)
        elif model.tokenizer_name_or_path:
            _require_own_tokens(model, tokenizer)
        check_vocabulary(loaded, tokenizer, path)
    return loaded


def _check_generation_config(folder: str) -> None:
    """InputError if the file is no JSON, for transformers goes on without it, and so without the tokens that end answers; or
    if these are no numbers."""
    if not (Path(folder) / "generation_config.json").is_file():
        return
    try:
        ends = GenerationConfig.from_pretrained(folder).eos_token_id
        if not all(isinstance(end, int) for end in (ends if isinstance(ends, list) else [ends or 0])):
            raise ValueError(f"eos_token_id is {ends!r}, not a token's number or a list of these")
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: its generation_config.json cannot be read: {str(error)[:200]}") from None


def new_tokens(model: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> dict[int, list[int]]:
    """The tokens, with their parts, by which `tokenizer` extends that of the model's own folder."""
    if not is_extension(tokenizer):
        return {}
    own = load_tokenizer(dataclasses.replace(model, tokenizer_name_or_path=None))
    return read_extension(tokenizer, own, model.model_name_or_path)


def _require_own_tokens(model: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> None:
    """InputError if ids stand for other text than in the tokenizer of the model's own folder, if it has one; special tokens
    may differ, for a chat template takes those that a model has left unused."""
    try:
        own = load_tokenizer(dataclasses.replace(model, tokenizer_name_or_path=None, chat_template_kwargs=None))
    except (InputError, OSError):
        return
    known = {number: token for token, number in own.get_vocab().items()}
    given = {number: token for token, number in tokenizer.get_vocab().items()}
    plain = (known.keys() & given.keys()) - own.added_tokens_decoder.keys() - tokenizer.added_tokens_decoder.keys()
    if others := sum(known[number] != given[number] for number in plain):
        raise InputError(
            f"{tokenizer.name_or_path}: {others:,} of its {len(tokenizer):,} tokens stand for other text than in the "
            f"tokenizer that {model.model_name_or_path} was trained with; leave tokenizer_name_or_path out, or extend that "
            "one (recipes/tokenizer.py --base_tokenizer_name_or_path)"
        )


def _require_weights(loaded: PreTrainedModel, missing: set[str], path: str, whole: str) -> None:
    """InputError if weights are missing from the files, for which transformers silently uses random numbers; only a
    classifier's head may be new, and with it its pooler."""
    trunk = f"{loaded.base_model_prefix}."
    if only_pooler_is_new(loaded, missing):
        say(f"{path}: has no pooler, the layer between trunk and head; it begins as random numbers, as the head does")
    elif lost := sorted(key for key in missing if loaded.can_generate() or key.startswith(trunk)):
        about = f"{whole}, the base of {path}" if whole != path else path
        raise InputError(
            f"{about}: {len(lost)} weights that its config.json implies are in none of its files, such as "
            f"{lost[0]}; the files belong to another model, or were not copied completely"
        )


def keep_trainable(quantised: PreTrainedModel) -> None:
    """Stops bitsandbytes from packing 4-bit weights in the first evaluation on a CPU with bfloat16 instructions: a packed
    layer passes no gradient back, so all later training would be silently wrong (seen in 0.50.2)."""
    for module in quantised.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def read_config(path: str, key: str, kind=AutoConfig, **options):
    """The AutoConfig or PeftConfig in `path`; InputError for `key` if there is none."""
    try:
        return kind.from_pretrained(local_model(path), **options)
    except (OSError, ValueError, StrictDataclassError) as error:
        told = diagnose(path, "config", str(error)) or f"cannot be read: {str(error)[:200]}"
        raise InputError(f"{key}: {path} {told}") from None
