"""Loss on the assistant's answers alone, with chat templates that do not mark them."""

import pytest
from datasets import Dataset

from llmrecipes.answer_masks import mask_answers
from llmrecipes.config import InputError
from llmrecipes.models import train_tokenizer

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
    (row,) = mask_answers(Dataset.from_list([{"messages": messages}]), tokenizer, "chats.jsonl")
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


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (PLAIN.replace("'<|im_end|>' + '\n'", "'\n'"), "ends an answer without '<|im_end|>'"),
        (PLAIN.replace("message['content']", "(message['content'] if loop.last else 'cut')"), "turn 2 otherwise"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ],
)
def test_a_template_that_cannot_be_learned_from_is_refused_by_file_and_row(tokenizer, template, message):
    with pytest.raises(InputError, match=f"chats.jsonl, row 1: .*{message}"):
        masked(tokenizer, template)
