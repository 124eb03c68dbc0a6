"""Tokens of a corpus: made once, mixed by share, read in blocks. `corpus` and `blocks` import torch, the rest does not."""
