import copy
from dataclasses import dataclass

import torch

from llmrecipes.generation import sample_tokens


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class Engine:
    def __init__(self, model, tokenizer):
        self.weights = model.eval()
        self.tokenizer = tokenizer
        self._bf16 = None

    @torch.no_grad()
    def load_weights(self, pairs):
        """As a vLLM model: Hugging Face names; a tied weight comes once."""
        own = dict(self.weights.named_parameters())
        for name, weight in pairs:
            own[name].copy_(weight)  # an unknown name is a KeyError, another shape a RuntimeError
        self._bf16 = None

    @torch.no_grad()
    def discard(self):
        for weight in self.weights.parameters():
            weight.fill_(float("nan"))
        self._bf16 = None

    @torch.no_grad()
    def generate(self, prompt: list[int], params) -> tuple[list[int], list[dict[int, Logprob]], str, str]:
        """(token ids, log-probabilities after temperature and truncation, text, finish reason)."""
        if self._bf16 is None:
            self._bf16 = copy.deepcopy(self.weights).to(torch.bfloat16)
        generator = None if params.seed is None else torch.Generator().manual_seed(params.seed)
        tokens, logprobs, text = [], [], ""
        for _ in range(params.max_tokens):
            logits = self._bf16(torch.tensor([prompt + tokens]), use_cache=False).logits[:, -1].float()
            chosen = sample_tokens(logits, params.temperature, params.top_k, params.top_p, generator).item()
            processed = logits / params.temperature
            if params.top_k:
                processed[processed < processed.topk(params.top_k).values[:, -1:]] = -torch.inf
            tokens.append(chosen)
            logprobs.append({chosen: Logprob(processed.log_softmax(-1)[0, chosen].item(), 1)})
            text = self.tokenizer.decode(tokens, skip_special_tokens=params.skip_special_tokens)
            if chosen in params.stop_token_ids or any(stop in text for stop in params.stop or []):
                return tokens, logprobs, text, "stop"
        return tokens, logprobs, text, "length"
