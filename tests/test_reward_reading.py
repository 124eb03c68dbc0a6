"""Every reader of a reward model (training, health check, evaluation, watch, ranking by uncertainty, PPO) reads the same
tokens at the same place, whatever the pad token, a BOS token, or an answer that was cut."""

from types import SimpleNamespace

import ppo_toys as toys
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2ForSequenceClassification
from trl import RewardConfig

from llmrecipes.config import InputError, ModelArguments
from llmrecipes.evaluation.behaviours import judge_answers
from llmrecipes.evaluation.watch_win_rate import RewardComparison
from llmrecipes.formats import rankings_to_pairs
from llmrecipes.ppo.rewards import Rewards
from llmrecipes.reward_models.health import HealthArguments, check_health, check_saved_model
from llmrecipes.reward_models.scoring import RewardScorer, check_reward_path, reward_model_tokens, uncertainty
from llmrecipes.reward_models.trainer import RewardTrainer, pair_columns

TEXT = ("w1 w2 ", ["w3 w4", "w5 w6 w7"])
CHAT = ([{"role": "user", "content": "w1 w2"}], ["w3 w4", "w5 w6 w7"])
ARCHITECTURES = {
    "llama": lambda: toys.reward_model(initializer_range=0.5),
    "gpt2": lambda: GPT2ForSequenceClassification(
        GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, num_labels=1, initializer_range=0.5)
    ),
}


def tokenizer(pad_is_eos: bool, bos: bool):
    made = toys.tokenizer(pad_is_eos)
    if bos:  # as Llama's and Gemma's
        made.bos_token = "<s>"
        single = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        made.backend_tokenizer.post_processor = single
        made.chat_template = "<s> " + toys.CHAT
    return made


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((kind, pad, bos), marks=[pytest.mark.long] * ((kind == "llama") != (pad == bos)))
        for kind in ARCHITECTURES
        for pad in (False, True)
        for bos in (False, True)
    ],
    ids=str,
)
def folder(request, tmp_path_factory):
    kind, pad_is_eos, bos = request.param
    path, own = tmp_path_factory.mktemp("reward"), tokenizer(pad_is_eos, bos)
    torch.manual_seed(1)
    model = ARCHITECTURES[kind]()
    model.config.pad_token_id = own.pad_token_id
    model.save_pretrained(path)
    own.save_pretrained(path)
    return path, own


def sampled(own, prompt, texts: list[str], finished: list[bool]) -> tuple:
    """(prompt's ids, answers' ids) as a policy with the same tokenizer samples them."""
    prompt_ids = (
        own(prompt)["input_ids"]
        if isinstance(prompt, str)
        else own.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    )
    answers = [own(text, add_special_tokens=False)["input_ids"] for text in texts]
    return prompt_ids, [ids + [toys.EOS] * whole for ids, whole in zip(answers, finished, strict=True)]


def test_variables_are_set_in_the_new_template_of_a_reward_model(tmp_path):
    own, path = toys.tokenizer(), tmp_path / "new.jinja"
    path.write_text("{% if head is defined %}{{ head }} {% endif %}" + own.chat_template)
    answer = lambda text: [{"role": "assistant", "content": text}]
    rows = Dataset.from_list([{"prompt": CHAT[0], "chosen": answer(CHAT[1][0]), "rejected": answer(CHAT[1][1])}] * 2)
    args = RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", chat_template_path=str(path))
    given = {"processing_class": own, "template_kwargs": {"head": "w9"}}
    made = RewardTrainer(model=toys.reward_model(), args=args, train_dataset=rows, eval_dataset=rows, **given)
    for part in (made.train_dataset, made.eval_dataset):
        assert own.decode(part[0]["chosen_ids"]).split()[0] == "w9"
    assert own.chat_template.count('"w9"') == 1


def training(path, own, rows: list[dict], tmp_path, **kwargs) -> list[float]:
    """What the loss of a reward stage sees: the logits of its training batch."""
    args = RewardConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=64, disable_dropout=True
    )
    model = AutoModelForSequenceClassification.from_pretrained(path)
    trainer = RewardTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=own, **kwargs)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    logits = trainer.compute_loss(trainer.model, batch, return_outputs=True)[1].logits
    return logits.squeeze(-1).tolist()


@pytest.mark.parametrize("finished", [(True, True), (False, True)], ids=["whole", "cut"])
@pytest.mark.parametrize(("prompt", "texts"), [TEXT, CHAT], ids=["text", "chat"])
def test_all_readers_give_one_score(folder, tmp_path, prompt, texts, finished):
    path, own = folder
    judge = RewardScorer(ModelArguments(), str(path), torch.device("cpu"))
    model, rows = judge.model, [{"prompt": prompt}] * 2
    side = lambda text: text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
    pair = {"prompt": prompt, "chosen": side(texts[0]), "rejected": side(texts[1])}
    pair |= {"chosen_finished": finished[0], "rejected_finished": finished[1]}

    # By hand: the tokens of the whole, their last hidden state, the head.
    ids = [reward_model_tokens(own, prompt, text, whole) for text, whole in zip(texts, finished, strict=True)]
    with torch.no_grad():
        expected = [model.score(model.base_model(torch.tensor([row]))[0])[0, -1, 0].item() for row in ids]
    for row, whole in zip(ids, finished, strict=True):
        assert (row[-1] == toys.EOS) == whole and row.count(1) == (own.bos_token is not None)

    prompt_ids, answer_ids = sampled(own, prompt, texts, finished)
    columns = {"prompt": [prompt] * 2, "prompt_ids": [prompt_ids] * 2}
    p = torch.sigmoid(torch.tensor(expected[0] - expected[1]))
    reasons = ["stop" if whole else "length" for whole in finished]
    readers = {
        "PPO": Rewards(model, own, own, None).score(columns, answer_ids, list(finished), 2)[:, 0].tolist(),
        "evaluation": [parts["reward"] for parts in judge_answers(rows, texts, None, None, judge, 2, list(finished))],
        "watch": RewardComparison(str(path)).keep(rows, texts, list(finished), torch.device("cpu")),
        "training": training(path, own, [pair] * 2, tmp_path),
    }
    for name, scores in readers.items():
        assert scores == pytest.approx(expected, abs=1e-5), name
    unsure = uncertainty([{"prompt": prompt, "responses": texts, "finish_reasons": reasons}], ModelArguments(str(path)))
    assert unsure[0] == pytest.approx((p * (1 - p)).item(), abs=1e-5)
    health = check_health(model, own, {"test": [pair]}, HealthArguments())
    assert [health["scores"][name]["mean"] for name in ("chosen", "rejected")] == pytest.approx(expected, abs=1e-5)


def test_lora_reads_the_same_place(folder, tmp_path):
    path, own = folder
    prompt, (chosen, rejected) = TEXT
    pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", modules_to_save=["score"])
    plain, adapted = (training(path, own, [pair] * 2, tmp_path, **more) for more in ({}, {"peft_config": lora}))
    assert adapted == pytest.approx(plain, abs=1e-6)


def test_a_cut_answer_reads_otherwise_than_a_whole_one(folder):
    _, own = folder
    for prompt, texts in (TEXT, CHAT):
        whole, cut = (reward_model_tokens(own, prompt, texts[0], finished) for finished in (True, False))
        assert whole == [*cut, toys.EOS]
    assert reward_model_tokens(own, CHAT[0], "", False) == own("user w1 w2 </s> assistant")["input_ids"]


def test_pairs_of_sampled_answers_tell_which_was_cut():
    row = {"prompt": "w1", "responses": ["w2", "w3"], "ranking": [[1], [0]], "finish_reasons": ["length", "stop"]}
    pairs = rankings_to_pairs(row)
    assert (pairs[0]["chosen_finished"], pairs[0]["rejected_finished"]) == (True, False)
    assert pair_columns(Dataset.from_list(pairs)).column_names == [
        "prompt",
        "chosen",
        "rejected",
        "chosen_finished",
        "rejected_finished",
    ]
    assert "chosen_finished" not in rankings_to_pairs({k: v for k, v in row.items() if k != "finish_reasons"})[0]


def test_what_is_no_reward_model_is_refused_before_it_is_loaded(tmp_path):
    own = toys.tokenizer()
    for name, model in (("policy", toys.policy()), ("two", toys.reward_model(num_labels=2))):
        model.save_pretrained(tmp_path / name)
        own.save_pretrained(tmp_path / name)
    trusts_none = SimpleNamespace(trust_remote_code=False)
    for name, message in (("policy", "is not a reward model but LlamaForCausalLM"), ("two", "gives 2 labels")):
        source, path = ModelArguments(), str(tmp_path / name)
        sample = {"prompt": "w1", "responses": ["w2", "w3"]}
        for read in (
            lambda path=path: check_reward_path(path),
            lambda path=path, source=source: RewardScorer(source, path),
            lambda path=path, sample=sample: uncertainty([sample], ModelArguments(path)),
            lambda path=path, source=source: check_saved_model(path, {}, HealthArguments(), source, trusts_none, None),
        ):
            with pytest.raises(InputError, match=message):
                read()
    with pytest.raises(InputError, match="LlamaForCausalLM writes text and gives no score"):
        Rewards(toys.policy(), None, own, None)


def test_pairs_that_are_all_too_long_are_one_line(tmp_path):
    args = RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=3)
    rows = Dataset.from_list([{"prompt": "w1 w2 ", "chosen": "w3", "rejected": "w4 w5"}] * 2)
    with pytest.raises(InputError, match="max_length"):
        RewardTrainer(model=toys.reward_model(), args=args, train_dataset=rows, processing_class=toys.tokenizer())


def test_max_length_beyond_the_models_positions_becomes_their_number(tmp_path, capsys):
    pair = {"prompt": "w1 ", "chosen": "w3", "rejected": "w4"}
    rows = Dataset.from_list([pair | {"chosen": "w3 " * 70}, pair, pair])
    model = ARCHITECTURES["gpt2"]()
    args = RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=100)
    trainer = RewardTrainer(model=model, args=args, train_dataset=rows, processing_class=toys.tokenizer())
    assert trainer.args.max_length == 64 and args.max_length == 100 and len(trainer.train_dataset) == 2
    assert "max_length: 100 is beyond the model's context; using 64" in capsys.readouterr().out


def test_a_template_that_refuses_the_conversation_is_one_line():
    tokenizer = toys.tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    prompt = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2"}]
    for finished in (True, False):
        with pytest.raises(InputError, match="reward model: the chat template refuses .*system.*no system turn"):
            reward_model_tokens(tokenizer, prompt, "w3", finished)
