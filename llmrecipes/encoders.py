"""What reward models of BERT's family need that decoders do not: a new pooler, and positions counted from the pad token."""

from collections.abc import Set

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrecipes.config import InputError


def only_pooler_is_new(model: PreTrainedModel, missing: Set[str]) -> bool:
    """Whether the weights `missing` from a checkpoint are the head's and those of the pooler that belongs to it, which a
    masked language model does not have. A pooler that is missing without the head was lost."""
    trunk = f"{model.base_model_prefix}."
    lost = [key for key in missing if key.startswith(trunk)]
    return 0 < len(lost) < len(missing) and all(key.startswith(f"{trunk}pooler.") for key in lost)


def pad_before_positions(model: PreTrainedModel) -> int | None:
    """The pad token's id, behind which RoBERTa's family begins to count positions; None for other models."""
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    return next((table.padding_idx for table in tables if isinstance(table, nn.Embedding)), None)


def require_own_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, where: str | None) -> None:
    """InputError if positions are counted from another token than the one that the tokenizer pads with: saved and loaded
    again, the model would count from that one, and give other scores."""
    own = pad_before_positions(model)
    if own is not None and own != tokenizer.pad_token_id:
        raise InputError(
            f"{where}: counts positions from token {own} ({tokenizer.convert_ids_to_tokens(own)}), which it was trained to "
            f"pad with, but its tokenizer pads with {tokenizer.pad_token}; set pad_token in its tokenizer_config.json"
        )
