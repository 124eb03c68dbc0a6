"""A tiny model, texts and questions shared by the tests of evaluation."""

import torch
from training_toys import CONFIG

from llmrecipes.models import build_policy

SHAPE = CONFIG | {"max_position_embeddings": 64, "initializer_range": 0.3}


TEXTS = ["The cat sat on the mat.", "A dog ran.", "Mia has a red ball and Ben has a blue one, and both of them like it."]


def build(tokenizer, seed=0):
    torch.manual_seed(seed)
    return build_policy(dict(SHAPE), tokenizer).eval()


def log_likelihood(model, context, continuation):
    """Sum of log p of `continuation` after `context`, token by token, without batch or padding."""
    ids = torch.tensor([context + continuation])
    with torch.no_grad():
        log_p = model(ids).logits[0].log_softmax(-1)
    return sum(log_p[len(context) + i - 1, token].item() for i, token in enumerate(continuation))


# --- behaviour --------------------------------------------------------------------------------------------------------


def question(kind, answer="x"):
    return {"prompt": [{"role": "user", "content": "cat"}], "kind": kind, "answer": answer}
