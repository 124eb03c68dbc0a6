"""Loss on the assistant's answers alone, each up to where generation stops, with whatever chat template there is."""

import copy

import pytest
import trl.chat_template_utils
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import DPOConfig, SFTConfig

from llmrecipes.answer_masks import encode, marked_template, tokenize_answers
from llmrecipes.config import InputError, ModelArguments
from llmrecipes.dpo import DPOTrainer
from llmrecipes.models import build_policy, eos_token_ids
from llmrecipes.reward_models.scoring import reward_model_tokens
from llmrecipes.sft import SFTTrainer
from llmrecipes.templates import CHAT_TEMPLATE, complete_template, encode_prompts, end_of_turn, options_of, row_check
from llmrecipes.tokenizers import load_tokenizer, train_tokenizer

SPECIAL = [
    "<s>",
    "</s>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<bos>",
    "<|user|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|end|>",
    "<|assistant|>",
    "<|endoftext|>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜end▁of▁sentence｜>",
]
LOOP, ASK = "{% for m in messages %}", "{% endfor %}{% if add_generation_prompt %}"
# The families' templates in short. What an answer is and where it ends stands behind each, computed by hand.
TEMPLATES = {
    "chatml": LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + ASK + "<|im_start|>assistant\n{% endif %}",
    "llama3": "<|begin_of_text|>"
    + LOOP
    + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
    + ASK
    + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "llama2": "<s>" + LOOP + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}",
    "gemma": "<bos>" + LOOP + "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    + ASK
    + "<start_of_turn>model\n{% endif %}",
    "phi": LOOP + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n" + ASK + "<|assistant|>\n{% endif %}",
    "zephyr": LOOP + "<|{{ m.role }}|>\n{{ m.content }}</s>\n" + ASK + "<|assistant|>\n{% endif %}",
    "deepseek": LOOP + "{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}<｜Assistant｜>{{ m.content }}"
    "<｜end▁of▁sentence｜>{% endif %}" + ASK + "<｜Assistant｜>{% endif %}",
    "no end": LOOP + "### {{ m.role }}:\n{{ m.content }}\n\n" + ASK + "### assistant:\n{% endif %}",
}
ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llama2": "</s>",
    "gemma": "<end_of_turn>",
    "phi": "<|end|>",
    "zephyr": "</s>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "no end": "<|im_end|>",
}
# As Qwen3's: what was thought is shown in the last turn alone, where it may be empty.
QWEN3 = (
    "{% set ns = namespace(last=0) %}"
    + LOOP
    + "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    + LOOP
    + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "<think>\n{{ m.reasoning_content | default('') }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    + ASK
    + "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
CHAT = [
    {"role": "user", "content": "Name a river."},
    {"role": "assistant", "content": "The Rhine."},
    {"role": "user", "content": "And another?"},
    {"role": "assistant", "content": "The Seine, the\nPo."},
]


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["Name a river. The Rhine. And another? The Seine, the\nPo. system user assistant [INST] think"] * 3
    made = train_tokenizer(texts, 340, 512)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *SPECIAL]})
    return made


def pieces(tokenizer, template, turns=CHAT, first=0, stops=(), row=None):
    tokenizer.chat_template = template
    ends = {tokenizer.eos_token_id, *stops, end_of_turn(tokenizer)} - {None}
    return encode(tokenizer, turns, first, ends, "here", marked_template(tokenizer), options_of(row or {}))


def learned(tokenizer, piece) -> list[str]:
    """The texts of a row's stretches of tokens that carry loss."""
    runs, last = [], False
    for token, label in zip(piece.ids, piece.labels, strict=True):
        assert label in (token, -100)
        if label != -100:
            runs = [*runs[:-1], [*runs[-1], token]] if last else [*runs, [token]]
        last = label != -100
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("name", ["chatml", "llama3", "llama2", "gemma", "phi", "zephyr", "deepseek"])
def test_every_answer_and_its_end_carries_loss_and_nothing_else(tokenizer, name):
    (piece,) = pieces(tokenizer, TEMPLATES[name])
    space, end = " " if name == "llama2" else "", ENDS[name]
    assert learned(tokenizer, piece) == [f"{space}The Rhine.{end}", f"{space}The Seine, the\nPo.{end}"]
    whole = tokenizer.apply_chat_template(CHAT, return_dict=False)
    assert piece.ids == whole[: len(piece.ids)] and not tokenizer.decode(whole[len(piece.ids) :]).strip()
    asked = tokenizer.apply_chat_template(CHAT[:3], add_generation_prompt=True, return_dict=False)
    assert piece.ids[: len(asked)] == asked, "the model is given what it is given when it generates"


def test_an_answer_without_an_end_gets_eos_and_a_row_of_its_own(tokenizer):
    first, second = pieces(tokenizer, TEMPLATES["no end"])
    assert learned(tokenizer, first) == ["The Rhine.<|im_end|>"]
    assert learned(tokenizer, second) == ["The Seine, the\nPo.<|im_end|>"]
    assert second.notes == {"ended", "split"}
    asked = tokenizer.apply_chat_template(CHAT[:3], add_generation_prompt=True, return_dict=False)
    assert second.ids[: len(asked)] == asked and set(second.labels[: len(asked)]) == {-100}


@pytest.mark.parametrize("thought", ["", "Rivers..."])
def test_turns_that_look_otherwise_later_are_learned_as_they_are_generated(tokenizer, thought):
    turns = [dict(turn) for turn in CHAT]
    if thought:
        turns[1]["reasoning_content"] = thought
    first, second = pieces(tokenizer, QWEN3, turns)
    assert learned(tokenizer, first) == [f"<think>\n{thought}\n</think>\n\nThe Rhine.<|im_end|>"]
    assert learned(tokenizer, second) == ["<think>\n\n</think>\n\nThe Seine, the\nPo.<|im_end|>"]
    assert "<|im_start|>assistant\nThe Rhine.<|im_end|>" in tokenizer.decode(second.ids)
    for piece in pieces(tokenizer, QWEN3, CHAT, row={"chat_template_kwargs": {"enable_thinking": False}}):
        assert all("think" not in text for text in learned(tokenizer, piece)), "the empty thought is given, not learned"


# As LFM2.5's: marks, nothing before an answer but its header, and thoughts of the last answer alone.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{% if not loop.last %}{{ m.content.split('</think>')[-1].strip() }}{% elif m.reasoning_content %}"
    "<think>{{ m.reasoning_content }}</think>{{ m.content }}{% else %}{{ m.content }}{% endif %}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("beside", [True, False])
def test_a_thought_that_marks_show_only_in_the_last_answer_is_learned_in_each(tokenizer, beside):
    (piece,) = pieces(tokenizer, FORGETFUL)
    assert learned(tokenizer, piece) == ["The Rhine.<|im_end|>", "The Seine, the\nPo.<|im_end|>"]
    turns = [dict(turn) for turn in CHAT]
    for i, thought in ((1, "Rivers..."), (3, "More...")):
        own = {"reasoning_content": thought} if beside else {"content": f"<think>{thought}</think>{turns[i]['content']}"}
        turns[i] |= own
    first, second = pieces(tokenizer, FORGETFUL, turns)
    assert learned(tokenizer, first) == ["<think>Rivers...</think>The Rhine.<|im_end|>"]
    assert learned(tokenizer, second) == ["<think>More...</think>The Seine, the\nPo.<|im_end|>"]
    assert second.notes == {"split"} and "Rivers..." not in tokenizer.decode(second.ids)


def test_a_template_of_trls_is_masked_by_its_marks_where_it_shows_what_is_generated_behind(tokenizer):
    from trl.chat_template_utils import deepseekv3_chat_template, qwen3_chat_template

    (piece,) = pieces(tokenizer, qwen3_chat_template, CHAT[:2])
    assert learned(tokenizer, piece) == ["<think>\n\n</think>\n\nThe Rhine.<|im_end|>"] and not piece.notes
    # TRL's training template of Qwen3 keeps the thoughts of earlier turns, which generation does not see.
    for last, count in zip(pieces(tokenizer, qwen3_chat_template), (1, 3), strict=True):
        asked = tokenizer.apply_chat_template(CHAT[:count], add_generation_prompt=True, return_dict=False)
        assert last.ids[: len(asked)] == asked and set(last.labels[: len(asked)]) == {-100}
    # DeepSeek's generation prompt begins a thought, which a conversation without one does not show.
    (piece,) = pieces(tokenizer, deepseekv3_chat_template, CHAT[:2], stops={tokenizer.convert_tokens_to_ids(SPECIAL[-1])})
    assert learned(tokenizer, piece) == [f"The Rhine.{SPECIAL[-1]}"] and piece.notes == {"opened"}


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_5_think", "qwen3_8"])
def test_what_the_model_is_given_carries_no_loss_where_trls_marks_include_its_end(tokenizer, name):
    """Loss begins where the generation prompt ends, whatever it ends in: a newline or <think>."""
    template = getattr(trl.chat_template_utils, f"{name}_chat_template")
    for turns in (CHAT[:2], CHAT):
        found = [
            piece.ids[:i]
            for piece in pieces(tokenizer, template, turns)
            for i in range(1, len(piece.ids))
            if piece.labels[i - 1] == -100 != piece.labels[i]
        ]
        asked = [
            tokenizer.apply_chat_template(turns[:i], add_generation_prompt=True, return_dict=False)
            for i, turn in enumerate(turns)
            if turn["role"] == "assistant"
        ]
        assert found == asked


def test_a_token_across_the_border_is_not_learned_behind_marks(tokenizer):
    """An answer that begins with a newline: where the newlines before and in it are one token, generation has two."""
    double = copy.deepcopy(tokenizer)
    double.add_tokens(["\n\n"])
    double.chat_template = CHAT_TEMPLATE
    (piece,) = pieces(double, CHAT_TEMPLATE, [CHAT[0], {"role": "assistant", "content": "\nYes."}])
    asked = double.apply_chat_template(CHAT[:1], add_generation_prompt=True, return_dict=False)
    assert piece.ids[: len(asked)] == asked and learned(double, piece) == ["\nYes.<|im_end|>"]


def test_marks_say_what_is_learned_and_are_carried_on_to_the_end_of_the_turn(tokenizer):
    expected = ["The Rhine.<|im_end|>", "The Seine, the\nPo.<|im_end|>"]
    assert learned(tokenizer, pieces(tokenizer, CHAT_TEMPLATE)[0]) == expected
    head = LOOP + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    content = "{{ m.content }}{% endgeneration %}<|im_end|>\n{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    assert learned(tokenizer, pieces(tokenizer, head + content)[0]) == expected
    behind = "{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    assert learned(tokenizer, pieces(tokenizer, head + behind)[0]) == expected


def test_completions_alone_carry_loss(tokenizer):
    for template in (TEMPLATES["chatml"], CHAT_TEMPLATE):
        (piece,) = pieces(tokenizer, template, first=3)
        assert learned(tokenizer, piece) == ["The Seine, the\nPo.<|im_end|>"]


def test_what_follows_the_last_answer_and_empty_answers(tokenizer):
    (piece,) = pieces(tokenizer, TEMPLATES["chatml"], CHAT[:3])
    assert learned(tokenizer, piece) == ["The Rhine.<|im_end|>"]
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    with pytest.raises(InputError, match="here, turn 2: the chat template leaves nothing of the answer"):
        pieces(tokenizer, TEMPLATES["chatml"], [CHAT[0], call])


# As SmolLM2's: a system turn of its own where the conversation has none.
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + TEMPLATES["chatml"]
)


@pytest.mark.parametrize("said", ["Xavier's river?", "  The Rhine."])
def test_of_an_answer_to_nothing_only_the_answer_is_learned(tokenizer, said):
    greeting = {"role": "assistant", "content": said}
    (piece,) = pieces(tokenizer, DEFAULT_SYSTEM, [greeting, *CHAT[:2]])
    assert learned(tokenizer, piece) == [f"{said}<|im_end|>", "The Rhine.<|im_end|>"]
    assert "Be kind." in tokenizer.decode(piece.ids)


def test_a_template_that_does_not_suit_the_tokenizer_is_said_once(tokenizer, tmp_path, capsys):
    rows = [{"messages": CHAT}] * 3
    text_end = LOOP + "{{ m.role }}: {{ m.content }}<|done|>\n" + ASK + "assistant: {% endif %}"
    trainer(tokenizer, text_end, tmp_path, rows)
    said = capsys.readouterr().out
    assert said.count("ends answers in '<|done|>', which this tokenizer has no token for") == 1
    assert "take a template that ends answers in <|im_end|>" in said
    (tmp_path / "t.jinja").write_text(TEMPLATES["chatml"])
    tokenizer.save_pretrained(tmp_path)
    begins = AutoTokenizer.from_pretrained(tmp_path, bos_token="[INST]", add_bos_token=True)
    for path, template, expected in (
        (str(tmp_path / "t.jinja"), None, 1),  # a template for another model
        (None, TEMPLATES["chatml"], 0),  # the model's own, which its authors have trained with
    ):
        trainer(begins, template, tmp_path, rows, chat_template_path=path)
        assert capsys.readouterr().out.count("writes no [INST], which the tokenizer puts before every other") == expected


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def trainer(tokenizer, template, tmp_path, rows, template_kwargs=None, peft=None, **changes):
    tokenizer.chat_template = template
    policy = build_policy({"model_type": "llama", **SMALL}, tokenizer)
    args = {"assistant_only_loss": True, "max_length": 512, "gradient_checkpointing": False, "report_to": "none"} | changes
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **args)
    given = {"processing_class": tokenizer, "template_kwargs": template_kwargs, "peft_config": peft}
    return SFTTrainer(model=policy, args=args, train_dataset=Dataset.from_list(rows), **given)


@pytest.mark.parametrize("name", ["gemma", "llama3", "phi"])
def test_generation_stops_where_answers_end(tokenizer, tmp_path, capsys, name):
    made = trainer(tokenizer, TEMPLATES[name], tmp_path, [{"messages": CHAT}] * 3)
    (labels,) = {tuple(row) for row in made.train_dataset["labels"]}
    end = tokenizer.convert_tokens_to_ids(ENDS[name])
    assert labels[-1] == end and end in eos_token_ids(made.model, tokenizer)
    assert f"answers end in {ENDS[name]}, at which generation did not stop" in capsys.readouterr().out
    made.model.save_pretrained(tmp_path / "saved")
    assert end in made.model.from_pretrained(tmp_path / "saved").generation_config.eos_token_id


def test_the_trainer_says_what_the_template_made_of_the_rows(tokenizer, tmp_path, capsys):
    rows = [{"messages": CHAT}] * 3
    made = trainer(tokenizer, TEMPLATES["no end"], tmp_path, rows)
    assert len(made.train_dataset) == 6
    said = capsys.readouterr().out
    assert "6 of 6 rows hold one answer of a longer conversation" in said and "<|im_end|> was appended" in said
    with pytest.raises(InputError, match="train row 2, turn 1: the chat template refuses the conversation .*must alternate"):
        trainer(tokenizer, TEMPLATES["llama2"], tmp_path, [*rows[:1], {"messages": CHAT[1:]}])


def test_an_end_within_an_answer_is_counted(tokenizer):
    tokenizer.chat_template = TEMPLATES["chatml"]
    said = ("The Rhine.", "The Rhine.<|im_end|>", "The Rhine.<|im_end|>\n<|im_start|>user\nAnd another?")
    rows = Dataset.from_list([{"messages": [CHAT[0], CHAT[1] | {"content": text}]} for text in said])
    _, notes, _ = tokenize_answers(rows, tokenizer, {tokenizer.eos_token_id}, "train")
    assert notes["inside"] == 1 and notes["spelled"] == 2


def test_prompts_with_completions_go_the_same_way(tokenizer, tmp_path):
    made = trainer(tokenizer, TEMPLATES["gemma"], tmp_path, [{"prompt": CHAT[:3], "completion": CHAT[3:]}] * 2)
    row = made.train_dataset[0]
    assert tokenizer.decode([label for label in row["labels"] if label != -100]) == "The Seine, the\nPo.<end_of_turn>"


@pytest.mark.parametrize("name", [*TEMPLATES, "ours"])
def test_both_answers_of_a_pair_end_where_generation_stops(tokenizer, tmp_path, capsys, name):
    tokenizer.chat_template = TEMPLATES.get(name, CHAT_TEMPLATE)
    policy, reference = (build_policy({"model_type": "llama", **SMALL}, tokenizer) for _ in range(2))
    args = DPOConfig(output_dir=str(tmp_path), max_length=None, report_to="none", use_cpu=True, bf16=False)
    row = {"prompt": CHAT[:3], "chosen": CHAT[3:], "rejected": CHAT[1:2]}
    cut = row | {"chosen_finished": False, "rejected_finished": True}
    rows = Dataset.from_list([row | {"chosen_finished": None, "rejected_finished": None}] * 2 + [cut] * 2)
    made = DPOTrainer(model=policy, ref_model=reference, args=args, train_dataset=rows, processing_class=tokenizer)
    said, end, space = capsys.readouterr().out, ENDS.get(name, "<|im_end|>"), " " if name == "llama2" else ""
    for side, text in (("chosen", "The Seine, the\nPo."), ("rejected", "The Rhine.")):
        learned = [tokenizer.decode(ids) for ids in made.train_dataset[f"{side}_ids"]]
        assert learned == [space + text + end] * 2 + [space + text + end * (side == "rejected")] * 2, "a cut one has no end"
    assert tokenizer.convert_tokens_to_ids(end) in eos_token_ids(made.model, tokenizer)
    assert (f"train: after 6 of 8 answers the chat template puts no token that ends them; {end} was" in said) == (
        name == "no end"
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_reward_model_reads_the_end_of_a_finished_conversation(tokenizer, name):
    tokenizer.chat_template = TEMPLATES[name]
    finished, cut = (reward_model_tokens(tokenizer, CHAT[:1], CHAT[1:2], whole) for whole in (True, False))
    assert tokenizer.decode(finished).rstrip().endswith(ENDS[name]) and tokenizer.decode(cut).endswith("The Rhine.")
    whole = tokenizer.apply_chat_template(CHAT[:2], return_dict=False)
    assert finished == whole + [tokenizer.eos_token_id] * (name == "no end")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_ignores_the_generation_prompt_still_opens_the_answer(tokenizer, tmp_path, capsys, name):
    """Asked, the model is given what stands before the answers that it has learned."""
    full = TEMPLATES[name]
    without = full.split("{% if add_generation_prompt %}")[0]
    whole = pieces(tokenizer, full)[-1]
    tokenizer.chat_template = without + "\n"
    complete_template(tokenizer, "here")
    said, completed = capsys.readouterr().out, tokenizer.chat_template
    assert ("here: its chat template ignores add_generation_prompt" in said) == (without != full)
    for turns in (CHAT, CHAT[:2]):
        assert tokenizer.apply_chat_template(turns, tokenize=False) == tokenizer.apply_chat_template(
            turns, tokenize=False, chat_template=full
        )
    (asked,) = encode_prompts(tokenizer, [CHAT[:3]])
    assert asked == tokenizer.apply_chat_template(
        CHAT[:3], add_generation_prompt=True, chat_template=full, return_dict=False
    )
    assert whole.ids[: len(asked)] == asked
    complete_template(tokenizer, "here")
    assert tokenizer.chat_template == completed and not capsys.readouterr().out


def test_sft_with_such_a_template_saves_one_that_opens_the_answer(tokenizer, tmp_path):
    template = tmp_path / "plain.jinja"
    template.write_text(TEMPLATES["no end"].split("{% if add")[0])
    made = trainer(tokenizer, None, tmp_path / "out", [{"messages": CHAT[:2]}] * 2, chat_template_path=str(template))
    (labels,) = {tuple(row) for row in made.train_dataset["labels"]}
    assert tokenizer.decode([label for label in labels if label != -100]) == "The Rhine.<|im_end|>"
    assert tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, tokenize=False).endswith("### assistant:\n")


@pytest.mark.parametrize("lora", [False, True])
def test_variables_are_set_in_the_new_template_not_in_the_one_that_it_replaces(tokenizer, tmp_path, lora):
    """`chat_template_kwargs` beside `chat_template_path`, a tokenizer's folder, which LoRA takes in another way."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{% if head is defined %}{{ head }}{% endif %}" + TEMPLATES["chatml"]
    other.save_pretrained(tmp_path / "other")
    tokenizer.chat_template = None  # a base model's
    tokenizer.save_pretrained(tmp_path / "base")
    path, given = str(tmp_path / "other"), {"head": "now"}
    model = ModelArguments(model_name_or_path=str(tmp_path / "base"), chat_template_kwargs=given)
    own = load_tokenizer(model, False, path)
    check = row_check(own, path, given)
    check({"messages": CHAT[:2]}, "row 1")
    assert '"now"' in check.key[0] and own.chat_template is None
    with pytest.raises(InputError, match="chat_template_kwargs.*haed"):
        row_check(own, path, {"haed": "now"})
    rows = [{"messages": CHAT[:2]}] * 2
    peft = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear") if lora else None
    made = trainer(own, None, tmp_path / "out", rows, given, peft, chat_template_path=path)
    assert own.decode(made.train_dataset[0]["input_ids"]).startswith("now<|im_start|>")
    assert own.apply_chat_template(CHAT[:2], tokenize=False).startswith("now") and own.chat_template.count('"now"') == 1


def test_tokenize_answers_reports_ends_that_are_no_stops(tokenizer):
    tokenizer.chat_template = TEMPLATES["zephyr"]
    _, notes, ends = tokenize_answers(Dataset.from_list([{"messages": CHAT}]), tokenizer, {tokenizer.eos_token_id}, "train")
    assert ends == {tokenizer.convert_tokens_to_ids("</s>")} and not any(notes.values())
