"""Activations that a step keeps for its backward pass, in bytes per token of a layer, and the casts beside them."""

from llmrecipes.plan.architecture import Architecture
from llmrecipes.plan.job import Job

PLACES = (  # linear modules in the order in which a layer runs through them
    ("q_proj", "k_proj", "v_proj", "qkv"),
    ("o_proj", "out"),
    ("gate_proj", "up_proj", "up"),
    ("down_proj", "down"),
)


def kept_by_layer(job: Job, a: Architecture) -> float:
    """Bytes per token that a layer of `a` keeps for the backward pass, without weights cast to bfloat16."""
    wide, narrow = residual_bytes(job), job.compute_bytes
    mixed, frozen = wide == 4 and narrow == 2, job.lora is not None
    readers = (1, 1) if a.fused_qkv else (3, 1 + a.gated)  # linear layers after the first and the second norm
    kept = 0.0
    for number, n in enumerate(readers):
        shared = a.parallel and number == 1
        if a.layer_norm:
            kept += 0 if shared else wide * a.hidden
            own = 0
        else:
            kept += 4 * a.hidden
            own = (4 if a.float32_norms else wide) * a.hidden  # the normalised input that the weight is multiplied with
        if not frozen:
            kept += own + (n * 2 if mixed else narrow) * a.hidden
    kept += (a.norms - 2) * (4 if frozen else 8) * a.hidden  # norms after attention and MLP
    kept += _kept_by_attention(job, a)
    copies, mlp = max(1, a.active_experts), mlp_bytes(job, a)
    kept += copies * a.mlp_kept * mlp * a.width + a.active_experts * (2 * mlp * a.hidden + 20) + 4 * a.experts
    return kept + (_kept_by_lora(job, a) if frozen else 0)


def _kept_by_attention(job: Job, a: Architecture) -> float:
    """Bytes per token that a layer's attention keeps, between its linear modules."""
    narrow = job.compute_bytes
    kept = narrow * 2 * (a.query + a.key) + 4 * a.heads  # q, k, v, output and log-sum-exp of the attention
    kept += narrow * a.rotated_copies * a.query
    if (
        job.padded or job.flattened or (a.window and job.length > a.window)
    ):  # a mask: keys and values are repeated for all heads, and every layer has the mask in its own dtype
        seen = job.tokens if job.flattened else job.length
        kept += narrow * (2 * (a.query - a.key) * (not a.fused_qkv) + seen)
    if a.qk_norm:
        kept += (4 + (0 if job.lora else 4 if a.float32_norms else narrow)) * (a.query + a.key)
    return kept


def kept_by_layers(job: Job, a: Architecture) -> float:
    """Bytes that all layers keep, casts included. With adapters the first layer keeps nothing of what comes before its first
    adapter, since nothing there is trained."""
    kept = a.layers * job.tokens * kept_by_layer(job, a) + casts_kept(job, a, a.layers, False)
    if not job.lora:
        return kept
    places = [place for name in job.lora.targets for place, names in enumerate(PLACES) if name in names]
    idle = [place not in places for place in (0, 2)] if a.parallel else [min(places) > 0, min(places) > 2]
    before = [True, idle[0], a.parallel or min(places) > 1, idle[1]]  # whether the modules of a place read nothing trained
    norm = (residual_bytes(job) if a.layer_norm else 4) * a.hidden
    spared = norm
    if idle[0]:
        spared += _kept_by_attention(job, a)
        if 1 in places and job.compute_bytes == 4 and not job.autocast:  # the adapter reads the attention's output itself
            spared -= 4 * a.query
    if before[2] and not a.parallel:
        spared += (a.norms - 1) * norm
    width = mlp_bytes(job, a) * a.width
    if idle[1]:
        spared += (a.mlp_kept - 1) * width  # its output is the down projection's input, see `_kept_by_lora`
    elif before[2] and a.gated:  # of a product the factor is kept whose other one is trained
        spared += (2 * ("gate_proj" not in job.lora.targets) + ("up_proj" not in job.lora.targets)) * width
    if job.autocast and job.weight_bytes == 4 and not job.quantised:
        sizes = a.linear_sizes.items()
        kept -= 2 * sum(i * o * n for name, (i, o, n) in sizes if any(name in PLACES[p] for p in range(4) if before[p]))
    return kept - job.tokens * spared


def _kept_by_lora(job: Job, a: Architecture) -> float:
    """Bytes per token that adapters add, when the base's inputs are no longer kept: each input in the adapters' own
    precision, and the rank-sized intermediate."""
    lora, kept = job.lora, 0.0
    cast = 2 if job.autocast else 4  # PEFT keeps adapters in float32; autocast casts their inputs down again
    for name, (inputs, _, _) in a.linear_sizes.items():
        adapted = name in lora.targets
        if name in ("down", "down_proj"):  # its input is the activation, which the frozen matrix does not keep
            kept -= job.compute_bytes * inputs
            copy = cast
        elif name in ("o_proj", "out"):
            kept -= job.compute_bytes * inputs if a.rotated_copies else 0
            copy = 0 if cast == 4 and job.compute_bytes == 4 and not a.rotated_copies else cast
        else:
            copy = cast
        if adapted:
            kept += copy * inputs + cast * lora.rank + (inputs if lora.dropout else 0)
    return kept


def backward_of_mlp(job: Job, a: Architecture) -> float:
    """Bytes per token that the backward pass of a layer's MLP takes beside what is kept: the gradients of its
    intermediates, with adapters and autocast also those of an adapter's path before the sum and of the residual stream. The
    numbers are what the tracker finds; where trained weights keep all layers, moments with logits are fuller."""
    width = mlp_bytes(job, a) * max(1, a.active_experts) * a.width
    if job.lora and job.autocast:
        copies = 3 if {"down", "down_proj"} & job.lora.targets else 1 + a.gated
        return copies * (width + 4 * a.hidden)
    # A trained down projection has let go of its input by then.
    counts = job.checkpointing or job.lora or job.head == "score"
    return (1 + a.gated + (job.lora is not None)) * width if counts else 0.0


def residual_bytes(job: Job) -> int:
    """Bytes per value of the residual stream, which has the weights' precision."""
    return 4 if job.weight_bytes == 4 else 2


def mlp_bytes(job: Job, a: Architecture) -> int:
    """Bytes per value inside the MLP: grouped products of experts take the weights' precision, autocast or not."""
    return residual_bytes(job) if a.experts else job.compute_bytes


def kept_at_the_ends(job: Job, a: Architecture) -> float:
    """Bytes per token of the last norm and its output."""
    wide, narrow = residual_bytes(job), job.compute_bytes
    norm = wide * a.hidden if a.layer_norm else (4 + (0 if job.lora else 4 if a.float32_norms else wide)) * a.hidden
    return norm + wide * a.hidden + (narrow * a.hidden if wide != narrow else 0)


def casts_kept(job: Job, a: Architecture, layers: int, head: bool = True) -> float:
    """bfloat16 copies of float32 weights, kept for the backward pass of `layers` layers."""
    if not (job.autocast and job.weight_bytes == 4) or job.quantised:
        return 0.0
    return 2 * (layers * (a.layer_matrices - a.expert_weights) + head * a.embedding)
