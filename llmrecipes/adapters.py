"""Adapters (LoRA and related methods): finding an adapter's base, merging it into that base, and configuring a new one.

An adapter's base may itself be an adapter: DPO with LoRA on an SFT adapter starts from that adapter merged into its base,
and `base_model_name_or_path` names the SFT adapter. Such a chain is loaded from the full model upwards, merging one adapter
after another. PEFT alone would load only the last adapter, on top of the wrong weights; model cards name the whole chain.
"""

import copy
import re
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, get_peft_model_state_dict, load_peft_weights
from peft.utils.error import NoMatchingPeftModuleError
from transformers import GenerationConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils.peft_utils import find_adapter_config_file
from trl import get_peft_config

from llmrecipes.config import InputError, ModelArguments
from llmrecipes.data.tables import say
from llmrecipes.lora_targets import choices_of, require_targets, tell_experts_left_out
from llmrecipes.manifest import fingerprint, read_manifest

ADAPTER_FILE = "adapter_config.json"


@dataclass
class Source:
    """A folder or Hub id with its revision; `adapter` is None for a full model."""

    path: str
    revision: str | None = None
    adapter: PeftConfig | None = None


def read_chain(path: str, revision: str | None = None) -> list[Source]:
    """The full model that `path` is based on, then its adapters in the order in which they were trained; `path` is the last.

    Raises:
        InputError: an adapter does not name its base, its base is gone or was trained again, or it cannot be merged.
    """
    chain = [_read_source(path, revision)]
    while (adapter := chain[0].adapter) is not None:
        here, base = chain[0].path, adapter.base_model_name_or_path
        if not base:
            raise InputError(f"{here}: its {ADAPTER_FILE} names no base model; set base_model_name_or_path there")
        if any(base == source.path for source in chain):
            raise InputError(f"{here}: names itself as its base; set base_model_name_or_path in its {ADAPTER_FILE}")
        if Path(here).is_dir():
            _check_base(here, base)
        chain.insert(0, _read_source(base, adapter.revision))
    return chain


def _read_source(path: str, revision: str | None) -> Source:
    # In a folder this looks for the file; for a Hub id it asks the Hub or its cache.
    if path.startswith("pypi:") or find_adapter_config_file(path, revision=revision) is None:
        return Source(path, revision)
    try:
        adapter = PeftConfig.from_pretrained(path, revision=revision)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"{path}: its {ADAPTER_FILE} cannot be read: {str(error)[:200]}") from None
    if adapter.is_prompt_learning:
        kind = getattr(adapter.peft_type, "value", adapter.peft_type)
        raise InputError(f"{path}: an adapter of kind {kind} is a learned prompt, which has no weights to merge; use LoRA")
    return Source(path, revision, adapter)


def _check_base(path: str, base: str) -> None:
    """InputError if the base of the adapter in `path` is missing, or is no longer what the adapter was trained on."""
    looks_local = base.startswith((".", "/", "~", "outputs/")) or base.count("/") > 1
    if looks_local and not Path(base).exists():
        raise InputError(
            f"{path}: is an adapter of {base}, which does not exist; put that model there, or set "
            f"base_model_name_or_path in {path}/{ADAPTER_FILE}"
        )
    then = ((read_manifest(path) or {}).get("inputs") or {}).get(base)
    # Only a run of ours knows its fingerprint without reading all weights.
    if then and read_manifest(base) and fingerprint(base) != then:
        raise InputError(f"{path}: is an adapter of {base}, which was trained again since; train this stage again as well")


def merge_all(model: PreTrainedModel, adapters: list[Source], exact: Iterable[torch.Tensor] = ()) -> PreTrainedModel:
    """`model` with one adapter after another merged into its weights, summed in float32 and rounded once to each weight's
    dtype: in bfloat16 (8 significant bits), a change of less than 1/512 of a weight is always rounded away.

    exact: the weights of `model` as stored on disk, in float32.
    """
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    if set(dtypes.values()) == {torch.float32} or getattr(model, "is_quantized", False):
        for adapter in adapters:
            model = merge(model, adapter)
        return model
    for parameter, whole in zip_longest(model.parameters(), exact):
        parameter.data = parameter.data.float() if whole is None else whole.data
    before = {name: _sample(parameter) for name, parameter in model.named_parameters()}
    main = model.config.dtype
    for adapter in adapters:
        model = merge(model, adapter)
    changed = kept = 0
    for name, parameter in model.named_parameters():
        dtype, old, new = dtypes.get(name, main), before.get(name), _sample(parameter)
        if old is not None and old.shape == new.shape:
            changed += int((old != new).sum())
            kept += int((old.to(dtype) != new.to(dtype)).sum())
        parameter.data = parameter.data.to(dtype)
    if kept < changed / 2:
        lost, kind = 100 * (1 - kept / changed), str(main).removeprefix("torch.")
        say(
            f"{adapters[-1].path}: {lost:.0f} % of the weights that the adapter changes round in {kind} to what they were "
            "without it; `dtype: float32` keeps what it has learned"
        )
    return model


def _sample(weight: torch.Tensor) -> torch.Tensor:
    """A copy of a few thousand of its numbers."""
    return weight.detach().flatten()[:: max(1, weight.numel() // 4096)].clone()


def merge(model: PreTrainedModel, source: Source) -> PreTrainedModel:
    """`model` with the adapter of `source` merged into its weights. A classifier takes a language model's adapter in its
    trunk.

    On weights of 4 or 8 bits the adapter stays unmerged and frozen: rounding the sum to so few bits would destroy it.

    Raises:
        InputError: the adapter does not fit `model`, is damaged, or cannot be merged.
    """
    if is_deepspeed_zero3_enabled():
        raise InputError(
            f"{source.path}: an adapter cannot be merged under ZeRO-3; start from the result of recipes/merge.py"
        )
    if Path(source.path).is_dir() and not Path(source.path, "adapter_model.safetensors").is_file():
        raise InputError(
            f"{source.path}: holds an adapter without adapter_model.safetensors; adapter_model.bin is not "
            "read, since it may hold code"
        )
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    source.adapter.task_type = None  # PEFT's wrapper for language models cannot hold a classifier
    try:
        weights = load_peft_weights(source.path, device="cpu", revision=source.revision)
        _resize_vocabulary(model, weights)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn of is checked below
            wrapped = PeftModel.from_pretrained(model, source.path, config=source.adapter, revision=source.revision)
        _check_all_found(wrapped, weights, source.path)
        _separate_embeddings(wrapped.get_base_model())
        _keep_beside_quantised(wrapped, source.path)
        merged = wrapped.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, AttributeError, NotImplementedError, OSError) as error:
        raise InputError(f"{source.path}: its adapter cannot be merged: {str(error)[:300]}") from error
    for name, parameter in merged.named_parameters():  # PEFT has frozen all of them
        parameter.requires_grad_(name not in frozen)
    with suppress(OSError):  # most adapters have none: the base's stop tokens stay
        merged.generation_config = GenerationConfig.from_pretrained(source.path, revision=source.revision)
    return merged


def _separate_embeddings(model: PreTrainedModel) -> None:
    """Unties input and output embeddings if the adapter changes only one of them: merging would change both, and saving
    would drop one."""
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    if not model.can_generate() or not model.config.get_text_config().tie_word_embeddings:
        return
    if not any(isinstance(end, (BaseTunerLayer, ModulesToSaveWrapper)) for end in ends):
        return
    if isinstance(ends[1], BaseTunerLayer):
        head = ends[1].get_base_layer()
    else:
        head = getattr(ends[1], "original_module", ends[1])
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    model.all_tied_weights_keys = {}


def _keep_beside_quantised(wrapped: PeftModel, path: str) -> None:
    """Replaces PEFT's wrappers by the quantised layers inside, which keep adding the old adapter's output: a new adapter can
    then wrap them."""
    for name, layer in list(wrapped.named_modules()):
        base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else None
        if getattr(base, "weight", None) is None or base.weight.is_floating_point():
            continue
        adapter = wrapped.active_adapter
        if not isinstance(layer, LoraLayer) or layer.lora_variant or layer.lora_bias.get(adapter):
            raise InputError(f"{path}: only plain LoRA stays on quantised weights; start from recipes/merge.py's result")
        down, up, scaling = layer.lora_A[adapter], layer.lora_B[adapter], layer.scaling[adapter]

        def add(module, inputs, output, down=down, up=up, scaling=scaling):
            return output + (up(down(inputs[0].to(down.weight.dtype))) * scaling).to(output.dtype)

        base.register_forward_hook(add)
        parent, _, child = name.rpartition(".")
        setattr(wrapped.get_submodule(parent), child, base)


def _resize_vocabulary(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    """Resizes the embeddings for tokens added while the adapter was trained, whose embeddings are stored with it."""
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    for key, weight in weights.items():
        whole = (
            key.startswith(f"base_model.model.{name}.")
            and key.endswith(".weight")
            and weight.shape[1:] == (embeddings.weight.shape[1:])
        )
        if whole and len(weight) != len(embeddings.weight):
            model.resize_token_embeddings(len(weight), mean_resizing=False)
            return


def _check_all_found(wrapped: PeftModel, weights: dict[str, torch.Tensor], path: str) -> None:
    """InputError unless every weight of the adapter has a module in the model, and every adapted module has its weights."""
    model = wrapped.get_base_model()
    wanted = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    if lacking := sorted(wanted.keys() - weights.keys()):
        raise InputError(f"{path}: its adapter is damaged or for another model: it lacks {lacking[0]}")
    strange = weights.keys() - wanted.keys() - wrapped.state_dict().keys()
    # PEFT writes embeddings and head, which may be saved in full, under several names.
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    whole = {f"{name}." for name, module in wrapped.named_modules() if any(module is end for end in ends)}
    strange = {key for key in strange if not key.startswith(tuple(whole))}
    if not model.can_generate():  # a classifier has no language model head to adapt
        strange = {key for key in strange if key.startswith(f"base_model.model.{model.base_model_prefix}.")}
    if strange:
        raise InputError(f"{path}: its adapter is for another model: this one has no place for {min(strange)}")


def lora_config(args: ModelArguments, model: PreTrainedModel) -> PeftConfig | None:
    """The LoRA config for `model` from the keys of `args`; None without use_peft.

    Raises:
        InputError: `lora_target_modules`, `lora_target_parameters` or `lora_modules_to_save` names what the model does not
            have, PEFT cannot adapt this model in this way, or the weights are quantised and there is no adapter to train.
    """
    config = get_peft_config(args)
    if config is None:
        if getattr(model, "is_quantized", False):
            raise InputError(
                "load_in_4bit, load_in_8bit, or a model stored in so few bits: quantised weights cannot be "
                "trained; add use_peft: true (QLoRA)"
            )
        return None
    if args.model_revision != "main":
        config.revision = args.model_revision
    targets = config.target_modules
    if isinstance(targets, str) and re.fullmatch(r"\w+", targets):
        config.target_modules = targets = {targets}  # TRL makes a list of one name a string: a pattern for full paths
    require_targets(config, model)
    check_fit(config, model)
    return config


def check_fit(config: PeftConfig, model: PreTrainedModel) -> None:
    """InputError if PEFT cannot put the adapter of `config` on `model`; tried on a copy on the meta device."""
    with torch.device("meta"):
        twin = type(model)(copy.deepcopy(model.config))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tell_experts_left_out(config, get_peft_model(twin, copy.deepcopy(config)), model)
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        if isinstance(error, NoMatchingPeftModuleError) or getattr(config, "target_modules", 1) is None:
            kind = model.config.model_type
            raise InputError(f"lora_target_modules: PEFT has no default for a {kind}; {choices_of(model)}") from None
        if "ParamWrapper" in str(error) and config.lora_dropout:
            raise InputError(
                f"lora_dropout: {config.lora_dropout} is not possible on the experts of a mixture, which are one tensor; "
                "set lora_dropout: 0, or let lora_target_modules name the attention's modules alone"
            ) from None
        if found := re.search(r"incompatible with Mamba-based models.*Incompatible modules: (\{.*?\})", str(error)):
            unfit = set(re.findall(r"\w+", found[1]))
            told = f"{', '.join(sorted(unfit))} of a {model.config.model_type} cannot carry an adapter"
            raise InputError(f"lora_target_modules: {told}; {choices_of(model, unfit)}") from None
        raise InputError(f"lora_target_modules: {str(error)[:300]}") from None


def restore_saved_modules(model: torch.nn.Module) -> None:
    """Gives modules that an adapter trains whole, such as a classifier's head, their values and dtype back: on quantised
    weights TRL rounds them to bfloat16, as it does the adapter, but without autocast what they read is float32."""
    for module in model.modules() if getattr(model, "is_quantized", False) else ():
        if isinstance(module, ModulesToSaveWrapper):
            for trained in module.modules_to_save.values():
                for new, old in zip(trained.parameters(), module.original_module.parameters(), strict=True):
                    new.data = old.data.clone()


def check_policy(model: torch.nn.Module, peft_config: PeftConfig | None) -> None:
    """InputError unless `model` has trainable weights, and a new adapter would not replace an existing one."""
    if peft_config is not None and not isinstance(peft_config, PeftConfig):
        raise InputError(f"peft_config: is a {type(peft_config).__name__}; pass a PeftConfig, such as peft.LoraConfig(r=16)")
    for adapter in [peft_config, *getattr(model, "peft_config", {}).values()]:
        if adapter is not None and adapter.is_prompt_learning:
            raise InputError("model: learned prompts (prompt tuning, prefix tuning) cannot be trained here; use LoRA")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InputError(
            "model: from_pretrained has put a frozen adapter into it; load it with llmrecipes.models.load_policy, which "
            "merges it, or with PeftModel.from_pretrained(base, folder, is_trainable=True)"
        )
    if isinstance(model, PeftModel) and peft_config is not None:
        raise InputError(
            "peft_config: the model has an adapter already, which a new one would replace; pass model.merge_and_unload(), "
            "or leave peft_config out to train the existing adapter"
        )
    if peft_config is not None:
        check_fit(peft_config, model)
    elif not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("model: has no trainable weight; load an adapter with is_trainable=True, or pass peft_config")


def keeps_base(peft_config: PeftConfig) -> bool:
    """Whether disabling the adapter gives the original model back: LoRA with `bias` also trains the base's biases."""
    return getattr(peft_config, "bias", "none") == "none"
