"""Every kind of input that ever raised something else than one clear line, in our own words: (kind of benchmarks/fuzz.py,
input). An input found by `python benchmarks/fuzz.py` goes here when it is mended."""

DEEP = 3000
CHAT = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}'
STAGES = {"sft": '{"output_dir": "home/sft"}', "tokenizer": '{"output_dir": "home/tokenizer"}'}
OLD_KEYS = "home/pipeline_keys.json"

CORPUS = [
    # YAML: keys and values that YAML takes for something else, loops, depth
    ("yaml", ("sft", "output_dir: o\ntrue: 1\n")),
    ("yaml", ("sft", "1: one\n")),
    ("yaml", ("sft", "on: push\n")),
    ("yaml", ("sft", "null: 1\n")),
    ("yaml", ("sft", "? [a, b]\n: 1\n")),
    ("yaml", ("sft", "? {a: b}\n: 1\n")),
    ("yaml", ("sft", "license: &a [*a]\n")),
    ("yaml", ("sft", "expected: &a {x: *a}\n")),
    ("yaml", ("sft", "<<: {seed: 1}\n")),
    ("yaml", ("sft", "<<: 3\n")),
    ("yaml", ("sft", "<<: &a {<<: *a}\n")),
    ("yaml", ("sft", "save_only_model: 2026-01-01T25:00:00Z\n")),
    ("yaml", ("sft", "source: 2026-02-30\n")),
    ("yaml", ("sft", "seed: " + "9" * 6000 + "\n")),
    ("yaml", ("sft", "seed: 0x" + "f" * 6000 + "\n")),
    ("yaml", ("sft", "expected: " + "[" * DEEP + "\n")),
    ("yaml", ("sft", "expected: " + "{a: " * DEEP + "\n")),
    ("yaml", ("sft", "use_peft: !!bool maybe\n")),
    ("yaml", ("sft", "seed: !!int x\n")),
    ("yaml", ("sft", "source: !!binary aGVsbG8\n")),
    ("yaml", ("sft", 'source: "\\ud83d"\n')),
    ("yaml", ("sft", 'output_dir: "a\\0b"\n')),
    ("yaml", ("sft", "\ufeffseed: 1\n")),
    ("yaml", ("sft", "\tseed: 1\n")),
    ("yaml", ("sft", "seed: 1\x00\n")),
    ("yaml", ("sft", "env: {'A=B': 1}\n")),
    ("yaml", ("sft", 'env: {A: "x\\0"}\n')),
    ("yaml", ("sft", "env: [1]\n")),
    ("yaml", ("sft", "datasets: {path: [a]}\n")),
    ("yaml", ("sft", "datasets: [{path: x, max_rows: a}]\n")),
    ("yaml", ("ppo", "cliprange: [{path: x, max_rows: a}]\n")),
    ("yaml", ("evaluate", "models: {a: null}\n")),
    ("yaml", ("pretrain", "model_config: {num_attention_heads: 0, hidden_size: 4}\n")),
    # argv
    ("argv", ("sft", ["--deepspeed", "null", "--eos_token", "1_000", "---"])),
    ("argv", ("sft", ["----", "''"])),
    ("argv", ("sft", ["--lora_alpha", "[" * DEEP])),
    ("argv", ("sft", ["--datasets", "{path: " * 400])),
    ("argv", ("ppo", ["--warmup_steps", "x" * 5000])),
    ("argv", ("ppo", ["--" + "k" * 5000])),
    ("argv", ("sft", ["--seed", "9" * 6000])),
    ("argv", ("sft", ["--config"])),
    ("argv", ("sft", ["--config="])),
    ("argv", ("sft", ["--config", "\udcff.yaml"])),
    ("argv", ("sft", ["--report_to", "wandb", "\udcff"])),
    ("argv", ("sft", ["--help", "\udcff"])),
    # rows
    ("jsonl", ('{"text": []}', ("text",), {}, 0.9999)),
    ("jsonl", ('{"text": "a"}\n{"text": "b"}', ("prompt",), {"max_rows": -1}, 1)),
    ("jsonl", (CHAT + '\n{"a":' + '{"a":' * DEEP, ("prompt",), {}, 1)),
    (
        "jsonl",
        ('{"text": [[0], [1]], "instruction": "x"}\n{}\n{"prompt": [[0], [1]]}', ("messages",), {"weight": 0.5}, None),
    ),
    ("jsonl", ('{"text": " "}\n{"text": "hello"}', ("preference",), {"weight": float("nan")}, None)),
    ("jsonl", ('{"text": ' + "9" * 6000 + "}", ("text",), {}, None)),
    ("jsonl", ('{"text": "\\ud800"}', ("text",), {}, None)),
    ("jsonl", ('{"text": NaN}', ("text",), {}, None)),
    ("jsonl", ("[" * DEEP, ("text",), {}, None)),
    ("jsonl", ("{}", ("text",), {"name": "9" * 5000, "weight": 1}, None)),
    # rankings
    ("rankings", (".jsonl", '{"prompt_id": [[0, 1]], "ranking": [true]}')),
    ("rankings", (".jsonl", '{"prompt_id": {"a": 1}, "ranking": [0, 1]}')),
    ("rankings", (".jsonl", '{"prompt_id": "p0", "ranking": 1, "annotator": ["a"]}')),
    ("rankings", (".jsonl", '{"prompt_id": "p0", "ranking": [[[0]]]}')),
    ("rankings", (".csv", "prompt_id,ranking\np0," + "[" * DEEP)),
    ("rankings", (".csv", "prompt_id,ranking\np0," + "9" * 6000)),
    # manifests and checkpoints, torn or written by something else
    *[
        ("manifest", {"manifest.json": content, "checkpoint-3/trainer_state.json": state})
        for content, state in (
            (b"[]", b""),
            (b"null", b"{}"),
            (b'{"status": 1}', b"{}"),
            (b'{"status": 1}', b"[]"),
            (b'{"status": 1}', b"\xff"),
            (b'{"status": "finished", "config": null, "fingerprint": "y"}', b""),
            (b"[" * DEEP, b""),
            (b"\xff\xfe", b""),
            (b'{"status": "running", "fingerprint": "b25ec5f48731622a"}', b"{}"),
            (b'{"files": [1], "given": [2]}', b""),
        )
    ],
    ("manifest", {"manifest.json": b'{"files": [1]}', "model.safetensors": b"x"}),
    # chains
    ("pipeline", ('{"stages": [1], "output_dir": "home"}', STAGES, {OLD_KEYS: b""})),
    ("pipeline", ('{"stages": [["a"]], "output_dir": "home", "rounds": 2}', STAGES, {OLD_KEYS: b"null"})),
    (
        "pipeline",
        ('{"stages": ["sft", "sft"], "output_dir": "home"}', STAGES, {OLD_KEYS: b"\xff", "home/sft/manifest.json": b"[]"}),
    ),
    ("pipeline", ('{"stages": ["sft"], "output_dir": "home"}', STAGES | {"sft": '{"output_dir": [null]}'}, {})),
    ("pipeline", ('{"stages": ["/etc/x", "../x"], "output_dir": "home"}', STAGES, {})),
    (
        "pipeline",
        (
            '{"stages": ["sft"], "output_dir": "home"}',
            STAGES,
            {"home/sft/manifest.json": b'{"status": "finished", "wall_seconds": "", "made": 1, "expected": {}}'},
        ),
    ),
    # configs of other tools
    ("migrate", "scheduler: []\n"),
    ("migrate", "reward_model_path: 1\ninit_kl_coef: 0.1\nrpo_alpha: 1\n"),
    ("migrate", "dataset_mixture: 3\ndataset_mixer: [a]\n"),
    ("migrate", "dataset_mixture: {datasets: [1]}\n"),
    ("migrate", "base_model: a\nmicro_batch_size: x\nevals_per_epoch: .nan\nnum_epochs: a\n"),
    # folders of models
    ("model", {"config.json": b"[]", "tokenizer.json": b"3", "model.safetensors": b"\x00"}),
    ("model", {"config.json": b'{"architectures": [3], "id2label": 4, "n_positions": "many", "model_type": "gpt2"}'}),
    ("model", {"tokenizer.json": b'{"model": [], "added_tokens": 3}'}),
    ("model", {"model.safetensors": b"\x02\x00\x00\x00\x00\x00\x00\x00[]"}),
]
