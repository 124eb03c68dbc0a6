"""Loss on the assistant's answers alone, with chat templates that do not mark them."""

import pytest
from datasets import Dataset
from trl import SFTConfig

from llmrecipes.answer_masks import marks_answers, mask_answers
from llmrecipes.config import InputError
from llmrecipes.models import CHAT_TEMPLATE, build_policy, train_tokenizer
from llmrecipes.training import SFTTrainer

# SmolLM2's: a system prompt comes first where there is none, and nothing is marked.
PLAIN = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT = [
    {"role": "user", "content": "Name a river."},
    {"role": "assistant", "content": "The Rhine."},
    {"role": "user", "content": "And another?"},
    {"role": "assistant", "content": "The Seine, the\nPo."},
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Name a river. The Rhine. And another? Be kind. system user assistant"] * 3, 300, 512)


def masked(tokenizer, template, messages=CHAT):
    tokenizer.chat_template = template
    (row,) = mask_answers(Dataset.from_list([{"messages": messages}]), tokenizer)
    return row


def test_every_answer_and_its_end_of_turn_carries_loss_and_nothing_else(tokenizer):
    row = masked(tokenizer, PLAIN)
    assert row["input_ids"] == tokenizer.apply_chat_template(CHAT, return_dict=False)
    runs, open_run = [], []
    for token, carries in [*zip(row["input_ids"], row["assistant_masks"], strict=True), (0, 0)]:
        if carries:
            open_run.append(token)
        elif open_run:
            runs.append(open_run)
            open_run = []
    assert [tokenizer.decode(run) for run in runs] == ["The Rhine.<|im_end|>", "The Seine, the\nPo.<|im_end|>"]
    assert all(run[-1] == tokenizer.eos_token_id for run in runs)


def test_templates_with_marks_are_left_to_trl(tokenizer):
    tokenizer.chat_template = CHAT_TEMPLATE
    assert marks_answers(tokenizer)
    tokenizer.chat_template = PLAIN
    assert not marks_answers(tokenizer)


def test_the_trainer_takes_the_masks_as_labels(tokenizer, tmp_path):
    tokenizer.chat_template = PLAIN
    rows = mask_answers(Dataset.from_list([{"messages": CHAT}] * 2), tokenizer)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    policy = build_policy({"model_type": "llama", **shape}, tokenizer)
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", activation_checkpointing=False)
    trainer = SFTTrainer(model=policy, args=args, train_dataset=rows, processing_class=tokenizer)
    labels = next(iter(trainer.get_train_dataloader()))["labels"][0].tolist()
    learned = tokenizer.decode([token for token in labels if token != -100])
    assert learned == "The Rhine.<|im_end|>The Seine, the\nPo.<|im_end|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (PLAIN.replace("'<|im_end|>' + '\n'", "'\n'"), "ends an answer without '<|im_end|>'"),
        (PLAIN.replace("message['content']", "(message['content'] if loop.last else 'cut')"), "turn 2 otherwise"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ],
)
def test_a_template_that_cannot_be_learned_from_is_refused_by_its_row(tokenizer, template, message):
    with pytest.raises(InputError, match=f"begins 'Name a river.': .*{message}"):
        masked(tokenizer, template)
