"""Memory of one GPU in closed form: bytes by part, at the peak of each phase.

For eager PyTorch with flash SDPA and full rows, as torch's memory tracker counts it (tests/test_plan_memory.py: within
10 %). Not counted: CUDA's context, fragmentation, dropout masks of the model itself.
"""

from llmrecipes.plan.architecture import Architecture
from llmrecipes.plan.job import Job

TILE_TOKENS, TILE_VOCABULARY = 4096, 32768  # of TRL's tiled LM head (trl.kernels.chunked_logprob)
LOGITS_BYTES = 1 << 27  # ppo.policy_value.LOGITS_BYTES, repeated since that module imports torch
Parts = dict[str, float]


def phases(job: Job, gpu_bytes: float = 0.0) -> dict[str, Parts]:
    """Phase -> part -> bytes at the phase's peak; a training step is one phase, PPO and GRPO have four."""
    static = _static(job)
    if job.rollouts is None:
        return {"training step": _fullest(_moments(job, static))}
    if job.rollouts.vllm:
        static["vLLM"] = max(job.rollouts.vllm * gpu_bytes, job.rollouts.vllm_weights)
    return _rollout_phases(job, static)


def kept_by_layer(job: Job, a: Architecture) -> float:
    """Bytes per token that a layer of `a` keeps for the backward pass, without weights cast to bfloat16."""
    wide, narrow = _residual_bytes(job), job.compute_bytes
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
    kept += narrow * 2 * (a.query + a.key) + 4 * a.heads  # q, k, v, output and log-sum-exp of the attention
    kept += narrow * a.rotated_copies * a.query
    if (
        job.padded or job.flattened or (a.window and job.length > a.window)
    ):  # a mask: keys and values are repeated for all heads, and every layer has the mask in its own dtype
        seen = job.tokens if job.flattened else job.length
        kept += narrow * (2 * (a.query - a.key) * (not a.fused_qkv) + seen)
    if a.qk_norm:
        kept += (4 + (0 if frozen else 4 if a.float32_norms else narrow)) * (a.query + a.key)
    copies, mlp = max(1, a.active_experts), _mlp_bytes(job, a)
    kept += copies * a.mlp_kept * mlp * a.width + a.active_experts * (2 * mlp * a.hidden + 20) + 4 * a.experts
    return kept + (_kept_by_lora(job, a) if frozen else 0)


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


def _backward_of_mlp(job: Job, a: Architecture) -> float:
    """Bytes per token that the backward pass of a layer's MLP takes beside what is kept: the gradients of its
    intermediates, with adapters and autocast also those of an adapter's path before the sum and of the residual stream. The
    numbers are what the tracker finds; where trained weights keep all layers, moments with logits are fuller."""
    width = _mlp_bytes(job, a) * max(1, a.active_experts) * a.width
    if job.lora and job.autocast:
        copies = 3 if {"down", "down_proj"} & job.lora.targets else 1 + a.gated
        return copies * (width + 4 * a.hidden)
    # A trained down projection has let go of its input by then.
    counts = job.checkpointing or (job.head == "score" and not job.lora)
    return (1 + a.gated + (job.lora is not None)) * width if counts else 0.0


def _residual_bytes(job: Job) -> int:
    return 4 if job.weight_bytes == 4 else 2


def _mlp_bytes(job: Job, a: Architecture) -> int:
    """Bytes per value inside the MLP: grouped products of experts take the weights' precision, autocast or not."""
    return _residual_bytes(job) if a.experts else job.compute_bytes


def _kept_at_the_ends(job: Job, a: Architecture) -> float:
    """Bytes per token of the last norm and its output."""
    wide, narrow = _residual_bytes(job), job.compute_bytes
    norm = wide * a.hidden if a.layer_norm else (4 + (0 if job.lora else 4 if a.float32_norms else wide)) * a.hidden
    return norm + wide * a.hidden + (narrow * a.hidden if wide != narrow else 0)


def _casts(job: Job, a: Architecture, layers: int, head: bool = True) -> float:
    """bfloat16 copies of float32 weights, kept for the backward pass of `layers` layers."""
    if not (job.autocast and job.weight_bytes == 4) or job.quantised:
        return 0.0
    return 2 * (layers * (a.layer_matrices - a.expert_weights) + head * a.embedding)


def weights_bytes(job: Job) -> float:
    """Bytes of the model's full weights."""
    a = job.architecture
    parameters = a.trunk + a.hidden if job.head == "score" else a.parameters
    if not job.quantised:
        return parameters * job.weight_bytes + (4 * job.lora.parameters(a) if job.lora else 0)
    matrices = a.layers * sum(i * o * n for i, o, n in a.linear_sizes.values())
    adapters = 2 if job.rollouts is None else 4  # TRL casts QLoRA's adapters to bfloat16
    rest = (parameters - matrices) * (job.weight_bytes if job.rollouts is None else 4)
    return matrices * job.quantised + rest + adapters * job.lora.parameters(a)


def _static(job: Job) -> Parts:
    """Bytes that are allocated all the time."""
    a, shards = job.architecture, job.gpus
    trained_bytes = (4 if job.weight_bytes == 4 or job.lora else 2) if not job.quantised or job.rollouts else 2
    whole = weights_bytes(job)
    weights = whole / shards if job.sharded == 3 else whole
    if job.sharded == 3 and shards > 1:  # embeddings and head stay gathered, and two layers at a time
        weights += job.weight_bytes * (a.embedding + a.head + 2 * a.layer_parameters)
    states = shards if job.sharded >= 1 else 1
    parts = {
        "weights": weights,
        "gradients": trained_bytes * job.trained / (shards if job.sharded >= 2 else 1),
        "optimizer": (job.optimizer or 0) * (job.trained if trained_bytes == 4 else job.trained / 2) / states,
    }
    if shards > 1 and not job.sharded:
        parts["DDP buckets"] = trained_bytes * job.trained
    if job.has_reference:
        each = job.rollouts.reference_bytes if job.rollouts else job.weight_bytes
        parts["reference"] = each * a.parameters / (shards if job.sharded == 3 else 1)
    if job.rollouts:
        _add_ppo_models(job, parts)
    return {name: size for name, size in parts.items() if size}


def _add_ppo_models(job: Job, parts: Parts) -> None:
    r = job.rollouts
    states, split, shards = (job.gpus if job.sharded >= stage else 1 for stage in (1, 2, 3))
    if r.reward:
        parts["reward model"] = r.reward_bytes * (r.reward.trunk + r.reward.hidden) / shards
    if r.separate_value:
        size = r.value.trunk + r.value.hidden
        parts["value model"] = 4 * size / shards
        parts["gradients"] += 4 * size / split
        parts["optimizer"] += (job.optimizer or 0) * size / states
        if "DDP buckets" in parts:
            parts["DDP buckets"] += 4 * size


def _moments(job: Job, static: Parts) -> list[Parts]:
    """The moments of a training step that can be its peak: the start of the backward pass; the head's gradients are done;
    the last and, with checkpointing, the first layer's backward pass; all gradients exist."""
    a, tokens = job.architecture, job.tokens
    gradients = static.pop("gradients")
    held = gradients if job.accumulation > 1 else 0.0
    ends, layer = tokens * _kept_at_the_ends(job, a), tokens * kept_by_layer(job, a)
    logits, after, head_gradient = _head(job, a, tokens)
    backward = tokens * _backward_of_mlp(job, a)
    has_head = job.head != "score"
    tail = _tied(job, a, job.weight_bytes) if has_head else 0.0
    if job.checkpointing:
        inputs = tokens * a.layers * _residual_bytes(job) * a.hidden
        casts = _casts(job, a, 0, has_head and job.head == "logits")
        recomputed = layer + _casts(job, a, 1, False) + backward
        return [
            static | {"gradients": held, "activations": inputs + ends + casts, "logits": logits},
            static | {"gradients": held + head_gradient, "activations": inputs + ends + casts, "logits": after},
            static | {"gradients": held + head_gradient, "activations": inputs + recomputed},
            static | {"gradients": gradients * (1 - 1 / a.layers), "activations": inputs / a.layers + recomputed},
            static | {"gradients": gradients + tail, "activations": (recomputed - backward) / 2},
        ]
    kept = a.layers * layer + ends + _casts(job, a, a.layers, has_head and job.head == "logits")
    return [
        static | {"gradients": held, "activations": kept, "logits": logits},
        static | {"gradients": held + head_gradient, "activations": kept, "logits": after},
        static | {"gradients": held, "activations": kept - ends + backward},
        static | {"gradients": gradients + tail, "activations": layer / 2},
    ]


def _tied(job: Job, a: Architecture, weight_bytes: int) -> float:
    """Bytes that exist beside all gradients when a tied embedding's two, as head and as embedding, are added up, and their
    sum to what accumulation holds."""
    copies = 2 + (job.accumulation > 1)
    return copies * a.embedding * weight_bytes if a.tied and not job.lora else 0.0


def _head(job: Job, a: Architecture, tokens: int) -> tuple[float, float, float]:
    """(bytes of logits and of the loss's intermediates at the start of the backward pass, the same while the head's gradient
    is computed, that gradient with its working copies)."""
    narrow = job.compute_bytes
    trained = job.lora is None
    gradient = trained * a.embedding * (4 if job.weight_bytes == 4 else 2)
    working = trained * a.embedding * (2 if job.autocast and job.weight_bytes == 4 else 0)
    if job.head == "score":
        return 0.0, 0.0, 0.0
    if job.head == "logits":
        return 12 * tokens * a.vocabulary, narrow * tokens * a.vocabulary, gradient + working
    tile = narrow * min(tokens, TILE_TOKENS) * TILE_VOCABULARY  # as wide for a smaller vocabulary
    if job.autocast and job.weight_bytes == 4:  # the head's copy in bfloat16
        tile += 2 * min(TILE_VOCABULARY, a.vocabulary) * a.hidden
    return tile, tile + 4 * tokens * a.hidden, trained * a.embedding * (4 if job.weight_bytes == 4 else 6)


def _fullest(moments: list[Parts]) -> Parts:
    return max(moments, key=lambda parts: sum(parts.values()))


def _rollout_phases(job: Job, static: Parts) -> dict[str, Parts]:
    a, r = job.architecture, job.rollouts
    gradients = static.pop("gradients")
    own = static if not r.offload else {k: v for k, v in static.items() if k not in ("reference", "reward model")}
    sampling, scoring, reading = dict(own), dict(own), dict(own)
    if r.offload:
        scoring["reward model"] = static.get("reward model", 0)
        reading["reference"] = static.get("reference", 0)
    if not r.vllm:
        cache = (_residual_bytes(job) + job.compute_bytes) * a.layers * a.key
        sampling["KV cache"] = r.decoded * (r.prompt + r.response) * cache
        sampling["logits"] = 12 * r.decoded * a.vocabulary
        prefill = r.decoded * r.prompt * _transient(job, a)
        sampling["activations"] = prefill + _casts(job, a, a.layers)
    if r.reward:
        scoring["activations"] = job.tokens * _transient(job, r.reward)
    chunk, chunks = _chunk(job)
    reading["activations"] = job.tokens * _transient(job, a)
    if job.head == "chunked":  # GRPO's update is a training step with TRL's tiled head
        reading["logits"] = _head(job, a, job.tokens)[0]
        update = _fullest(_moments(job, own | {"gradients": gradients}))
    else:
        reading["logits"] = 12 * chunk * a.vocabulary
        update = _fullest(_update_moments(job, own, gradients))
    found = {"sampling": sampling, "scoring": scoring, "log-probabilities and values": reading, "update": update}
    return {name: {part: size for part, size in parts.items() if size} for name, parts in found.items()}


def _update_moments(job: Job, static: Parts, gradients: float) -> list[Parts]:
    """The moments of PPO's update that can be its peak: the policy's logits; both models' forward passes are done; the value
    model's backward pass is done and the head's begins; all gradients exist."""
    a, r = job.architecture, job.rollouts
    layer = job.tokens * kept_by_layer(job, a)
    policy = _kept_in_update(job, a, True)
    value, value_gradients = 0.0, 0.0
    if r.separate_value:
        free = job.changed(lora=None, quantised=None, weight_bytes=4)
        value, value_gradients = _kept_in_update(free, r.value, False), 4 * (r.value.trunk + r.value.hidden)
    chunk, chunks = _chunk(job)
    size = chunk * a.vocabulary
    made = size * (job.compute_bytes + 8)  # logits, their float32 copy and the log-probabilities
    held = gradients if job.accumulation > 1 else 0.0
    head = 0 if job.lora else a.embedding * (4 + 2 * job.autocast)
    not_yet = layer + _casts(job, a, 1, False) if job.checkpointing else 0.0  # recomputed after the logits are freed
    at_head = static | {"gradients": max(held, value_gradients) + head, "activations": policy - not_yet}
    tail = _tied(job, a, 4)
    return [
        static | {"gradients": held, "activations": policy, "logits": made},
        static | {"gradients": held, "activations": policy + value, "logits": 4 * size if chunks == 1 else 0.0},
        at_head | {"logits": size * (4 + job.compute_bytes) if chunks == 1 else made},
        at_head | {"activations": policy},
        static | {"gradients": gradients + tail, "activations": layer / 2},
    ]


def _kept_in_update(job: Job, a: Architecture, head: bool) -> float:
    """Bytes of activations of one of the two models: those kept, or the peak with checkpointing."""
    layer, ends = kept_by_layer(job, a), _kept_at_the_ends(job, a)
    if job.checkpointing:
        inputs = a.layers * _residual_bytes(job) * a.hidden
        return job.tokens * (inputs + layer + ends) + _casts(job, a, 1, head)
    return job.tokens * (a.layers * layer + ends) + _casts(job, a, a.layers, head)


def _chunk(job: Job) -> tuple[int, int]:
    """(response tokens whose logits exist at a time, number of such chunks)."""
    r, tokens = job.rollouts, job.batch * job.rollouts.response
    size = r.chunk or max(1, LOGITS_BYTES // 4 // job.architecture.vocabulary)
    return min(size, tokens), -(-tokens // size)


def _transient(job: Job, a: Architecture) -> float:
    """Bytes per token of a forward pass without gradients: the residual stream and a layer's widest intermediate."""
    narrow = job.compute_bytes
    mlp = _mlp_bytes(job, a) * (3 if a.gated else 2) * a.width * max(1, a.active_experts)
    attention = narrow * 2 * (a.query + a.key)
    return 3 * _residual_bytes(job) * a.hidden + max(mlp, attention)
