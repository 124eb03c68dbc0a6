"""Memory of one GPU in closed form: bytes by part, at the peak of each phase.

For eager PyTorch with flash SDPA and full rows, as torch's memory tracker counts it (tests/test_plan_memory.py: within
10 %). Not counted: CUDA's context, fragmentation, dropout masks of the model itself.
"""

from llmrecipes.plan.architecture import Architecture
from llmrecipes.plan.job import Job
from llmrecipes.plan.kept import (
    backward_of_mlp,
    casts_kept,
    kept_at_the_ends,
    kept_by_layer,
    kept_by_layers,
    mlp_bytes,
    residual_bytes,
)

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


def weights_bytes(job: Job) -> float:
    """Bytes of the model's full weights."""
    a = job.architecture
    parameters = a.trunk + a.hidden if job.head == "score" else a.parameters
    if not job.quantised:
        return parameters * job.weight_bytes + (4 * job.lora.parameters(a) if job.lora else 0)
    matrices = _quantised_weights(job)
    adapters = 2 if job.rollouts is None else 4  # TRL casts QLoRA's adapters to bfloat16
    rest = (parameters - matrices) * (job.weight_bytes if job.rollouts is None else 4)
    return matrices * job.quantised + rest + adapters * job.lora.parameters(a)


def _quantised_weights(job: Job) -> int:
    """Number of weights in the matrices that load_in_4bit and load_in_8bit quantise."""
    return job.architecture.layers * sum(i * o * n for i, o, n in job.architecture.linear_sizes.values())


def _static(job: Job) -> Parts:
    """Bytes that are allocated all the time."""
    a, shards = job.architecture, job.gpus
    trained_bytes = (4 if job.weight_bytes == 4 or job.lora else 2) if not job.quantised or job.rollouts else 2
    whole = weights_bytes(job)
    unsplit = _quantised_weights(job) * job.quantised if job.quantised and not job.splits_quantised else 0.0
    weights = unsplit + (whole - unsplit) / shards if job.sharded == 3 else whole
    if job.sharded == 3 and shards > 1:  # embeddings and head stay gathered, and two layers at a time
        weights += job.weight_bytes * (a.embedding + a.head + (0 if unsplit else 2 * a.layer_parameters))
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
    ends, layer = tokens * kept_at_the_ends(job, a), tokens * kept_by_layer(job, a)
    logits, after, head_gradient = _head(job, a, tokens)
    backward = tokens * backward_of_mlp(job, a)
    has_head = job.head != "score"
    tail = _tied(job, a, job.weight_bytes) if has_head else 0.0
    if job.checkpointing:
        inputs = tokens * a.layers * residual_bytes(job) * a.hidden
        casts = casts_kept(job, a, 0, has_head and job.head == "logits")
        recomputed = layer + casts_kept(job, a, 1, False) + backward
        return [
            static | {"gradients": held, "activations": inputs + ends + casts, "logits": logits},
            static | {"gradients": held + head_gradient, "activations": inputs + ends + casts, "logits": after},
            static | {"gradients": held + head_gradient, "activations": inputs + recomputed},
            static | {"gradients": gradients * (1 - 1 / a.layers), "activations": inputs / a.layers + recomputed},
            static | {"gradients": gradients + tail, "activations": (recomputed - backward) / 2},
        ]
    kept = kept_by_layers(job, a) + ends + casts_kept(job, a, 0, has_head and job.head == "logits")
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
    if not r.vllm and not r.served:
        cache = (residual_bytes(job) + job.compute_bytes) * a.layers * a.key
        sampling["KV cache"] = r.decoded * (r.prompt + r.response) * cache
        sampling["logits"] = 12 * r.decoded * a.vocabulary
        prefill = r.decoded * r.prompt * _transient(job, a)
        sampling["activations"] = prefill + casts_kept(job, a, a.layers)
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
    """The moments of PPO's update that can be its peak: the policy's logits; the forward pass is done; the head's backward
    pass begins; the policy's gradients exist; the value model's forward pass is done; all gradients exist.

    Models with trunks of their own are read in turn, each with its backward pass; sharded ones in one call
    (`PPOTrainer.training_step`), whose backward pass begins with the value model's."""
    a, r = job.architecture, job.rollouts
    layer = job.tokens * kept_by_layer(job, a)
    policy = _kept_in_update(job, a, True)
    value, value_gradients = 0.0, 0.0
    if r.separate_value:
        free = job.changed(lora=None, quantised=None, weight_bytes=4)
        value, value_gradients = _kept_in_update(free, r.value, False), 4 * (r.value.trunk + r.value.hidden)
    beside, first = (value, value_gradients) if job.sharded else (0.0, 0.0)
    chunk, chunks = _chunk(job)
    size = chunk * a.vocabulary
    made = size * (8 + 2 * (job.compute_bytes == 2))  # logits, in bfloat16 also their float32 copy, and log-probabilities
    held = gradients if job.accumulation > 1 else 0.0
    own = max(held, gradients - value_gradients)
    head = 0 if job.lora else a.embedding * (4 + 2 * job.autocast)
    not_yet = layer + casts_kept(job, a, 1, False) if job.checkpointing else 0.0  # recomputed after the logits are freed
    before_head = static | {"gradients": max(held, first), "activations": policy - not_yet}
    at_head = before_head | {"gradients": before_head["gradients"] + head}  # of chunks, the first ones' is there
    tail = _tied(job, a, 4)
    return [
        static | {"gradients": held, "activations": policy - not_yet, "logits": made},
        static | {"gradients": held, "activations": policy - not_yet + beside, "logits": 4 * size if chunks == 1 else 0.0},
        before_head | {"logits": size * (4 + job.compute_bytes)} if chunks == 1 else at_head | {"logits": made},
        at_head | {"activations": policy},
        static | {"gradients": own + first + tail, "activations": layer / 2},
        static | {"gradients": own, "activations": value - beside},
        static | {"gradients": gradients, "activations": layer / 2},
    ]


def _kept_in_update(job: Job, a: Architecture, head: bool) -> float:
    """Bytes of activations of one of the two models: those kept, or the peak with checkpointing."""
    layer, ends = kept_by_layer(job, a), kept_at_the_ends(job, a)
    if job.checkpointing:
        inputs = a.layers * residual_bytes(job) * a.hidden
        return job.tokens * (inputs + layer + ends) + casts_kept(job, a, 1, head)
    return kept_by_layers(job, a) + job.tokens * ends + casts_kept(job, a, 0, head)


def _chunk(job: Job) -> tuple[int, int]:
    """(response tokens whose logits exist at a time, number of such chunks)."""
    r, tokens = job.rollouts, job.batch * job.rollouts.response
    size = r.chunk or max(1, LOGITS_BYTES // 4 // job.architecture.vocabulary)
    return min(size, tokens), -(-tokens // size)


def _transient(job: Job, a: Architecture) -> float:
    """Bytes per token of a forward pass without gradients: the residual stream and a layer's widest intermediate."""
    narrow = job.compute_bytes
    mlp = mlp_bytes(job, a) * (3 if a.gated else 2) * a.width * max(1, a.active_experts)
    attention = narrow * 2 * (a.query + a.key)
    return 3 * residual_bytes(job) * a.hidden + max(mlp, attention)
