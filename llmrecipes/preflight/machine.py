"""What a run needs on this machine, checked before anything is loaded: inputs, tokens, packages, ports, the Hub."""

import json
import os
import re
import shutil
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

from llmrecipes.config import generator_of
from llmrecipes.keys.settings import Problems, Settings
from llmrecipes.keys.values import shown
from llmrecipes.preflight.disk import room
from llmrecipes.preflight.folders import FILES as DATA
from llmrecipes.preflight.model_folders import template_problem

# Keys that hold paths read by a stage.
INPUTS = (
    "model_name_or_path",
    "tokenizer_name_or_path",
    "reward_model_name_or_path",
    "value_model_name_or_path",
    "watch_reward_model",
    "rankings_file",
    "datasets",
    "eval_datasets",
    "watch_questions",
    "models",
    "base_tokenizer_name_or_path",
)
FILES = (
    "guidelines",
    "judge_guidelines",
    "users_file",
    "blimp_path",
    "deepspeed",
    "fsdp_config",
    "accelerate_config",
    "rankings_file",
    "blocked_words",
)
# Optimizers and other values that need a package -> modules of which one must exist.
NEEDS = {
    "8bit": ("bitsandbytes",),
    "bnb": ("bitsandbytes",),
    "paged": ("bitsandbytes",),
    "galore": ("galore_torch",),
    "lomo": ("lomo_optim",),
    "apollo": ("apollo_torch",),
    "torchao": ("torchao",),
    "schedule_free": ("schedulefree",),
    "grokadamw": ("grokadamw",),
    "stable_adamw": ("optimi",),
    "apex": ("apex",),
    "anyprecision": ("torchdistx",),
}
# Larger sizes in a config.json are damage or malice; building such a model would take hours or all memory.
LARGEST = {
    "num_hidden_layers": 10_000,
    "n_layer": 10_000,
    "hidden_size": 10**6,
    "n_embd": 10**6,
    "vocab_size": 10**8,
    "intermediate_size": 10**8,
    "num_attention_heads": 10**5,
}
# Architectures with a table of learned positions: a longer row is an error, while rotary positions only get worse.
LEARNED_POSITIONS = ("gpt2", "opt", "gpt_neo", "gpt_bigcode", "biogpt", "xglm", "openai-gpt", "bloom")


def installed(*modules: str) -> bool:
    """Whether any of `modules` can be imported, without importing it."""
    return any(find_spec(module) is not None for module in modules)


def is_hub_id(name: str) -> bool:
    """Whether NAME or OWNER/NAME is a valid repository id by the Hub's rules."""
    part = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
    return bool(re.fullmatch(rf"(?:{part}/)?{part}", name)) and "--" not in name and ".." not in name


def inputs(s: Settings) -> Problems:
    """Local models and data that are missing or empty, and Hub ids while the Hub is switched off."""
    for key in INPUTS:
        value = s.values.get(key)
        entries = value if isinstance(value, list) else [value]
        for entry in value.values() if key == "models" and isinstance(value, dict) else entries:
            path = entry.get("path") if isinstance(entry, dict) else entry
            if isinstance(path, str) and (problem := _input_problem(path, key)):
                yield key, problem
    for key in FILES:
        path = s.values.get(key)
        if isinstance(path, str) and not path.startswith(("{", "~")) and not os.path.exists(path):
            yield key, f"{path} does not exist; correct the path"


def _input_problem(path: str, key: str) -> str:
    if path == "stdlib" or path.startswith(("pypi:", "~")) or generator_of(path) or os.path.isdir(path):
        return ""  # `~user` of nobody: `named.literal`
    if os.path.isfile(path):
        return f"{path} is empty" if os.path.getsize(path) == 0 else ""
    if path.startswith(("/", ".", "outputs/")) or path.count("/") > 1 or path.lower().endswith(DATA):
        return f"{path} does not exist; run the stage that writes it first, or correct the path"
    if not is_hub_id(path):
        return f"{shown(path)} is neither a local path nor a name that a hub can have; correct it"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE") and not _cached(path, key):
        return f"{path} is not on this machine, and HF_HUB_OFFLINE is set; fetch it first, or give a local path"
    return ""


def _cached(name: str, key: str) -> bool:
    home = Path(os.path.expanduser(os.environ.get("HF_HOME") or "~/.cache/huggingface"))
    hub = Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or home / "hub"))
    if "dataset" not in key and key != "watch_questions":
        return (hub / f"models--{name.replace('/', '--')}").is_dir()
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets") / name.replace("/", "___")
    return prepared.is_dir() or (hub / f"datasets--{name.replace('/', '--')}").is_dir()


def models(s: Settings) -> Problems:
    """A reward model in place of a policy and vice versa; rows longer than the table of learned positions."""
    for key in ("reward_model_name_or_path", "watch_reward_model"):
        config = _model_config(s.values.get(key))
        if _architecture(config).endswith(("CausalLM", "LMHeadModel")):
            text = (
                f"{s[key]} is a language model ({_architecture(config)}), whose score would be a random number; name a "
                "reward model (recipes/reward.py makes one)"
            )
            yield key, text
        labels = len(_mapping(config.get("id2label")))
        if labels > 1 and _architecture(config).endswith("Classification"):
            yield key, f"{s[key]} has {labels} labels; a reward model has one"
    for key in ("model_name_or_path", "reward_model_name_or_path", "value_model_name_or_path", "watch_reward_model"):
        config = _model_config(s.values.get(key))
        for name, limit in LARGEST.items():
            size = config.get(name)
            if type(size) is int and size > limit:  # other kinds: `model_values`
                yield key, f"{s[key]}: {name} is {shown(size)} in its config.json; no model has such a size"
    config = _model_config(s.values.get("model_name_or_path"))
    adapter = _model_config(s.values.get("model_name_or_path"), "adapter_config.json")
    kind = "an adapter" if adapter.get("task_type") == "SEQ_CLS" else _architecture(config)
    is_score = kind.endswith(("SequenceClassification", "adapter"))
    # Only recipes that train or check reward models have `health_check`; merging, which takes both kinds, has no `datasets`.
    if is_score and "health_check" not in s.keys and "datasets" in s.keys:
        text = f"{s['model_name_or_path']} is a reward model ({kind}), which writes no text; name a policy"
        yield "model_name_or_path", text
    positions = config.get("n_positions") or config.get("max_position_embeddings")
    learned = config.get("model_type") in LEARNED_POSITIONS
    if learned and isinstance(positions, int) and s.given("max_length") and s["max_length"] > positions:
        yield "max_length", f"{s['max_length']} is beyond the {positions} positions of {s['model_name_or_path']}"


def _model_config(path, name: str = "config.json") -> dict:
    file = Path(path) / name if isinstance(path, str) and os.path.isdir(path) else None
    return _mapping(_read_json(file)) if file else {}


def _architecture(config: dict) -> str:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def _read_json(file: Path):
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # loading it will report what is wrong


def tokens(s: Settings) -> Problems:
    """An `eos_token` or `pad_token` that the tokenizer does not have; a chat template that is not valid Jinja."""
    folder = s.values.get("tokenizer_name_or_path") or s.values.get("model_name_or_path")
    vocabulary = _vocabulary(folder) if s.given("eos_token") or s.given("pad_token") else set()
    for key in ("eos_token", "pad_token"):
        if vocabulary and s.given(key) and s[key] not in vocabulary:
            special = sorted(token for token in vocabulary if token.startswith("<") and token.endswith(">"))[:6]
            yield key, f"{shown(s[key])} is not in the vocabulary of {folder}; its special tokens: {', '.join(special)}"
    template = s.values.get("chat_template_path")
    if not isinstance(template, str):
        return
    if template.endswith((".jinja", ".j2")) and not os.path.isfile(template):
        yield "chat_template_path", f"{template} does not exist; correct the path"
    elif os.path.isfile(template):
        yield from _template(template)


def _template(path: str) -> Problems:
    try:
        text = Path(path).read_text(encoding="utf-8")
        found = template_problem(text)
    except (OSError, ValueError) as error:
        yield "chat_template_path", f"{path} cannot be read ({type(error).__name__})"
    else:
        if found:
            yield "chat_template_path", f"{path}, line {found[0]}: {found[1]}"
            return
        if text.startswith("\ufeff"):
            yield "chat_template_path", f"{path}: begins with a byte order mark, and so would every chat; save it without"
        if "messages" not in text:
            yield "chat_template_path", f"{path}: does not use `messages`, so it would render the same text for every chat"


def _vocabulary(folder) -> set[str]:
    read = _read_json(Path(folder) / "tokenizer.json") if isinstance(folder, str) and os.path.isdir(folder) else {}
    added, entries = _mapping(read).get("added_tokens"), _mapping(_mapping(read).get("model")).get("vocab")
    words = [_mapping(token).get("content") for token in added] if isinstance(added, list) else []
    if isinstance(entries, list):  # Unigram: [token, score]
        entries = [entry[0] for entry in entries if isinstance(entry, list) and entry]
    entries = entries if isinstance(entries, (dict, list)) else []
    return {word for word in (*words, *entries) if isinstance(word, str)}


def _mapping(value) -> dict:
    """`value` from a file if it is a mapping, otherwise an empty one; loading the file will report what is wrong."""
    return value if isinstance(value, dict) else {}


def packages(s: Settings) -> Problems:
    """Packages that the settings need and that are not installed."""
    if s["use_liger_kernel"] and not installed("liger_kernel"):
        yield "use_liger_kernel", "liger-kernel is not installed (pip install liger-kernel; it needs a GPU); leave it out"
    for key in ("load_in_4bit", "load_in_8bit"):
        if s[key] and not installed("bitsandbytes"):
            yield key, "bitsandbytes is not installed (pip install bitsandbytes)"
    if s["use_vllm"] and not installed("vllm"):
        yield "use_vllm", "vLLM is not installed (pip install vllm; it needs a GPU); leave it out"
    if s["deepspeed"] and not installed("deepspeed"):
        yield "deepspeed", "deepspeed is not installed (pip install deepspeed)"
    elif s["deepspeed"] and not {"RANK", "OMPI_COMM_WORLD_RANK"} & os.environ.keys():
        yield (
            "deepspeed",
            "needs a launcher, for a single process too; start it with configs/accelerate/zero2.yaml or zero3.yaml",
        )
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    inductor = s["torch_compile"] and s["torch_compile_backend"] in (None, "inductor")
    if inductor and not shutil.which(compiler) and not shutil.which("nvidia-smi"):  # on a GPU, Triton compiles
        yield "torch_compile", f"needs a C++ compiler, and there is no {compiler}; install one, or leave torch_compile out"
    attention = s["attn_implementation"] or ""
    for name, module in (("flash_attention_2", "flash_attn"), ("flash_attention_3", "flash_attn_interface")):
        if attention == name and not installed(module, "kernels"):
            yield "attn_implementation", f"{name} is not installed (pip install flash-attn; it needs a GPU); use sdpa"
    optimizer = str(s.values.get("optim", ""))
    for part, modules in NEEDS.items():
        if part in optimizer and not installed(*modules):
            yield "optim", f"{optimizer} needs {modules[0]}, which is not installed"
    distributed = int(os.environ.get("WORLD_SIZE", 1)) > 1 or "ACCELERATE_USE_FSDP" in os.environ
    if s["fsdp"] and not distributed:
        yield (
            "fsdp",
            "shards over processes, but there is only one; launch with configs/accelerate/fsdp2.yaml",
        )
    if s["ddp_static_graph"] and s["gradient_accumulation_steps"] > 1 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        yield "ddp_static_graph", "fails inside PyTorch with `gradient_accumulation_steps` above 1; leave it out"
    if s["ddp_backend"] and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield "ddp_backend", "connects processes, but there is only one; leave it out, or launch several with accelerate"


def ports(s: Settings) -> Problems:
    """A port that this user may not open. (A port in use is fine: the next free one is taken.)"""
    port = s.values.get("port")
    if not port or "host" not in s.keys:
        return
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            yield "port", f"{port} may only be opened by the administrator; choose one from 1024 to 65535"
        except OSError:
            pass


def hub(s: Settings) -> Problems:
    """Whether a push at the end will be permitted: asked now, not after hours of training."""
    key = next((key for key in ("push_to_hub", "log_completions_hub_repo") if s[key]), None)
    if key is None:
        return
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield key, "HF_HUB_OFFLINE is set, so nothing can be pushed; unset it, or push later by recipes/push.py"
        return
    from huggingface_hub import HfApi, get_token

    if not get_token():
        yield key, "no token; set HF_TOKEN, or log in by `hf auth login`, or push later by recipes/push.py"
        return
    try:
        HfApi().whoami()
    except Exception as error:  # no network, a proxy's answer, an expired token
        reason = str(error).split("\n")[0][:120] or type(error).__name__
        yield key, f"the hub does not let this token in ({reason}); or push later by recipes/push.py"


CHECKS = (inputs, models, tokens, packages, room, ports, hub)
