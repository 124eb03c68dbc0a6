"""Configs that users write wrongly: stage, the lines that are wrong, a part of the line that tells so.

The rest of each config is right (`write_config` adds it); `~key` leaves a right line out. {policy}, {reward},
{gpt2}, {huge}, {scores}, {rows}, {empty}, {file}, {latin}, {foreign}, {another} and {tmp} are paths of the test's own.
"""

import json
from pathlib import Path

TRAINING = """
seed: -1 | must lie from 0 to 4294967295
seed: 4294967296 | must lie from 0 to
seed: 1.5 | it must be int
seed: a | it must be int
data_seed: -3 | must lie from 0 to
per_device_train_batch_size: 0 | must be at least 1
per_device_train_batch_size: 2.5 | it must be int
per_device_train_batch_size: auto | it must be int
per_device_eval_batch_size: 0 | must be at least 1
gradient_accumulation_steps: 0 | must be at least 1
gradient_accumulation_steps: -4 | must be at least 1
learning_rate: .nan | must be a finite number
learning_rate: .inf | must be a finite number
learning_rate: 1e999 | must be a finite number
learning_rate: -1e-3 | must be at least 0
learning_rate: 1e-3x | it must be float
learning_rate: [1e-3] | it must be float
weight_decay: -0.1 | must be at least 0
max_grad_norm: -1 | must be at least 0
adam_beta1: 1.0 | must lie from 0 to below 1
adam_beta2: -0.1 | must lie from 0 to below 1
adam_epsilon: 0 | must be above 0
warmup_steps: -5 | must be at least 0
warmup_steps: 1.5 | is not a whole number of steps
seed: 010 | would be read as a number in base 8
learning_rate: 1:30 | would be read as a number in base 60
run_name: "" | is empty
tokenizer_name_or_path: " " | is empty
datasets: [{path: {rows}, name: ""}] | is empty
watch_tasks: [""] | holds an empty text
warmup_steps: ten | it must be float
max_steps: 0 | trains nothing
max_steps: -2 | must lie from -1
max_steps: 10; num_train_epochs: 3 | num_train_epochs: has no effect beside `max_steps: 10`
num_train_epochs: 0 | must lie from above 0
num_train_epochs: 1e308 | must lie from above 0 to 1e9
num_train_epochs: -1 | must lie from above 0
num_train_epochs: many | it must be float
save_steps: 0 | must be above 0
save_steps: -100 | must be above 0
save_steps: 10.5 | not a whole number of steps
save_strategy: sometimes | choose from
save_strategy: best | best needs evaluations
save_total_limit: 0 | must be at least 1
logging_steps: 0 | must be above 0
logging_steps: 1.5 | not a whole number of steps
logging_strategy: often | choose from
eval_steps: 0 | must be above 0
eval_strategy: steps | has nothing to evaluate on
eval_strategy: epoch | has nothing to evaluate on
eval_strategy: nonsense | choose from no, steps, epoch
eval_on_start: true | has nothing to evaluate on
do_eval: true | has nothing to evaluate on
do_predict: true | has no effect
label_names: [x] | has no effect
do_train: sometimes | it must be bool
load_best_model_at_end: true | nothing to compare models on
load_best_model_at_end: true; eval_strategy: epoch; test_split_size: 0.1 | must be the same models
load_best_model_at_end: true; eval_strategy: steps; eval_steps: 30; save_steps: 100; test_split_size: 0.1 | is not a multiple
metric_for_best_model: accuracy | decides nothing
greater_is_better: maybe | it must be bool
resume_from_checkpoint: outputs/other/checkpoint-5 | is not taken
resume_from_checkpoint: false | is not taken
lr_scheduler_type: [linear] | give one of linear, cosine
eval_strategy: [] | give one of no, steps, epoch
lr_scheduler_type: zigzag | choose from linear, cosine
lr_scheduler_type: warmup_stable_decay | needs `lr_scheduler_kwargs: {num_decay_steps
lr_scheduler_type: cosine_with_min_lr | needs `lr_scheduler_kwargs: {min_lr_rate
lr_scheduler_type: reduce_lr_on_plateau | looks at evaluations
lr_scheduler_type: greedy | looks at evaluations
lr_scheduler_type: constant; warmup_steps: 10 | use constant_with_warmup
lr_scheduler_type: cosine; lr_scheduler_kwargs: {num_cicles: 2} | `num_cicles` is unknown to lr_scheduler_type cosine
lr_scheduler_type: linear; lr_scheduler_kwargs: {min_lr: 1e-5} | it takes none
lr_scheduler_kwargs: min_lr=1e-5 | is text; write a mapping
lr_scheduler_kwargs: [1] | must be dict
lr_scheduler_type: cosine_with_min_lr; lr_scheduler_kwargs: {min_lr_rate: a} | must be a number
lr_scheduler_type: polynomial; lr_scheduler_kwargs: {lr_end: 5} | must be below learning_rate
lr_scheduler_type: warmup_stable_decay; lr_scheduler_kwargs: {num_decay_steps: -5} | must be a number of 0 or more
lr_scheduler_type: warmup_stable_decay; lr_scheduler_kwargs: {num_decay_steps: 50}; max_steps: 9 | more than the 9
optim_args: nonsense | has no value
optim_args: fused=1 | `fused` has no effect with `optim: adamw_torch_fused`, which reads none
optim: sgd; optim_args: momentum=0.9,beta=1 | `beta` has no effect with `optim: sgd`, it reads momentum, damp
optim: sgd; optim_args: momentum=much | `momentum` is 'much'; it must be a number
optim: sgd; optim_args: momentum=-1 | `momentum` is '-1'; it must be a number of 0 or more
optim: sgd; optim_args: momentum=0.9,nesterov=maybe | `nesterov` is 'maybe'; it must be true or false
accelerator_config: {split_batches: maybe} | `accelerator_config.split_batches` is 'maybe' (str); it must be bool
accelerator_config: {split_batch: true} | `accelerator_config`: unknown key `split_batch`, did you mean `split_batches`?
accelerator_config: accelerator.json | is text; write a mapping
accelerator_config: {dispatch_batches: true} | the last of an evaluation count twice
accelerator_config: {even_batches: false} | for which the others wait for ever
accelerator_config: {use_seedable_sampler: false} | so that a run that continues takes others
ignore_data_skip: true | would read rows again
restore_callback_states_from_checkpoint: true | has no effect: the callbacks here keep no state there
watch_questions: {path: {rows}, splits: test} | `watch_questions`: unknown key `splits`, did you mean `split`
watch_questions: {path: {rows}, max_rows: 0} | `watch_questions.max_rows` is 0; it must be at least 1
datasets: [{path: {rows}, weight: 2.0}] | `weight` has no effect with a single source
accelerator_config: {use_configured_state: true} | needs a state that a program has made
accelerator_config: {gradient_accumulation_kwargs: {sync_each: true}} | unknown key `sync_each`, did you
accelerator_config: {gradient_accumulation_kwargs: {adjust_scheduler: false}} | Trainer adds gradients up by itself
fsdp_config: {fsdp_versions: 2} | unknown key `versions`, did you mean `version`?
fsdp_config: {backward_prefetch: true} | unknown key `backward_prefetch`; FSDP2 fetches ahead by itself; leave it out
fsdp_config: {fsdp_sharding_strategy: FULL_SHARD} | `sharding_strategy`; FSDP2 has `reshard_after_forward`: true for FULL
fsdp_config: {offload_params: true} | unknown key `offload_params`; FSDP2 has `cpu_offload`
fsdp_config: {use_orig_params: true} | unknown key `use_orig_params`; FSDP2 always does so; leave it out
fsdp_config: {xla: true} | unknown key `xla`; it is for TPUs; leave it out
fsdp_config: {reshard_after_forward: maybe} | it must be bool
fsdp_config: {tmp}/sharded.json | `fsdp_config`: unknown key `cpu_offlod`, did you mean `cpu_offload`?
activation_checkpointing: true; activation_checkpointing_kwargs: {every_n_layers: 0} | it must be at least 1
activation_checkpointing: true; activation_checkpointing_kwargs: {use_reentrant: maybe} | it must be bool
fsdp_config: {fsdp_cpu_offload: true} | has no effect without `fsdp: true`
torch_compile: true; torch_compile_backend: nix | choose from eager
torch_compile_mode: nix | choose from default
activation_offloading: true | needs a GPU
activation_checkpointing: true; activation_checkpointing_kwargs: {offload: true} | kwargs.offload` needs a GPU
optim: adamw_torche | did you mean `adamw_torch`
optim: sgdd | did you mean `sgd`
optim: galore_adamw | needs galore_torch
optim: schedule_free_adamw | needs schedulefree
fp16: true; bf16: true | are both on
fp16: true | needs a GPU
fp16: true; bf16: false | needs a GPU
bf16: maybe | it must be bool
tf32: 1 | must be bool
use_liger_kernel: true | liger-kernel is not installed
gradient_checkpointing_kwargs: use_reentrant=False | is text; write a mapping
gradient_checkpointing_kwargs: {use_reentrent: false} | unknown key `use_reentrent`
activation_checkpointing_kwargs: {use_reentrent: false} | unknown key `use_reentrent`
gradient_checkpointing: true; activation_checkpointing: false | the two differ
report_to: wandbb | choose from all, none
report_to: [tensorboard, wandbb] | choose from all, none
report_to: [none, tensorboard] | holds none beside trackers
push_to_hub: true | no token; set HF_TOKEN
hub_model_id: a/b/c | is not a repository name
hub_model_id: "my model" | is not a repository name
hub_strategy: always | choose from end
hub_token: hf_secret | set HF_TOKEN
fsdp: full_shard auto_wrap | launch with configs/accelerate/fsdp2.yaml
fsdp: true | launch with configs/accelerate/fsdp2.yaml
deepspeed: {tmp}/zero9.json | does not exist
deepspeed: {zero_optimization: {stage: 2}} | needs a launcher, for a single process too
dataloader_num_workers: -1 | must be at least 0
dataloader_prefetch_factor: 2 | set `dataloader_num_workers`
dataloader_persistent_workers: true | there are no workers
dataloader_multiprocessing_context: thread | choose from fork
dataloader_multiprocessing_context: spawn | there are no workers
dataloader_in_order: false | there are no workers
eval_use_gather_object: true | has no effect: evaluations here keep no predictions
enable_jit_checkpoint: true | has no effect: SIGTERM makes a run save
torch_compile: false; torch_compile_backend: eager | has no effect with `torch_compile: false`
torch_compile: false; torch_compile_mode: max-autotune | has no effect with `torch_compile: false`
accelerator_config: {split_batches: true} | that of all processes
accelerator_config: {gradient_accumulation_kwargs: {num_steps: 2}} | is `gradient_accumulation_steps` here
trackio_static_space_id: ann/space | has no effect without `report_to: trackio`
ddp_backend: gloo | connects processes, but there is only one
label_smoothing_factor: 2 | must lie from 0 to 1
ddp_backend: ncll | choose from nccl
ddp_timeout: 0 | must be at least 1
log_level: loud | choose from debug
debug: everything | choose from
train_sampling_strategy: grouped | choose from random
torch_empty_cache_steps: 0 | must be at least 1
eval_accumulation_steps: 0 | must be at least 1
num_gpus: 0 | must be at least 1
global_batch_size: -64 | must be at least 1
expected: {eval_loss: 3} | [value, tolerance]
expected: {eval_loss: [3, -1]} | [value, tolerance]
expected: 3 | must be dict
expected: {ppo/sampled_win_rate: [0.7, 0.1]} | use `ppo/sampled_rule_win_rate`
expected: {ppo/polite: [0.7, 0.1]} | use `ppo/rude`
license: [mit] | must be str
output_dir: {file}/out | is a file, so there can be no folder below it
output_dir: {file} | is a file; name a folder
output_dir: . | is not a folder of the run's own
output_dir: / | is not a folder of the run's own
output_dir: {policy} | would be overwritten
output_dir: {policy}/out | name a folder next to it
output_dir: {tmp} | would be removed
output_dir: {foreign}/missing/.. | by way of a folder that is not there
output_dir: /proc/out | nothing can be written below
output_dir: 7 | put it in quotes
~output_dir | output_dir: is missing
~datasets | datasets: is missing
~model_name_or_path | model_name_or_path: is missing
model_name_or_path: ~/none/x | /none/x does not exist
model_name_or_path: ~nobody.x/m | ~nobody.x/m: there is no user 'nobody.x' whose folder that would be
datasets: [{path: ~nobody.x/rows.jsonl}] | there is no user 'nobody.x'
output_dir: ~nobody.x/out | there is no user 'nobody.x'
model_name_or_path: outputs/none/sft | does not exist
model_name_or_path: {rows} | is a file; name the folder of a model
model_name_or_path: my models/one | neither a local path nor
model_name_or_path: a/b/c | does not exist
model_name_or_path: [gpt2] | must be str
model_name_or_path: {huge} | num_hidden_layers is 1000000000 in its config.json
tokenizer_name_or_path: ./none | does not exist
datasets: nix.jsonl | nix.jsonl does not exist
datasets: [data/nix.jsonl] | data/nix.jsonl does not exist
datasets: [{path: nix.csv}] | nix.csv does not exist
datasets: [{path: {empty}}] | is empty
datasets: [{split: train}] | `path` is missing
datasets: [{path: x, splits: train}] | did you mean `split`
datasets: [{id: x}] | write `path`
datasets: [{path: 3}] | `path` is missing
datasets: [{path: {rows}, max_rows: -5}] | `datasets[0].max_rows` is -5
datasets: [{path: {rows}, max_rows: ten}] | `datasets[0].max_rows` is 'ten'
datasets: [{path: {rows}, max_rows: 0}] | must be at least 1
datasets: [{path: {rows}, weight: .nan}] | must be a finite number
datasets: [{path: {rows}, weight: 0}] | must be above 0
datasets: [{path: {rows}, weight: -1}] | must be above 0
datasets: [{path: {rows}, weight: half}] | must be float
datasets: [{path: {rows}, columns: 3}] | `datasets[0].columns[0]` is 3
datasets: [{path: {rows}, split: 1}] | put it in quotes
datasets: [{path: {rows}, columns: []}] | `columns` is empty
datasets: [{path: {rows}, sha256: abc}] | `sha256` is not read
datasets: [{path: {rows}, data_files: a.jsonl}] | `data_files` is not read
datasets: [{path: {rows}, reader: nix}] | names no function
datasets: [{path: {rows}, reader: "nix.mod:f"}] | there is no module nix.mod
datasets: [{path: {rows}, reader: "json:nix"}] | holds no nix
datasets: [3] | must be a path or
datasets: 3 | must be a path or
eval_datasets: [{path: nix.jsonl}] | nix.jsonl does not exist
test_split_size: -1 | must be above 0
test_split_size: 0 | must be above 0
test_split_size: 0.1; eval_datasets: {rows} | give one of the two
attn_implementation: flash_attention_9 | is unknown; choose from
attn_implementation: flash_attention_2 | is not installed
dtype: float12 | choose from auto
dtype: fp8 | choose from auto
use_peft: yes please | it must be bool
lora_r: 8 | has no effect without `use_peft: true`
lora_target_modules: all-linear | has no effect without `use_peft: true`
use_dora: true | has no effect without `use_peft: true`
use_peft: true; lora_r: 0 | must be at least 1
use_peft: true; lora_alpha: 0 | must be at least 1
use_peft: true; lora_dropout: 1.0 | must lie from 0 to below 1
use_peft: true; lora_target_modules: [all-linear, q_proj] | name it alone
use_peft: true; lora_task_type: SEQ_CLS | is not this stage's
load_in_4bit: true | add `use_peft: true`
load_in_8bit: true | add `use_peft: true`
load_in_4bit: true; load_in_8bit: true; use_peft: true | are both on
use_bnb_nested_quant: true | has no effect without `load_in_4bit: true`
bnb_4bit_quant_type: nf5 | choose from fp4
env: [A] | must be a mapping
env: {A: [1]} | is not a variable
"1": 2 | unknown key `1`
1: 2 | key `1` is not text
on: push | key `on` is not text
true: 1 | key `true` is not text
null: 1 | key `null` is not text
2026-02-30: 1 | unknown key `2026-02-30`
source: &a [*a] | is inside the value
source: !!binary aGVsbG8= | have no place in a config
source: !!set {a} | have no place in a config
source: !!python/object/apply:os.system [ls] | have no place in a config
source: "\\ud800" | half a character
lr: 1e-3 | use `learning_rate`
batch_size: 8 | use `per_device_train_batch_size`
epochs: 3 | use `num_train_epochs`
learning_rat: 1e-3 | did you mean `learning_rate`
torch_dtype: bfloat16 | use `dtype`
warmup_ratio: 0.1 | use `warmup_steps`
overwrite_output_dir: true | use `force`
evaluation_strategy: steps | use `eval_strategy`
max_seq_length: 2048 | use `max_length`
dataset_mixture: {datasets: []} | use `datasets
dataset_mixer: {a: 1.0} | use `datasets
dataset_name: a | use `datasets
dataset_config: all | use `datasets
dataset_train_split: train | use `datasets
dataset_test_split: test | use `eval_datasets
chat_template: "{{ messages }}" | use `chat_template_path`
hub_model_revision: v1 | use `hub_revision`
no_cuda: true | use `use_cpu`
group_by_length: true | use `train_sampling_strategy: group_by_length`
use_flash_attention_2: true | use `attn_implementation
finetuning_type: lora | use `use_peft: true`
lora_rank: 8 | use `lora_r`
cutoff_len: 512 | use `max_length`
base_model: gpt2 | use `model_name_or_path`
test_split_size: 1.5 | neither a share below 1 nor a whole number
model_revision: main | which has no revisions
output_dir: $HOME/out | nothing is filled in
output_dir: ${OUT}/sft | nothing is filled in
output_dir: "{{ out }}" | nothing is filled in
output_dir: "out\\nput" | has a line break
datasets: [{path: "${DATA}/rows.jsonl"}] | nothing is filled in
datasets: [{path: stdlib, revision: main}] | `revision` is not read
datasets: [{path: "json:loads", sha256: abc}] | `sha256` is not read
datasets: [{path: {policy}, revision: main}] | `revision` is not read
optim: adafactor; adam_beta1: 0.5 | has no effect with `optim: adafactor`
optim: sgd; adam_epsilon: 1e-6 | has no effect with `optim: sgd`
optim_target_modules: [q_proj] | has no effect without `optim: galore` or `optim: lomo`
bnb_4bit_quant_type: nf4 | has no effect without `load_in_4bit: true`
hub_strategy: end | has no effect without `push_to_hub: true`
hub_model_id: ann/model | has no effect without `push_to_hub: true`
liger_kernel_config: {rop: true} | `liger_kernel_config`: unknown key `rop`, did you mean `rope`?
liger_kernel_config: {rope: 1} | `liger_kernel_config.rope` is 1 (int); it must be bool
liger_kernel_config: {rope: true} | has no effect without `use_liger_kernel: true`
length_column_name: size | has no effect: the rows, once tokenised, have no such column
train_sampling_strategy: group_by_length; length_column_name: size | the rows, once tokenised, have no such column
trackio_space_id: ann/space | has no effect without `report_to: trackio`
batch_eval_metrics: true | computes no metrics
micro_batch_size: 2 | use `per_device_train_batch_size`
sequence_len: 512 | use `max_length`
"""

STAGES = {
    "sft": TRAINING
    + """
packing: 3 | it must be bool
use_liger_kernel: true; liger_kernel_config: {fused_linear_cross_entropy: true} | would replace the head that this stage's
packing_strategy: ffd | choose from bfd
packing: true; max_length: null | which is null
eval_packing: true | rows in a block would see each other; set `packing: true` too
max_length: 0 | must be at least 1
max_length: 2000; model_name_or_path: {gpt2} | is beyond the 1024 positions
model_name_or_path: {reward} | is a reward model
model_name_or_path: {scores} | is a reward model (an adapter)
assistant_only_loss: true; completion_only_loss: true | are both on
assistant_only_loss: true; completion_only_loss: false | false puts the loss on all tokens
loss_type: nnl | choose from nll
neftune_noise_alpha: -5 | must be above 0
dataset_num_proc: 0 | must be at least 1
dataset_text_field: body | text is read from the column
dataset_kwargs: {add_special_tokens: false} | is not read
dataset_kwargs: {skip_prepare_dataset: true} | is not read
assistant_only_loss: false | always on the answers alone
packing: true; truncation_mode: keep_end | has no effect with `packing: true`
model_init_kwargs: {torch_dtype: bfloat16} | is not read
chat_template_path: nix.jinja | nix.jinja does not exist
chat_template_path: {tmp}/broken.jinja | line 2
chat_template_path: {tmp}/marked.jinja | begins with a byte order mark
chat_template_path: {tmp}/fixed.jinja | the same text for every chat
chat_template_path: "" | is empty
chat_template_path: {tmp} | holds no tokenizer
eos_token: </eot_id/> | is not in the vocabulary
pad_token: <pad> | is not in the vocabulary
truncation_mode: middle | choose from
loss_type: dft; label_smoothing_factor: 0.1 | has no effect on this stage's loss with `loss_type: dft`
bf16_full_eval: true | would round the weights that are saved after the last evaluation
prediction_loss_only: true | has no effect: evaluations here keep no predictions
watch_steps: -1 | must be at least 0
watch_share: 2 | must lie from 0 to 1
watch_reward_model: {policy} | is a language model
watch_rule: gold_score | names no function
judge_url: localhost:8000 | is not an address
judge_concurrency: 3 | has no effect without `judge_url`
judge_guidelines: {file} | has no effect without `judge_url`
judge_key_variable: MY_KEY | has no effect without `judge_url`
kl_coef: 0.1 | unknown key `kl_coef`
""",
    "dpo": """
f_divergence_type: alpha_divergence; f_alpha_divergence_coef: -1 | must lie from 0 to 1
label_smoothing_factor: 0.1 | has no effect on this stage's loss; use `label_smoothing`
train_sampling_strategy: group_by_length | group_by_length knows no length of a pair of answers
train_sampling_strategy: batch_rebalance | batch_rebalance knows no length of a pair of answers
label_smoothing: 0.1 | has no effect with sigmoid, only with aot
loss_type: ipo; label_smoothing: 0.1 | has no effect with ipo
f_alpha_divergence_coef: 0.3 | has no effect without `f_divergence_type: alpha_divergence`
discopop_tau: 0.1 | has no effect without `loss_type: discopop`
activation_checkpointing_kwargs: {every_n_layers: 2} | `every_n_layers` is lost here
ref_model_sync_steps: 64 | has no effect without `sync_ref_model: true`
precompute_ref_batch_size: 8 | has no effect without `precompute_ref_log_probs: true`
loss_weights: [0.0] | are all 0
judge_price: [1, 2] | has no effect without `judge_url`
beta: -0.1 | must be above 0
beta: 0 | must be above 0
loss_type: sigmoidal | choose from sigmoid
loss_type: [sigmoid, sft]; loss_weights: [1.0] | 1 weights for 2 losses
loss_type: [] | is empty
loss_type: [sigmoid]; loss_weights: [-1] | must be at least 0
loss_type: exo_pair | needs `label_smoothing` above 0
loss_type: aot; use_weighting: true | not defined for aot
loss_type: [sigmoid, sft]; use_weighting: true | is not defined for sft
loss_type: sft; f_divergence_type: forward_kl | has no effect with sft alone
loss_type: robust | robust is sigmoid without `label_smoothing`
label_smoothing: 0.6 | must lie from 0 to below 0.5
f_divergence_type: kl | choose from reverse_kl
f_divergence_type: js_divergence; loss_type: apo_zero | is not defined for apo_zero
sync_ref_model: true; use_peft: true | leave one of the two out
sync_ref_model: true; precompute_ref_log_probs: true | leave one of the two out
precompute_ref_batch_size: 0 | must be at least 1
max_prompt_length: 512 | prompt and answer together
rpo_alpha: 1.0 | use `loss_type: [sigmoid, sft]`
model_name_or_path: {reward} | is a reward model
generate_during_eval: true | use `watch_steps`
""",
    "reward": """
eval_datasets: [{path: {rows}, weight: 1}, {path: {rows}}] | has no effect for a set that is measured by itself
label_smoothing_factor: 0.1 | has no effect on this stage's loss; leave it out
train_sampling_strategy: group_by_length | group_by_length knows no length of a pair of answers
fp16_full_eval: true | would round the weights
health_max_length_bias: -1 | must lie from 0 to 1
health_max_length_correlation: 5 | must lie from 0 to 1
max_length: -1 | must be at least 1
center_rewards_coefficient: -1 | must be at least 0
health_min_accuracy: 60 | must lie from 0 to 1
health_max_pairs: 0 | must be at least 1
health_min_accuracy: 0.5 | has nothing to evaluate on
health_check: true | has nothing to evaluate on
pad_token: <pad> | is not in the vocabulary
eval_strategy: steps | has nothing to evaluate on
load_best_model_at_end: true; eval_datasets: {rows}; eval_strategy: steps | say which one decides
beta: 0.1 | unknown key `beta`
""",
    "grpo": """
entropy_coef: -0.1 | must be at least 0
use_adaptive_entropy: true; entropy_coef_min: -1 | must be at least 0
use_adaptive_entropy: true; entropy_coef_delta: 0 | must be above 0
use_adaptive_entropy: true; entropy_target: -1 | must be above 0
use_adaptive_entropy: true; entropy_coef_min: 2 | is 2, above `entropy_coef_max`, which is 1.0
beta: -0.1 | must be at least 0
vllm_importance_sampling_cap: -1 | must be above 0
generation_kwargs: {typical: 0.9} | unknown key `typical`, did you mean `typical_p`?
generation_kwargs: {temperature: 0.5} | `temperature` would take the place of the key `temperature`
generation_kwargs: {max_new_tokens: 4} | would take the place of the key `max_completion_length`
generation_kwargs: {do_sample: false} | makes all responses to a prompt alike
generation_kwargs: typical_p=0.9 | is text; write a mapping
transformers_continuous_batching_config: {pages: 2} | unknown key `pages`, did you mean `page_size`?
use_transformers_continuous_batching: true | `use_transformers_continuous_batching` needs a GPU; leave it out
use_transformers_continuous_batching: true; bf16: false | needs a GPU
use_transformers_paged: true | `use_transformers_paged` needs a GPU
label_smoothing_factor: 0.1 | has no effect on this stage's loss
train_sampling_strategy: sequential | has no effect: prompts are ordered by rollouts
eval_accumulation_steps: 4 | has no effect: evaluations here keep no predictions
num_iterations: 0 | must be at least 1
max_completion_length: null | is null, so a response might never end
num_generations_eval: 4 | has nothing to evaluate on
loss_type: cispo | epsilon_high: 0.2 is the greatest ratio of cispo
loss_type: cispo; epsilon_high: 0.3 | epsilon_high: 0.3 is the greatest ratio of cispo
multi_objective_aggregation: normalize_then_sum; scale_rewards: batch | has no effect with `multi_objective_aggregation
num_generations: 0 | must be at least 1
vllm_importance_sampling_clip_max: -1 | must be above 0
steps_per_generation: 0 | must be at least 1
steps_per_generation: 2; generation_batch_size: 16 | both say how large a rollout is
epsilon: -1 | must be at least 0
epsilon_high: -1 | must be at least 0
delta: 1.1 | must lie above 1 + epsilon
min_p: 2 | must lie from 0 to 1
repetition_penalty: 0 | must be above 0
top_entropy_quantile: 2 | must lie from 0 to 1
top_p: 0 | must lie from above 0 to 1
temperature: 0 | must be above 0
loss_type: ppo | choose from grpo, dapo
importance_sampling_level: word | choose from token, sequence
scale_rewards: always | choose from group, batch, none
cache_implementation: nix | choose from static
sync_ref_model: true | has no effect without `beta`
use_bias_correction_kl: true | has no effect without `beta`
sapo_temperature_pos: 2 | has no effect without `loss_type: sapo`
loss_type: sapo; epsilon: 0.1 | has no effect without `loss_type: grpo`
entropy_target: 0.5 | has no effect without `use_adaptive_entropy: true`
log_unique_prompts: true | has no effect without `log_completions: true`
log_completions: true; log_completions_hub_repo: a/b | log_completions_hub_repo: no token; set HF_TOKEN
use_vllm: true | vLLM is not installed
vllm_gpu_memory_utilization: 0.5 | has no effect without `use_vllm: true`
remove_unused_columns: true | that reward functions read
reward_weights: [0.0] | are all 0
eval_datasets: {rows}; num_generations: 6; per_device_train_batch_size: 6 | 8 × 1 processes is no multiple of 6 responses
test_split_size: 2; num_generations_eval: 3 | is no multiple of 3 responses to a prompt
auto_find_batch_size: true | smaller batches compare other answers
""",
    "kto": """
data_seed: 3 | has no effect: rows are taken in the order that `seed` gave them
label_smoothing_factor: 0.1 | has no effect on this stage's loss; leave it out
auto_find_batch_size: true | smaller batches compare other answers
desirable_weight: -1 | must be at least 0
desirable_weight: 0; undesirable_weight: 0 | are both 0
loss_type: sigmoid | choose from kto
ref_model_mixup_alpha: 0.5 | has no effect without `sync_ref_model: true`
per_device_train_batch_size: 1 | KTO compares the answers of a batch with one another
train_sampling_strategy: random | KTO pairs neighbours
""",
    "ppo": """
value_learning_rate: -1 | must be above 0
value_warmup_rollouts: 5; max_steps: 20 | the policy would learn nothing
missing_eos_penalty: -1 | must be at least 0
stop_strings: [""] | an empty string ends every response
top_p: 0 | must lie from above 0 to 1
reward_weights: [0.0] | are all 0
logprob_chunk_size: 0 | must be at least 1
remove_unused_columns: true | that reward functions read
reward_model_name_or_path: {policy} | is a language model
reward_model_name_or_path: outputs/none/reward | does not exist
~reward_model_name_or_path | reward_model_name_or_path: is missing
model_name_or_path: {reward} | is a reward model
reward_functions: length | names no function
reward_functions: ["nix:length"] | there is no module nix
reward_functions: ["json:length"] | holds no length
reward_functions: ["{tmp}/x.py:f"] | names no function
reward_model_name_or_path: {rows} | is a file
reward_functions: [json:dumps]; reward_weights: [1.0] | 1 weights for 2 rewards
kl_estimator: k9 | choose from k1
top_p: 1.5 | must lie from above 0 to 1
top_k: -1 | must be at least 0
num_ppo_epochs: 0 | must be at least 1
max_completion_length: 0 | must be at least 1
init_kl_coef: 0.2 | use `kl_coef`
response_length: 53 | use `max_completion_length`
stop_token: eos | name others in `stop_strings`
ppo_epochs: 4 | use `num_ppo_epochs`
vllm_server_port: 70000 | must lie from 0 to 65535
overlong_prompts: cut | choose from error
kl_horizon: 5000 | has no effect without `kl_target`
missing_eos_mode: replace | has no effect without `missing_eos_penalty`
vllm_server_port: 8001 | has no effect without `use_vllm: true`
use_vllm: true; vllm_server_port: 8001 | has no effect with `vllm_mode: colocate`
use_vllm: true; vllm_mode: server; vllm_max_model_length: 99 | has no effect with `vllm_mode: server`
~reward_model_name_or_path; reward_functions: a:b; reward_model_dtype: bfloat16 | without `reward_model_name_or_path`
torch_compile: true; load_in_4bit: true; use_peft: true | torch_compile: does not work with quantised weights
torch_compile_backend: onnxrt | is not one of inductor, aot_eager, eager
torch_compile_mode: max-autotune | records a CUDA graph for each length
value_model: shared; value_model_name_or_path: {reward} | has no effect with `value_model: shared`
""",
    "pretrain": """
max_length: 1 | must be at least 2
activation_checkpointing_kwargs: {use_reentrant: true} | has no effect without `activation_checkpointing: true`
gradient_checkpointing_kwargs: {use_reentrant: true} | has no effect without `activation_checkpointing: true`
bf16_full_eval: true | would round the weights that are saved after the last evaluation
greater_is_better: true | decides nothing; set `load_best_model_at_end
eval_do_concat_batches: false | has no effect: evaluations here keep no predictions
fused_lm_head: true; label_smoothing_factor: 0.1 | takes the place of the loss that `label_smoothing_factor` changes
use_liger_kernel: true; liger_kernel_config: {cross_entropy: true} | needs `fused_linear_cross_entropy: false`
fused_lm_head: true; use_liger_kernel: true | takes the place of the loss that `use_liger_kernel` changes
optimizer: muon; optim: sgd | has no effect without `optimizer: adamw`
model_config: {model_type: llama, hidden_size: 33, num_attention_heads: 2}; ~model_name_or_path | not a multiple of
model_config: {model_type: llama, hidden_size: 32, num_attention_heads: 0}; ~model_name_or_path | must be at least 1
model_config: {model_type: llama, num_attention_heads: 4, num_key_value_heads: 3}; ~model_name_or_path | not a mult
model_config: {model_type: llama, num_hidden_layers: -1}; ~model_name_or_path | must be at least 1
model_config: llama; ~model_name_or_path | must be dict
model_config: {model_type: llama} | give one of the two
model_config: {model_type: llama}; ~model_name_or_path; ~tokenizer_name_or_path | tokenizer_name_or_path: is missing
model_config: {model_type: llama}; ~model_name_or_path; dtype: bfloat16 | has no effect on a fresh model
model_config: {model_type: llama}; ~model_name_or_path; model_revision: abc | has no effect on a fresh model
use_peft: true | pretraining trains all weights
load_in_4bit: true | quantised weights cannot be trained; leave it out
optimizer: [muon] | give one of adamw, muon
optimizer: sgd | choose from adamw, muon
muon_learning_rate: 0 | must be above 0
muon_learning_rate: 0.01 | has no effect without `optimizer: muon`
max_length: 0 | must be at least 2
train_sampling_strategy: group_by_length | has no effect
max_epochs: 0 | must be above 0
phases: [0.5, 0.6] | not parts of the steps
datasets: [{path: tinytown, weight: [1, -1]}] | must be at least 0
""",
    "sample": """
temperature: 0; top_p: 0.9 | has no effect with `temperature: 0`
top_p: 0 | must lie from above 0 to 1
test_split_size: 0.5 | has no effect here
eval_datasets: [{path: {rows}}] | has no effect here
output_dir: ~nobody.x/out | there is no user 'nobody.x'
per_device_batch_size: 0 | must be at least 1
num_samples: 0 | must be at least 1
num_samples: 2.5 | it must be int
max_new_tokens: 0 | must be at least 1
temperature: -1 | must be at least 0
top_p: 0 - 1 | it must be float
top_p: -0.1 | must lie from above 0 to 1
top_k: -5 | must be at least 0
seed: -1 | must lie from 0 to
output_format: [jsonl] | give one of jsonl
output_format: xml | choose from jsonl
use_peft: true | has no effect here
model_name_or_path: {reward} | is a reward model
eval_strategy: steps | unknown key
""",
    "rank": """
gold_tie_width: 0.1 | has no effect without `rule`
annotator: simulated; ~rankings_file; rule: json:loads; rater_noise: 0.1; overlap: 0.5 | has no effect with one rater
test_split_size: 0.1 | has no effect here
judge_url: http://127.0.0.1:1/v1 | has no effect with `annotator: file`, only with llm
judge_model: gpt | has no effect with `annotator: file`, only with llm
annotator: page; ~rankings_file; judge_price: [1, 2] | has no effect with `annotator: page`, only with llm
annotator: page; ~rankings_file; guidelines: {latin} | is not UTF-8 text
annotator: page; ~rankings_file; guidelines: {empty} | is empty
annotator: page; ~rankings_file; allowed_hosts: ["*"] | is not a host name
annotator: page; ~rankings_file; allowed_hosts: ["https://a.org/x"] | is not a host name
annotator: page; ~rankings_file; database: $HOME/a.sqlite | nothing is filled in
overlap: 7 | must lie from 0 to 1
overlap: -0.5 | must lie from 0 to 1
test_share: 1.0 | must lie from 0 to below 1
annotator: robot | choose from file
annotator: simulated; ~rankings_file | rule: is missing
annotator: llm; ~rankings_file | judge_url: is missing
~rankings_file | rankings_file: is missing
rankings_file: nix.csv | nix.csv does not exist
rater_noise: [-0.1] | must be at least 0
rater_noise: [a] | must be float
overlap_annotators: 0 | must be at least 1
port: 99999 | must lie from 0 to 65535
order: uncertain | reward_model_name_or_path: is missing
judge_url: localhost/v1 | is not an address
users_file: nix.txt | nix.txt does not exist
rankings_file: {policy} | is a folder; name a file
guidelines: {policy} | is a folder; name a file
guidelines: nix.md | nix.md does not exist
pair_format: both | choose from explicit
annotator: simulated; rule: llmrecipes.evaluation.rules:score | rankings_file: has no effect with `annotator: simulated`
min_agreement: 0.6 | has no effect with `annotator: file`, only with page or llm
allowed_hosts: [rank.example.org] | has no effect with `annotator: file`, only with page
reward_model_name_or_path: {reward} | has no effect without `order: uncertain`
rule: gold_score | names no function
round: 0 | must be at least 1
""",
    "evaluate": """
model_revision: v1 | all of `models` are folders
num_samples: 3; sample_temperature: 0 | has no effect with `sample_temperature: 0`
judge_url: http://127.0.0.1:1/v1 | has no effect without `judge: llm`
judge_concurrency: 2 | has no effect without `judge: llm`
judge: llm; judge_url: http://a/v1; judge_model: m; judge_pairs: false; judge_guidelines: {file} | with `judge_pairs: false`
judge_guidelines: {file} | has no effect without `judge: llm`
judge: llm; judge_url: http://a/v1; judge_model: m; judge_pairs: true | there is no other model than the baseline
judge: llm; judge_url: http://a/v1; judge_model: m; judge_guidelines: {file}; models: {a: {policy}} | 'sft' is not among
test_split_size: 0.5 | has no effect here
num_samples: -1 | must be at least 1
models: {a: null} | neither a folder nor a Hub id
models: {a: 3} | neither a folder nor a Hub id
models: {a: outputs/none} | does not exist
models: {"": {policy}} | '' is not a name
models: {../a: {policy}} | is not a name; give one without a slash
models: [a] | must be dict
models: {} | models: is missing
~datasets | nothing to measure them on
~models | models: is missing
baseline: base | is not one of models
task_limit: 0 | must be at least 1
kl_prompts: -1 | must be at least 0
models: {a: {rows}} | is a file
judge: "nix:judge" | there is no module nix
judge: gold | names no function
judge: llm | judge_url: is missing
judge_concurrency: 0 | must be at least 1
sample_temperature: -1 | must be at least 0
blimp_path: nix | nix does not exist
reward_model_name_or_path: {policy} | is a language model
model_name_or_path: {policy} | is not read here
per_device_eval_batch_size: 0 | must be at least 1
""",
    "tokenizer": """
vocab_size: 0 | must be at least 1
vocab_size: 258 | vocab_size: 258 is below 259 (256 bytes and the special tokens)
datasets: [{path: tinytown, name: mars}] | tinytown: there is no part 'mars'; choose one of commoncrawl
datasets: tinytown | tinytown: `name` is missing; choose one of
datasets: [{path: tinytown, name: c4, split: dev}] | tinytown: c4 has no split 'dev'; choose one of train, test
datasets: tinytwon | 'tinytwon' is not a world, did you mean `tinytown`?
datasets: {file} | unknown kind of file; give one of .jsonl
datasets: null | `datasets` is null, which is not a list
output_dir: {foreign} | holds files that no run wrote; choose another output_dir or --force
output_dir: {another} | holds another run (`seed` was 1, is not given); --force overwrites it
vocab_size: many | it must be int
max_length: 0 | must be at least 1
seed: -1 | must lie from 0 to
~output_dir | output_dir: is missing
~datasets | datasets: is missing
""",
}


def rows():
    for stage, text in STAGES.items():
        for line in filter(None, text.splitlines()):
            lines, _, part = line.rpartition(" | ")
            yield stage, lines.split("; "), part


RIGHT = {
    "output_dir": "{tmp}/out",
    "datasets": "[{path: {rows}}]",
    "model_name_or_path": "{policy}",
    "tokenizer_name_or_path": "{policy}",
    "reward_model_name_or_path": "{reward}",
    "rankings_file": "{rows}",
    "models": "{sft: {policy}}",
}
OF_STAGE = {
    "rank": {"output_dir", "datasets", "rankings_file"},
    "evaluate": {"output_dir", "datasets", "models"},
    "tokenizer": {"output_dir", "datasets"},
    **dict.fromkeys(("ppo", "grpo"), {*RIGHT} - {"rankings_file", "models"}),
}


def make_inputs(tmp: Path) -> dict[str, Path]:
    """The paths that configs name, below `tmp`."""
    (tmp / "rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (tmp / "empty.jsonl").touch()
    (tmp / "a_file").write_text("x")
    (tmp / "sharded.json").write_text('{"cpu_offlod": true}')
    (tmp / "latin.md").write_bytes(b"\xff\xfe\x00")
    (tmp / "broken.jinja").write_text("{% for message in messages %}\n{{ message.content }\n{% endfor %}")
    (tmp / "fixed.jinja").write_text("Hello {{ name }}")
    (tmp / "marked.jinja").write_text("\ufeff{{ messages }}")
    for name in ("foreign", "another", "scores"):
        (tmp / name).mkdir()
    (tmp / "scores" / "adapter_config.json").write_text('{"peft_type": "LORA", "task_type": "SEQ_CLS"}')
    (tmp / "foreign" / "letter.txt").write_text("Dear Ann")
    run = {"stage": "tokenizer", "status": "finished", "fingerprint": "1", "given": {"datasets": "rows.jsonl", "seed": 1}}
    (tmp / "another" / "manifest.json").write_text(json.dumps(run))
    models = {
        "policy": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        "reward": {"architectures": ["LlamaForSequenceClassification"], "model_type": "llama", "id2label": {"0": "x"}},
        "gpt2": {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_positions": 1024},
        "huge": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 10**9},
    }
    for name, config in models.items():
        (tmp / name).mkdir()
        (tmp / name / "config.json").write_text(json.dumps(config))
        tokenizer = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "<|im_end|>"}, {"content": "<|pad|>"}]}
        (tmp / name / "tokenizer.json").write_text(json.dumps(tokenizer))
    return {
        "tmp": tmp,
        "rows": tmp / "rows.jsonl",
        "empty": tmp / "empty.jsonl",
        "file": tmp / "a_file",
        "latin": tmp / "latin.md",
    } | {name: tmp / name for name in (*models, "foreign", "another", "scores")}


def write_config(tmp_path, stage, lines, paths):
    """A config that is right but for `lines`."""
    keys = OF_STAGE.get(stage, {"output_dir", "datasets", "model_name_or_path", "tokenizer_name_or_path"})
    changed = {line.removeprefix("~").partition(":")[0] for line in lines}
    right = [f"{key}: {RIGHT[key]}" for key in RIGHT if key in keys - changed]
    text = "\n".join([*(line for line in lines if not line.startswith("~")), *right, ""])
    for name, path in paths.items():
        text = text.replace(f"{{{name}}}", str(path))
    (tmp_path / f"{stage}.yaml").write_text(text)
    return tmp_path / f"{stage}.yaml"
