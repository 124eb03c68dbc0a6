"""Tokenizers, trained or loaded from any Hugging Face folder or id. Imports no torch, unless a model's folder is read."""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llmrecipes.config import InputError, ModelArguments
from llmrecipes.data.gguf import local_model
from llmrecipes.data.tables import say
from llmrecipes.durable import read_json
from llmrecipes.preflight.model_folders import POINTER, PULL, damages
from llmrecipes.templates import CHAT_TEMPLATE, complete_template, set_defaults

# Names of files that hold a tokenizer's vocabulary.
VOCABULARY = re.compile(r"tokenizer\.json|tekken\.json|vocab\..*|.*\.(model|tiktoken)")
PAD, TURN_START, TURN_END = "<|pad|>", "<|im_start|>", "<|im_end|>"
# How runs of digits are split before BPE.
DIGITS = {
    "single": [pre_tokenizers.Digits(individual_digits=True)],  # arithmetic generalises best
    "three": [pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated")],  # from the left, as GPT-4 and Llama 3 do
    "none": [],
}


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    max_length: int,
    digits: str = "single",
    special_tokens: Sequence[str] = (),
    chat_template: str = CHAT_TEMPLATE,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE (Radford et al. 2019) with pad != eos; `<|im_end|>` ends a document and a chat turn alike.

    special_tokens: those of the user's own chat template, in addition to ours.

    Raises:
        InputError: `vocab_size` has no room for the 256 bytes and the special tokens.
    """
    special = [PAD, TURN_START, TURN_END, *special_tokens]
    if vocab_size < 256 + len(special):
        raise InputError(f"vocab_size: {vocab_size} is below {256 + len(special)} (256 bytes and the special tokens)")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*DIGITS[digits], pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=TURN_END, model_max_length=max_length, padding_side="right"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [TURN_START, *special_tokens]})
    tokenizer.chat_template = chat_template
    return tokenizer


def load_tokenizer(
    model: ModelArguments, trust_remote_code: bool = False, new_template: str | None = None
) -> PreTrainedTokenizerBase:
    """Tokenizer of `tokenizer_name_or_path`, otherwise that in the model's folder or, for an adapter without one, in its
    base's. A missing pad token is set to EOS, and `chat_template_kwargs` become the chat template's defaults, unless the
    trainer is about to replace it by `new_template` (`chat_template_path`), whose defaults they then become."""
    path, revision = model.tokenizer_name_or_path, None
    if not path:
        from transformers.models.auto.tokenization_auto import get_tokenizer_config

        from llmrecipes.adapters import read_chain

        chain = read_chain(require_path(model), model.model_revision)
        source = next(s for s in reversed(chain) if s.adapter is None or get_tokenizer_config(s.path, revision=s.revision))
        path, revision = source.path, source.revision
    with loading(path, "tokenizer"):
        found = local_model(path)
        tokenizer = class_for(found).from_pretrained(found, revision=revision, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"{path}: its tokenizer has neither an EOS nor a pad token; set eos_token in its "
                "tokenizer_config.json to the token that ends a text"
            )
        tokenizer.pad_token = tokenizer.eos_token
    leave_out_eos(tokenizer, path)
    set_defaults(tokenizer, {} if new_template else model.chat_template_kwargs or {})
    complete_template(tokenizer, path)
    return tokenizer


def class_for(path: str):
    """AutoTokenizer; or the class that it would choose for `path`, if that is a folder with a tokenizer alone: AutoTokenizer
    imports torch, to read a model's config."""
    about = read_json(Path(path) / "tokenizer_config.json")
    is_plain = about.get("tokenizer_class") == "TokenizersBackend" and "auto_map" not in about
    if is_plain and not (Path(path) / "config.json").exists():
        from transformers.tokenization_utils_tokenizers import TokenizersBackend

        return TokenizersBackend
    from transformers import AutoTokenizer

    return AutoTokenizer


def leave_out_eos(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Stops `tokenizer` from appending EOS to every text: a prompt would end before its answer, and training rows, which get
    their EOS anyway, would end twice. A BOS is kept.

    Raises:
        InputError: it cannot be stopped, as may happen with a tokenizer without the Rust backend.
    """
    ends = lambda: tokenizer.eos_token is not None and tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]
    if not ends():
        return
    begins = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    tokenizer.add_bos_token, tokenizer.add_eos_token = begins, False
    tokenizer.init_kwargs |= {"add_bos_token": begins, "add_eos_token": False}
    if ends():
        raise InputError(
            f"{where}: its tokenizer puts EOS after every text, after a prompt too; set add_eos_token: "
            "false in its tokenizer_config.json"
        )
    say(f"{where}: its tokenizer put {tokenizer.eos_token} after every text, after a prompt too; it no longer does")


def require_path(model: ModelArguments) -> str:
    """`model_name_or_path`; InputError if it is missing or does not exist."""
    path = model.model_name_or_path
    if not path:
        raise InputError("`model_name_or_path` is missing; give a Hugging Face id or a stage's folder")
    require_folder(path, "model_name_or_path")
    return path


def require_folder(path: str, key: str) -> None:
    """InputError for `key` if `path` cannot be a Hub id and does not exist."""
    looks_local = path.startswith((".", "/", "~", "outputs/")) or path.count("/") > 1
    if looks_local and not Path(path).exists():
        raise InputError(f"{key}: {path} does not exist; run the stage that writes it first")


class loading:
    """Turns from_pretrained's many kinds of error into one line."""

    def __init__(self, path: str, what: str):
        self.path, self.what = path, what

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if found := re.search(r"configuration class <class '.*\.(\w+)'> for this kind of AutoModel: (\w+)", str(error)):
            raise InputError(
                f"{self.path}: transformers has no {found[2]} for a {found[1]}; use a model of another family, such as Llama"
            ) from error
        if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" in str(error):
            raise InputError(f"{self.path}: its weights have different sizes than its config.json says") from error
        if isinstance(error, Exception) and not isinstance(error, (InputError, MemoryError)):
            if known := diagnose(self.path, self.what, str(error)):
                raise InputError(f"{self.path}: {known}") from error
        # ImportError: a package that the model needs is not installed, such as bitsandbytes
        # AssertionError: torch's, of a pad_token_id beyond the embeddings
        # TypeError, AttributeError, IndexError: a value of another kind in a JSON file; Exception itself: tokenizers' own
        kinds = (OSError, ValueError, KeyError, ImportError, AssertionError, SafetensorError, StrictDataclassError)
        if isinstance(error, (*kinds, TypeError, AttributeError, IndexError)) or type(error) is Exception:
            told = f"has no {error}" if type(error) is KeyError else str(error)[:300]
            raise InputError(f"{self.path}: its {self._broken()} cannot be loaded: {told}") from error

    def _broken(self) -> str:
        """What cannot be loaded: transformers reads a model's config to load its tokenizer too."""
        from transformers import AutoConfig

        if self.what != "tokenizer" or not (Path(self.path) / "config.json").is_file():
            return self.what
        try:
            AutoConfig.from_pretrained(self.path)
        except Exception:
            return "config.json"
        return self.what


def diagnose(path: str, what: str, text: str) -> str:
    """What is wrong with the model or tokenizer (`what`) in `path` and what to do, where transformers' error, `text`, does
    not say so; else nothing."""
    folder = Path(path)
    files = [file for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
    for file in files:
        if file.stat().st_size < 1024 and file.read_bytes().startswith(POINTER):
            return f"{file.name} {PULL}"
    if problem := next(damages(folder), ""):
        return problem
    if "contains custom code" in text or "trust_remote_code" in text:
        return "needs code of its own repository, which `trust_remote_code: true` runs, with your rights"
    if what == "model" and re.search(r"file named \S*model\.safetensors", text):
        return (
            "has no weights as safetensors; others, such as pytorch_model.bin, are not read, since they may hold "
            "code. If you trust them, convert them once: AutoModelForCausalLM.from_pretrained(PATH, "
            "use_safetensors=False).save_pretrained(PATH)"
        )
    if what == "tokenizer" and folder.is_dir() and not any(VOCABULARY.fullmatch(file.name) for file in files):
        if not {"config.json", "adapter_config.json"} & {file.name for file in files}:
            return "holds no model: it has no config.json; give the folder of a stage, or of a model"
        return "holds no tokenizer; name a folder or Hub id that has the model's own as tokenizer_name_or_path"
    if what == "tokenizer" and re.search("sentencepiece|tiktoken", text, re.I):
        return (
            "its tokenizer is not in a tokenizer.json, and transformers needs a package to convert it: `pip install "
            "sentencepiece`, or tiktoken where it is of that kind"
        )
    return ""
