"""Packed blocks of tokens for a trainer: windows of a stream of concatenated documents, read from disk on access."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from llmrecipes.attention import borders_of, require_borders
from llmrecipes.tokens.mixing import Mixture
from llmrecipes.tokens.shards import TokenStream


class TokenBlocks(torch.utils.data.Dataset):
    """Rows {"input_ids"} (T,) int64, and {"position_ids"} (T,) with `reset_attention`.

    Block b of a stream holds its tokens b·T to (b + 1)·T - 1, whatever documents these belong to: no padding, and only a
    stream's last tokens, fewer than T, are lost. Blocks are numbered through all `streams`. With a `mixture`, row n is the
    n-th sample of training, without end; an epoch has `epoch_rows`. Without a mixture, row n is block n.
    """

    def __init__(
        self,
        streams: Sequence[TokenStream],
        length: int,
        mixture: Mixture | None = None,
        epoch_rows: int | None = None,
        reset_attention: bool = False,
    ):
        self.streams, self.length, self.mixture, self.reset_attention = streams, length, mixture, reset_attention
        self.first_blocks = np.concatenate([[0], np.cumsum([stream.num_tokens // length for stream in streams])])
        self.epoch_rows = epoch_rows or int(self.first_blocks[-1])

    def __len__(self) -> int:
        return self.epoch_rows

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {name: values[0] for name, values in self.__getitems__([row]).items()}

    def __getitems__(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """Several rows at once, each value (B, T); torch's DataLoader passes them to the collator unchanged. Stacking single
        rows would cost as much as reading them."""
        if self.mixture is None and rows and not max(rows) < len(self):
            raise IndexError(max(rows))
        blocks = np.asarray(rows) if self.mixture is None else self.mixture.locate(rows)
        ids = np.empty((len(blocks), self.length), np.int64)
        owners = self.first_blocks.searchsorted(blocks, side="right") - 1
        starts = ((blocks - self.first_blocks[owners]) * self.length).tolist()
        for out, owner, start in zip(ids, owners.tolist(), starts, strict=True):
            self.streams[owner].read(start, out)
        found = {"input_ids": torch.from_numpy(ids)}
        if self.reset_attention:
            places = [positions(self.streams[i], start, self.length) for i, start in zip(owners, starts, strict=True)]
            found["position_ids"] = torch.from_numpy(np.stack(places))
        return found


def positions(stream: TokenStream, start: int, length: int) -> np.ndarray:
    """Position (length,) of each token of the block at `start`, counted from the start of its document or of the block."""
    ends = stream.document_ends(start, start + length - 1) - start
    firsts = np.zeros(length, np.int64)
    firsts[ends] = ends
    return np.arange(length) - np.maximum.accumulate(firsts)


def collate_blocks(rows: list[dict] | dict) -> dict[str, torch.Tensor]:
    """Input ids (B, T), which are also the labels: the model shifts them by one. No attention mask: nothing is padded, and
    without a mask SDPA uses its fast causal kernel.

    rows: of a batch, singly or as returned by `TokenBlocks`."""
    batch = rows if isinstance(rows, dict) else {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return batch | {"labels": batch["input_ids"]}


def collate_documents(rows: list[dict] | dict) -> dict[str, torch.Tensor | int]:
    """The same with positions that restart at 0, and where documents begin in the B * T tokens (`attention.BORDERS`)."""
    batch = collate_blocks(rows)
    return batch | borders_of(batch["position_ids"])


def collate_flat(rows: list[dict] | dict) -> dict[str, torch.Tensor]:
    """The same as one row (1, B * T) with positions that restart at 0, by which flash attention separates documents. The
    first token of each row has label -100: it is not to be predicted from the row before."""
    batch = collate_blocks(rows)
    batch["labels"] = batch["labels"].clone()
    batch["labels"][:, 0] = -100
    return {name: values.reshape(1, -1) for name, values in batch.items()}


def collator_for(model: PreTrainedModel, reset_attention: bool) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
    """The collator for `model`; with `reset_attention`, the one by which its attention recognises document boundaries.

    Raises:
        InputError: the model does not recognise them.
    """
    if not reset_attention:
        return collate_blocks
    if "flash" in (model.config._attn_implementation or ""):
        return collate_flat
    require_borders(model, "reset_attention", "it would do nothing")
    return collate_documents
