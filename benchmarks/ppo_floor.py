"""The floor under a PPO update: the matrix products that must be done, at the rate at which this machine does them.

Counted per row of a prompt of p and a response of r tokens, without padding: sampling runs p + r - 1 tokens through the
policy; scoring p + r through the reward model; the rollout's forward pass p + r - 1 through the reference and the value
model; the update as many through policy and value model in each epoch, with twice the products again for the backward pass.
Logits are counted for r tokens, attention for the causal half of its matrix. The rates are those of torch.mm at the shapes
of these products in fp32 (bf16 on a GPU), measured in the same process and with the same clock as the phases; attention is
taken at its layers' rate. Everything else (norms, softmax, optimizer, sampling itself) counts as 0.

`kernels` is the same work as the models call it: the products of all layers in turn, so that each reads its weights anew,
and attention by SDPA's kernel, which short rows and single queries keep far below the rate of a large product.
"""

import statistics
from collections.abc import Callable

TURNS = 5


class Rates:
    """FLOP/s of torch.mm by (rows, columns summed over, columns), the best of three turns of at least 5 ms each."""

    def __init__(self, clock):
        self.clock, self.known = clock, {}

    def __call__(self, m: int, k: int, n: int) -> float:
        import torch

        if (m, k, n) not in self.known:
            on = {"device": "cuda", "dtype": torch.bfloat16} if torch.cuda.is_available() else {}
            left, right = torch.randn(m, k, **on), torch.randn(k, n, **on)
            torch.mm(left, right)
            turns = max(1, int(1e8 / (m * k * n)))  # 1e8 multiplications: about 5 ms on a core
            best = float("inf")
            for _ in range(3):
                started = self.clock()
                for _ in range(turns):
                    torch.mm(left, right)
                best = min(best, (self.clock() - started) / turns)
            self.known[m, k, n] = 2 * m * k * n / best
        return self.known[m, k, n]

    def seconds(self, tokens: float, m: int, products: list[tuple[int, int]], backward: bool, extra: float = 0.0) -> float:
        """Of `tokens` tokens, m at a time, through weights of shape (k, n), with the backward pass's two products each, and
        `extra` FLOPs (attention) at the mean rate of these."""
        flops = seconds = 0.0
        for k, n in products:
            shapes = [(m, k, n), *([(m, n, k), (k, m, n)] if backward else [])]
            flops += len(shapes) * 2 * tokens * k * n
            seconds += sum(2 * tokens * k * n / self(*shape) for shape in shapes)
        return seconds * (1 + extra / flops)


def floor(sizes: tuple, vocab: int, lengths: list[tuple[int, int]], micro: int, epochs: int, batch: int, clock) -> dict:
    """Least seconds of one update by phase. sizes: width, intermediate width, layers, heads of each of the four models (as
    many key and value heads); lengths: (prompt, response) tokens of each row; micro, batch: rows in a micro-batch and
    decoded together; clock: () -> seconds."""
    width, inner, layers, _ = sizes
    layer = [(width, width)] * 4 + [(width, inner)] * 2 + [(inner, width)]
    body, head = layer * layers, [(width, vocab)]
    rates = Rates(clock)
    prompt, response = (sum(column) for column in zip(*lengths, strict=True))
    rows = len(lengths)
    tokens = prompt + response - rows  # the last token of a response goes through the reward model only
    # Two products (scores, values) of 2 x width FLOPs for each pair of a token and one that it sees.
    pairs = sum((p + r - 1) * (p + r) / 2 for p, r in lengths)
    attention = 4 * width * layers * pairs
    micro_tokens, micro_logits = round(micro * tokens / rows), round(micro * response / rows)
    # Rows drop out of a batch as they end: decoding has the mean number of live rows.
    live = max(1, round(min(batch, rows) * statistics.mean(r for _, r in lengths) / max(r for _, r in lengths)))
    prefilled = sum(4 * width * layers * p * (p + 1) / 2 for p, _ in lengths)
    prefill = rates.seconds(prompt, round(min(batch, rows) * prompt / rows), body, False, prefilled)
    decode = rates.seconds(response - rows, live, body, False, attention - prefilled) if response > rows else 0.0
    forward = rates.seconds(tokens, micro_tokens, body, False, attention)
    logits = rates.seconds(response, micro_logits, head, False)
    trained = rates.seconds(tokens, micro_tokens, body, True, 3 * attention)  # backward: as above, twice
    trained_logits = rates.seconds(response, micro_logits, head, True)
    return {
        "sample": prefill + decode + rates.seconds(response, live, head, False),
        "score": forward * (tokens + rows) / tokens,
        "rollout_forward": 2 * forward + logits,
        "update": epochs * (2 * trained + trained_logits),
    }


class Kernels:
    """Seconds of a trunk's products and attention alone, as its layers call them in turn: medians of TURNS runs."""

    def __init__(self, sizes: tuple, vocab: int, clock):
        import torch

        width, inner, layers, self.heads = sizes
        shapes = [(width, width)] * 4 + [(inner, width)] * 2 + [(width, inner)]  # (out, in), as nn.Linear has them
        self.on = {"device": "cuda", "dtype": torch.bfloat16} if torch.cuda.is_available() else {}
        self.layers = [[torch.randn(*shape, **self.on) for shape in shapes] for _ in range(layers)]
        self.head, self.width, self.clock = torch.randn(vocab, width, **self.on), width, clock

    def products(self, weights: list, m: int, backward: bool) -> Callable:
        """Those of m tokens with `weights` (out, in), in the backward pass those of both gradients."""
        import torch

        side = {n: torch.randn(m, n, **self.on) for n in {n for weight in weights for n in weight.shape}}

        def run():
            for weight in weights:
                left, right = side[weight.shape[1]], side[weight.shape[0]]
                torch.mm(left, weight.t())
                if backward:
                    torch.mm(right, weight)
                    torch.mm(right.t(), left)

        return run

    def attention(self, rows: int, new: int, length: int, backward: bool) -> Callable:
        """That of `new` tokens at the end of `length`, in every layer with keys and values of its own."""
        import torch

        shape = lambda tokens: (rows, tokens, self.heads, self.width // self.heads)
        make = lambda n: torch.randn(*shape(n), **self.on).transpose(1, 2).requires_grad_(backward)
        states = [(make(new), make(length), make(length)) for _ in self.layers]
        gradient = torch.randn(*shape(new), **self.on).transpose(1, 2)

        def run():
            for query, key, value in states:
                output = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=new > 1)
                if backward:
                    torch.autograd.grad(output, (query, key, value), gradient)

        return run

    def seconds(self, *runs) -> float:
        """Of the `runs` one after another."""
        taken = []
        for _ in range(TURNS + 1):  # the first warms up
            started = self.clock()
            for run in runs:
                run()
            taken.append(self.clock() - started)
        return statistics.median(taken[1:])

    def trunk(self, rows: int, length: float, backward: bool = False) -> float:
        """Seconds of all layers for `rows` rows of `length` tokens."""
        weights = [weight for layer in self.layers for weight in layer]
        m, length = round(rows * length), max(1, round(length))
        return self.seconds(self.products(weights, m, backward), self.attention(rows, length, length, backward))

    def logits(self, m: int, backward: bool = False) -> float:
        return self.seconds(self.products([self.head], m, backward))

    def step(self, live: int, length: float) -> float:
        """Seconds of a decoding step of `live` rows of `length` tokens."""
        weights = [weight for layer in self.layers for weight in layer] + [self.head]
        return self.seconds(self.products(weights, live, False), self.attention(live, 1, max(1, round(length)), False))


def kernels(sizes: tuple, vocab: int, lengths: list[tuple[int, int]], micro: int, epochs: int, batch: int, clock) -> dict:
    """Seconds of the products and attention kernels of one update by phase; arguments as for `floor`. Rows count with their
    mean lengths."""
    rows, own = len(lengths), Kernels(sizes, vocab, clock)
    prompt, response = (statistics.mean(column) for column in zip(*lengths, strict=True))
    live = max(1, round(min(batch, rows) * response / max(r for _, r in lengths)))
    parts, length, logits = rows / micro, prompt + response - 1, round(micro * response)
    forward = own.trunk(micro, length)
    trained, trained_logits = own.trunk(micro, length, backward=True), own.logits(logits, backward=True)
    together = min(batch, rows)
    prefill = rows / together * (own.trunk(together, prompt) + own.logits(together))
    return {
        "sample": prefill + rows * (response - 1) / live * own.step(live, prompt + response / 2),
        "score": parts * forward * (length + 1) / length,
        "rollout_forward": parts * (2 * forward + own.logits(logits)),
        "update": epochs * parts * (2 * trained + trained_logits),
    }
