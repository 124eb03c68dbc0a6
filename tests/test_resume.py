"""Training cut off at any place and started again ends as if nothing had happened; what is damaged is never continued."""

import os
import shutil
import signal
from contextlib import nullcontext
from multiprocessing import active_children
from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.utils.data import BatchSampler, DataLoader
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback, TrainingArguments

from llmrecipes.checkpoints import find_damage, step_folders
from llmrecipes.config import InputError, RunArguments
from llmrecipes.locks import release_folder
from llmrecipes.pacing import NotFinite, keep_gpu_busy, stop_where_not_finite
from llmrecipes.ppo.prompts import RolloutSampler
from llmrecipes.pretraining import PretrainTrainer
from llmrecipes.resume import CheckpointKeeper, run_training
from llmrecipes.run import check_run, start_run
from llmrecipes.signals import SIGNALS, Interrupted, received
from llmrecipes.tokens.blocks import collate_blocks

TIMES = ("runtime", "per_second", "step_time")


class Killed(BaseException):
    """What no handler of ours catches, as nothing catches SIGKILL."""


class At(TrainerCallback):
    """Does `what` when the event comes for the step."""

    def __init__(self, event: str, step: int, what):
        setattr(self, event, lambda args, state, control, **kwargs: what() if state.global_step == step else None)


def prepare(folder, *callbacks, run=None, rows=20, attention_dropout=0.2, kind="llama", adapt=None, **changes):
    """A trainer of a tiny model with dropout, and its run in `folder`."""
    settings = {"max_steps": 7, "save_steps": 2, "logging_steps": 3, "save_total_limit": 2, "learning_rate": 1e-2}
    settings |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "lr_scheduler_type": "constant"}
    settings |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "eval_strategy": "steps", "eval_steps": 3}
    args = TrainingArguments(output_dir=str(folder), **(settings | changes))
    state = check_run("pretrain", run or RunArguments(), args, (args,))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2}
    config = AutoConfig.for_model(kind, vocab_size=32, attention_dropout=attention_dropout, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    model = adapt(model) if adapt else model
    rows = Dataset.from_dict({"input_ids": torch.randint(32, (rows, 8)).tolist()}).with_format("torch")
    trainer = PretrainTrainer(
        model=model, args=args, train_dataset=rows, eval_dataset=rows.select(range(2)), data_collator=collate_blocks
    )
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer, state


def train(folder, *callbacks, **changes):
    trainer, state = prepare(folder, *callbacks, **changes)
    start_run(state)
    try:
        metrics = run_training(trainer, state)
    finally:
        release_folder(state.output_dir)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, signal.SIG_DFL if signum == signal.SIGTERM else signal.default_int_handler)
        received.clear()
    return trainer, metrics


def without_times(entries):
    return [{k: v for k, v in entry.items() if not k.endswith(TIMES)} for entry in entries]


def assert_same(one, other):
    (trainer, metrics), (again, metrics_again) = one, other
    for (name, a), b in zip(trainer.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert without_times(trainer.state.log_history) == without_times(again.state.log_history)
    assert without_times([metrics]) == without_times([metrics_again])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole") / "o")


def kill():
    raise Killed


@pytest.mark.parametrize(("event", "step"), [("on_step_end", 3), ("on_evaluate", 6), ("on_save", 4), ("on_train_end", 7)])
def test_killed_and_started_again_ends_equal(tmp_path, whole, event, step):
    with pytest.raises(Killed):
        train(tmp_path / "o", At(event, step, kill))
    assert_same(train(tmp_path / "o"), whole)


def test_held_out_rows_of_less_than_a_batch_are_not_dropped_in_silence(tmp_path):
    with pytest.raises(InputError, match="dataloader_drop_last: 2 held-out rows are fewer than a batch of 8"):
        train(tmp_path / "o", dataloader_drop_last=True)


def test_workers_outlive_what_ends_a_run_which_finishes_its_step_and_continues_exactly(tmp_path, whole, monkeypatch):
    """Slurm and Ctrl-C signal the whole group. PyTorch would end the run with a traceback once a worker is gone."""
    main, collate = os.getpid(), collate_blocks

    def collate_under_fire(rows):
        if os.getpid() != main:
            for signum in SIGNALS:
                os.kill(os.getpid(), signum)
        return collate(rows)

    def end_all():
        for worker in active_children():
            os.kill(worker.pid, signal.SIGINT)
        os.kill(main, signal.SIGTERM)

    monkeypatch.setitem(globals(), "collate_blocks", collate_under_fire)
    with pytest.raises(Interrupted):
        train(tmp_path / "o", At("on_substep_end", 3, end_all), dataloader_num_workers=1)
    assert not active_children()
    assert step_folders(tmp_path / "o")[0].name == "checkpoint-4", "what the workers had made was used"
    assert_same(train(tmp_path / "o", dataloader_num_workers=1), whole)


@pytest.mark.parametrize("kind", ["gpt_neox", "mixtral"])
def test_weights_saved_under_other_names_than_the_models_own_are_continued_too(tmp_path, kind):
    with pytest.raises(Killed):
        train(tmp_path / "o", At("on_step_end", 3, kill), kind=kind)
    assert_same(train(tmp_path / "o", kind=kind), train(tmp_path / "whole", kind=kind))


def test_the_best_model_is_loaded_under_its_saved_names(tmp_path):
    keys = {"load_best_model_at_end": True, "eval_steps": 2, "max_steps": 6, "greater_is_better": True}
    trainer, _ = train(tmp_path / "o", kind="gpt_neox", **keys)
    assert trainer.state.best_global_step == 2
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric)


def test_a_metric_that_is_not_measured_is_one_line(tmp_path):
    keys = {"load_best_model_at_end": True, "eval_steps": 2, "max_steps": 6, "metric_for_best_model": "bleu"}
    with pytest.raises(InputError, match="metric_for_best_model: bleu is not measured; choose from eval_loss$"):
        train(tmp_path / "o", **keys)


def test_adapters_in_bfloat16_as_trl_trains_them_on_quantised_weights_stay_so(tmp_path):
    def adapt(model):
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16() if parameter.requires_grad else parameter.data
        return model

    keys = {"adapt": adapt, "load_best_model_at_end": True, "eval_steps": 2}
    with pytest.raises(Killed):
        train(tmp_path / "o", At("on_step_end", 3, kill), **keys)
    one, other = train(tmp_path / "o", **keys), train(tmp_path / "whole", **keys)
    assert_same(one, other)
    kinds = [{p.dtype for p in trainer.model.parameters() if p.requires_grad} for trainer, _ in (one, other)]
    assert kinds == [{torch.bfloat16}] * 2


def test_evaluating_changes_nothing_that_is_learned(tmp_path, whole):  # the model has dropout
    trainer, _ = train(tmp_path / "o", eval_strategy="steps", eval_steps=1, eval_on_start=True)
    assert sum("eval_loss" in logs for logs in trainer.state.log_history) == 8
    for (name, a), b in zip(trainer.model.named_parameters(), whole[0].model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_nothing_trains_once_all_steps_are_done(tmp_path, whole):
    for _ in range(2):
        with pytest.raises(Killed):
            train(tmp_path / "o", At("on_train_end", 7, kill))
    trainer, state = prepare(tmp_path / "o")
    trainer.training_step = kill
    start_run(state)
    assert_same((trainer, run_training(trainer, state)), whole)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("event", "step", "saved"), [("on_substep_end", 3, 3), ("on_optimizer_step", 3, 4), ("on_step_end", 7, 7)]
)
def test_signal_saves_a_checkpoint_from_which_the_run_ends_equal(tmp_path, whole, event, step, saved, signum):
    with pytest.raises(Interrupted) as caught:
        train(tmp_path / "o", At(event, step, lambda: os.kill(os.getpid(), signum)))
    assert caught.value.signum == signum
    newest = step_folders(tmp_path / "o")[0]
    assert newest.name == f"checkpoint-{saved}" and find_damage(newest) == ""
    assert_same(train(tmp_path / "o"), whole)


def test_the_libraries_own_way_with_sigterm_does_not_end_a_run_as_finished(tmp_path, whole):
    with pytest.raises(Interrupted):
        train(tmp_path / "o", At("on_step_end", 3, lambda: os.kill(os.getpid(), signal.SIGTERM)), enable_jit_checkpoint=True)
    assert step_folders(tmp_path / "o")[0].name == "checkpoint-3"
    assert_same(train(tmp_path / "o", enable_jit_checkpoint=True), whole)


def test_checkpoints_are_limited_whole_and_hold_no_pickled_arguments(tmp_path, whole):
    folders = step_folders(tmp_path.parent / whole[0].args.output_dir)
    assert [folder.name for folder in folders] == ["checkpoint-7", "checkpoint-6"]
    assert not [find_damage(folder) for folder in folders if find_damage(folder)]
    assert not [file for folder in folders for file in folder.rglob("training_args.bin")]


def test_damaged_checkpoint_gives_way_to_the_one_before_or_a_line(tmp_path, whole, capsys):
    with pytest.raises(Killed):
        train(tmp_path / "o", At("on_step_end", 5, kill))
    newest, before = step_folders(tmp_path / "o")
    data = bytearray((newest / "optimizer.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "optimizer.pt").write_bytes(data)
    _, state = prepare(tmp_path / "o")
    assert state.resume_from_checkpoint == str(before)
    assert any("optimizer.pt has been altered; the checkpoint before it is used" in note for note in state.notes)
    (before / "rng_state.pth").unlink()
    with pytest.raises(InputError, match="checkpoint-4: optimizer.pt has been altered, and there is no whole checkpoint"):
        prepare(tmp_path / "o")


class Writing(TrainerCallback):
    """Appends a row of each step to the run's watch.jsonl."""

    def on_step_end(self, args, state, control, **kwargs):
        with open(os.path.join(args.output_dir, "watch.jsonl"), "a") as file:
            file.write(f'{{"step": {state.global_step}, "text": "é"}}\n')


@pytest.fixture(scope="module")
def killed_writing(tmp_path_factory):
    """The folder of a run that was killed after a row of step 5; its last checkpoint is of step 4."""
    folder = tmp_path_factory.mktemp("killed_writing") / "o"
    with pytest.raises(Killed):
        train(folder, Writing(), At("on_step_end", 5, kill))
    return folder


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda lines: lines, None),
        (lambda lines: [*lines, b'{"step": 5'], None),  # a kill in the middle of a later row
        (lambda lines: None, "has 0 of the 4 rows"),
        (lambda lines: [], "has 0 of the 4 rows"),
        (lambda lines: lines[1:], "has 3 of the 4 rows"),
        (lambda lines: [*lines[:2], lines[2].replace(b"\xc3", b"\xff"), *lines[3:]], "has 3 of the 4 rows"),
        (lambda lines: [lines[0].replace(b"\xc3\xa9", b"e"), *lines[1:]], "does not have the 4 rows as"),
        (lambda lines: [lines[0], *lines], "does not have the 4 rows as"),
    ],
)
def test_rows_that_are_lost_beside_a_good_checkpoint_are_told(tmp_path, whole, killed_writing, damage, told, capsys):
    shutil.copytree(killed_writing, tmp_path / "o")
    file = tmp_path / "o" / "watch.jsonl"
    lines = damage(file.read_bytes().splitlines(keepends=True))
    file.unlink() if lines is None else file.write_bytes(b"".join(lines))
    assert_same(train(tmp_path / "o", Writing()), whole)
    line = f"{file}: {told} written up to step 4; they are not made again\n"
    assert line in capsys.readouterr().out if told else "watch.jsonl" not in capsys.readouterr().out


@pytest.mark.parametrize(("warmup", "is_told"), [(7, True), (6, False), (0.5, False)])
def test_a_warmup_as_long_as_the_epochs_is_told(tmp_path, warmup, is_told, capsys):
    changes = {"max_steps": -1, "num_train_epochs": 1.4, "lr_scheduler_type": "constant_with_warmup"}
    train(tmp_path / "o", warmup_steps=warmup, **changes)
    told = "warning: warmup_steps: 7, but the run has 7 steps: `learning_rate` is never reached\n"
    assert (told in capsys.readouterr().err) == is_told


def test_run_without_optimizer_states_cannot_continue(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path / "o", At("on_step_end", 3, kill), save_only_model=True)
    with pytest.raises(InputError, match="`save_only_model`"):
        prepare(tmp_path / "o", save_only_model=True)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_with_the_last_good_checkpoint_kept(tmp_path, what):
    trainer, state = prepare(tmp_path / "o")

    def break_down():
        parameter = next(trainer.model.parameters())
        if what == "loss":
            with torch.no_grad():
                parameter.fill_(float("nan"))
        else:
            parameter.grad.fill_(float("inf"))

    trainer.add_callback(At("on_step_begin" if what == "loss" else "on_substep_end", 3, break_down))
    start_run(state)
    with pytest.raises(InputError, match=f"step 3: the {what} is not finite; the last checkpoint .* is kept"):
        run_training(trainer, state)
    assert [folder.name for folder in step_folders(tmp_path / "o")] == ["checkpoint-2"]


@pytest.mark.parametrize("save_steps", [1, 2, 10])
def test_on_a_gpu_what_is_not_finite_is_found_later_but_before_it_is_saved(tmp_path, monkeypatch, save_steps):
    """There a step goes on before its gradient is known."""
    monkeypatch.setattr(NotFinite, "is_late", property(lambda self: True, lambda self, value: None), raising=False)
    trainer, state = prepare(tmp_path / "o", save_steps=save_steps)
    seen = []

    def break_down():
        next(trainer.model.parameters()).grad.fill_(float("inf"))

    trainer.add_callback(At("on_substep_end", 3, break_down))
    trainer.add_callback(At("on_step_end", 4, lambda: seen.append(4)))
    start_run(state)
    with pytest.raises(InputError, match="step 3: the gradient is not finite; the last checkpoint .* is kept"):
        run_training(trainer, state)
    assert seen == [4], "it did not wait"
    assert [folder.name for folder in step_folders(tmp_path / "o")] == {
        1: ["checkpoint-3", "checkpoint-2"],
        2: ["checkpoint-2"],
        10: [],
    }[save_steps]


@pytest.mark.parametrize(("precision", "found"), [("fp16", True), ("bf16", False)])
def test_in_fp16_a_loss_that_is_not_finite_stops_several_processes_too(precision, found, tmp_path):
    """The loss scaler would skip every step from then on, and the run would end as if it had learned."""
    args = SimpleNamespace(device=torch.device("cuda"), world_size=2, output_dir=str(tmp_path))
    trainer = SimpleNamespace(args=args, accelerator=SimpleNamespace(mixed_precision=precision))
    trainer.state, trainer.training_step = SimpleNamespace(global_step=3), lambda: torch.tensor(float("nan"))
    trainer._get_grad_norm = trainer.save_model = trainer.evaluate = None
    stop_where_not_finite(trainer)
    with pytest.raises(InputError, match="step 3: the loss is not finite") if found else nullcontext():
        trainer.training_step()


@pytest.mark.parametrize("reader", ["evaluate", "_generate_and_score_completions"])
def test_weights_that_are_not_finite_are_neither_evaluated_nor_drawn_from_on_a_gpu(tmp_path, reader):
    """There nobody has looked at the last step's gradient yet: the evaluation would be logged as NaN, and drawing from NaN
    (GRPO's next rollout) kills the CUDA context."""
    args = SimpleNamespace(device=torch.device("cuda"), world_size=1, output_dir=str(tmp_path))
    trainer = SimpleNamespace(args=args, accelerator=SimpleNamespace(mixed_precision="bf16"))
    trainer.state, trainer._get_grad_norm = SimpleNamespace(global_step=3), lambda: torch.tensor(float("inf"))
    trainer.training_step = trainer.save_model = trainer.evaluate = None
    setattr(trainer, reader, lambda: pytest.fail("read"))
    stop_where_not_finite(trainer)
    trainer._get_grad_norm()
    with pytest.raises(InputError, match="step 3: the gradient is not finite"):
        getattr(trainer, reader)()


def test_a_gpu_is_kept_busy_unless_the_config_says_how():
    def paced(given, **changes):
        args = SimpleNamespace(
            device=torch.device("cuda"), dataloader_pin_memory=True, fp16=False, logging_nan_inf_filter=True, **{}
        )
        vars(args).update(changes)
        loader, callbacks = SimpleNamespace(non_blocking=False), []
        accelerator = SimpleNamespace(dataloader_config=loader)
        keep_gpu_busy(SimpleNamespace(args=args, accelerator=accelerator, add_callback=callbacks.append), given)
        return loader.non_blocking, args.logging_nan_inf_filter, len(callbacks)

    assert paced({}) == (True, False, 1)
    assert paced({"accelerator_config": {"non_blocking": False}}) == (False, False, 1)
    assert paced({}, fp16=True) == (True, True, 1), "there Trainer's filter still hides what the loss scaler skips"
    assert paced({}, device=torch.device("cpu")) == (False, True, 0)


@pytest.mark.parametrize(("micro_batch", "steps"), [(4, 1), (1, 4)])
def test_another_micro_batch_at_the_same_rows_in_a_step_continues_up_to_rounding(tmp_path, micro_batch, steps):
    whole = train(tmp_path / "whole", attention_dropout=0.0)
    with pytest.raises(Killed):
        train(tmp_path / "o", At("on_step_end", 5, kill), attention_dropout=0.0)
    cut = {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": steps}
    again = train(tmp_path / "o", attention_dropout=0.0, **cut)
    for a, b in zip(whole[0].model.parameters(), again[0].model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert again[1]["train_loss"] == pytest.approx(whole[1]["train_loss"], rel=1e-5)


def test_rows_that_an_epoch_would_cut_up_otherwise_are_refused(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path / "o", At("on_step_end", 3, kill), rows=22)
    with pytest.raises(InputError, match="22 rows are not a multiple of the 4 of a step"):
        train(tmp_path / "o", rows=22, per_device_train_batch_size=4, gradient_accumulation_steps=1)


def test_folder_that_has_been_moved_continues(tmp_path, whole):
    with pytest.raises(Killed):
        train(tmp_path / "o", At("on_step_end", 5, kill))
    (tmp_path / "o").rename(tmp_path / "elsewhere")
    assert_same(train(tmp_path / "elsewhere"), whole)


def test_a_checkpoint_that_was_moved_and_linked_to_continues_and_stays_there(tmp_path, whole):
    with pytest.raises(Killed):
        train(tmp_path / "o", At("on_step_end", 5, kill))
    moved = step_folders(tmp_path / "o")[0].rename(tmp_path / "moved")
    (tmp_path / "o" / "checkpoint-4").symlink_to(moved)
    assert_same(train(tmp_path / "o"), whole)
    assert [folder.name for folder in step_folders(tmp_path / "o")] == ["checkpoint-7", "checkpoint-6"]
    assert find_damage(moved) == ""


def test_changed_save_steps_take_effect_in_a_run_that_continues(tmp_path, whole):
    with pytest.raises(Killed):
        train(tmp_path / "o", At("on_step_end", 3, kill))
    assert_same(train(tmp_path / "o", save_steps=5), whole)
    assert [folder.name for folder in step_folders(tmp_path / "o")] == ["checkpoint-7", "checkpoint-5"]


def test_several_processes_continue_in_the_order_of_their_epoch():
    sampler = RolloutSampler(num_prompts=16, rollout_size=4, repeats=1, shuffle=True, seed=0)
    rows = DataLoader(range(16), batch_sampler=BatchSampler(sampler, 2, drop_last=True))
    loader = prepare_data_loader(rows, num_processes=2, process_index=1, put_on_device=False)
    keeper = object.__new__(CheckpointKeeper)
    keeper.run, keeper.is_first_epoch = SimpleNamespace(resume_from_checkpoint="checkpoint-9"), True
    keeper.on_epoch_begin(None, SimpleNamespace(epoch=3.5), None, train_dataloader=loader)
    sampler_then = RolloutSampler(num_prompts=16, rollout_size=4, repeats=1, shuffle=True, seed=0)
    sampler_then.set_epoch(3)
    rest = skip_first_batches(loader, 2)
    rest.set_epoch(3)  # as Trainer does
    order = list(sampler_then)
    assert [batch.tolist() for batch in rest] == [order[10:12], order[14:16]]
