"""What a chat template cannot show is refused by file and row, and never learned as if it were not there."""

import importlib
import json

import pytest
from data_hub import data_hub  # noqa: F401 (a fixture)
from recipe_types import recipe_types
from test_answer_masks import ASK, CHAT, LOOP, QWEN3, TEMPLATES
from transformers import AutoTokenizer

from llmrecipes.config import DataArguments, InputError, ModelArguments
from llmrecipes.data import load_train_eval
from llmrecipes.models import build_policy, eos_token_ids, load_policy, load_tokenizer
from llmrecipes.parsing import parse
from llmrecipes.ppo.prompts import prompt_token_ids
from llmrecipes.templates import encode_prompts, end_of_turn, local_template, options_of, read_template, render, row_check
from llmrecipes.tokenizers import train_tokenizer

TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "", "parameters": {}}}]
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "look_up", "arguments": {"river": "Po"}}}],
}
SYSTEM = {"role": "system", "content": "Be kind."}
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    + LOOP
    + "<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}"
    "</tool_call>{% endfor %}<|im_end|>\n" + ASK + "<|im_start|>assistant\n{% endif %}"
)
# As templates of models that also see images: text is a list of parts.
PARTS = LOOP + "{{ m.role }}: {% for part in m.content %}{{ part.text }}{% endfor %}<|im_end|>{% endfor %}"
SILENT = LOOP + "{% if m.role in ('user', 'assistant') %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
R1 = (
    LOOP + "{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}<|assistant|>{{ m.content.split('</think>')[-1] }}"
    "<|im_end|>{% endif %}" + ASK + "<|assistant|><think>\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Name a river. The Rhine. And another? Be kind. system user assistant"] * 3, 300, 512)


def refused(tokenizer, template, row, path=None, **changes):
    """The line with which a row is refused, or None."""
    tokenizer.chat_template = template
    try:
        row_check(tokenizer, path, **changes)(row, "x.jsonl, row 7")
    except InputError as error:
        return str(error)


NO_SYSTEM = LOOP + "{% if m.role == 'system' %}{{ m.content | no_such_filter }}{% endif %}{{ m.content }}{% endfor %}"
RAISES = "%}{{ raise_exception('No.') }}{% endif %}{{ m.content }}{% endfor %}"
IN_TURNS = LOOP + "{% if (m.role == 'user') == (loop.index0 % 2 == 1) " + RAISES
NO_TOOL = LOOP + "{% if m.role == 'tool' " + RAISES
TOOLS_ARE = "{% if tools %}{{ tools.x.y }}{% endif %}" + LOOP + "{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "turns", "options", "advice"),
    [
        (
            NO_SYSTEM + LOOP + "{{ m.content }}{% endfor %}",
            [SYSTEM, *CHAT],
            {},
            "it takes no system turn here: put its text",
        ),
        (IN_TURNS, [CHAT[0], CHAT[2]], {}, "it wants the user and the assistant in turns"),
        (IN_TURNS, [SYSTEM, CHAT[0]], {}, "it takes no system turn here: put its text"),
        (
            "{{ tools[0].function.name }}",
            CHAT,
            {},
            "it refuses a plain question and answer too, so no row would do: mend it",
        ),
        (
            "{% if tools %}{{ tools.x.y }}{% endif %}" + LOOP + "{{ m.content }}{% endfor %}",
            CHAT,
            {"tools": TOOLS},
            "it cannot",
        ),
        (NO_TOOL, [CHAT[0], CALL, {"role": "tool", "content": "x"}], {}, "it may not take calls of tools and"),
    ],
)
def test_a_refusal_says_what_the_template_does_not_take(tokenizer, template, turns, options, advice):
    tokenizer.chat_template = template
    with pytest.raises(InputError) as caught:
        render(tokenizer, turns, "x.jsonl, row 7", **options)
    line = str(caught.value)
    roles = ", ".join(turn["role"] for turn in turns)
    assert line.startswith(f"x.jsonl, row 7: the chat template refuses the conversation ({roles}): ")
    assert f"; {advice}" in line and line.endswith("another template (`chat_template_path` in sft)")


@pytest.mark.parametrize(
    ("template", "row", "line"),
    [
        (TEMPLATES["gemma"], {"messages": [SYSTEM, *CHAT]}, "refuses the conversation (system, user, assistant, user, "),
        (TEMPLATES["llama2"], {"messages": CHAT[1:]}, "(assistant, user, assistant): roles must alternate user/assistant"),
        (TEMPLATES["llama2"], {"prompt": [CHAT[0], CHAT[2]]}, "(user, user): roles must alternate user/assistant"),
        (TEMPLATES["llama2"], {"prompt": CHAT[:1], "chosen": CHAT[1:2], "rejected": CHAT[:1]}, "(user, user): roles must"),
        (SILENT, {"messages": [SYSTEM, *CHAT]}, ", turn 1: the chat template leaves out what the system says"),
        (SILENT, {"messages": [CHAT[0], CALL, {"role": "tool", "content": "long"}, CHAT[1]]}, ", turn 2: has `tool_calls`"),
        (SILENT, {"messages": [*CHAT[:2], {"role": "tool", "content": "long"}, CHAT[1]]}, ", turn 3: the chat template lea"),
        (LOOP + "{{ m.content.trim() }}{% endfor %}", {"messages": CHAT}, "has no attribute 'trim'"),
        (LOOP + "{{ raw[3].x }}{{ m.content % 0 }}{% endfor %}", {"messages": CHAT}, "refuses the conversation"),
        (LOOP + "{{ 1 // (loop.index - 1) }}{% endfor %}", {"messages": CHAT}, "division"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", {"messages": CHAT}, "maximum recursion depth"),
        (PARTS, {"messages": CHAT}, ", turn 1: the chat template leaves out what the user says"),
        (PARTS, {"prompt": [SYSTEM, *CHAT[:1]]}, ", turn 2: the chat template leaves out what the user says"),
        (SILENT.replace("'user', ", ""), {"prompt": CHAT[:1], "chosen": CHAT[1:2], "rejected": CHAT[3:]}, ", turn 1: the"),
        (LOOP + "{{ m.content | upper }}{% endfor %}", {"messages": CHAT}, None),
        (TEMPLATES["chatml"], {"messages": [CHAT[0], CALL]}, ", turn 2: has `tool_calls`, which the chat template leaves"),
        (TEMPLATES["chatml"], {"messages": CHAT, "tools": TOOLS}, ": has `tools`, which the chat template does not show"),
        (TEMPLATES["chatml"], {"prompt": CHAT[:1], "tools": json.dumps(TOOLS)}, ": has `tools`, which the chat template"),
        (TEMPLATES["chatml"], {"messages": [CHAT[0], CHAT[1] | {"reasoning_content": "Hm."}]}, "has `reasoning_content`"),
        (TEMPLATES["chatml"], {"messages": CHAT, "chat_template_kwargs": {"enable_thinking": True}}, "does not read `enabl"),
        (
            R1,
            {"messages": [CHAT[0], {"role": "assistant", "content": "<think>Hm.</think>Po."}]},
            "leaves out the text in",
        ),
        (WITH_TOOLS, {"messages": [CHAT[0], CALL], "tools": TOOLS}, None),
        (WITH_TOOLS, {"messages": [SYSTEM, CHAT[0], CALL, {"role": "tool", "content": "long"}, CHAT[1]]}, None),
        (QWEN3, {"messages": [CHAT[0], CHAT[1] | {"reasoning_content": "Hm."}, *CHAT[2:]]}, None),
        (QWEN3, {"messages": CHAT, "chat_template_kwargs": {"enable_thinking": False}}, None),
        (TEMPLATES["chatml"], {"messages": CHAT, "tools": [], "chat_template_kwargs": {}}, None),
        (TEMPLATES["chatml"], {"prompt": "Name a river.", "completion": "Po."}, None),
    ],
)
def test_rows_that_a_template_cannot_show_are_one_line(tokenizer, template, row, line):
    found = refused(tokenizer, template, row)
    assert found is None if line is None else found.startswith("x.jsonl, row 7") and line in found, found


def test_a_text_with_the_bos_that_the_tokenizer_puts_there_is_one_line(tokenizer, tmp_path):
    """As of a set that was rendered by a Llama's chat template: the model would read the token twice."""
    tokenizer.save_pretrained(tmp_path)
    begins = AutoTokenizer.from_pretrained(tmp_path, bos_token="[INST]", add_bos_token=True)
    text, bos = "[INST]Name a river.", begins.bos_token_id
    assert begins(text)["input_ids"][:2] == [bos, bos] and begins("Name")["input_ids"][:2].count(bos) == 1
    for row in (
        {"prompt": text, "completion": "Po."},
        {"prompt": text},
        {"prompt": "", "completion": text},
        {"prompt": text, "chosen": "Po.", "rejected": "No."},
    ):
        told = refused(begins, None, row)
        assert told.startswith("x.jsonl, row 7: the text begins with [INST], which the tokenizer itself puts before every")
        assert refused(tokenizer, None, row) is None, "the other tokenizer puts none there"
    assert refused(begins, TEMPLATES["chatml"], {"messages": [CHAT[0] | {"content": text}, CHAT[1]]}) is None


def test_another_template_and_stages_that_show_no_tools(tokenizer, tmp_path):
    (tmp_path / "t.jinja").write_text(TEMPLATES["gemma"])
    line = refused(tokenizer, TEMPLATES["chatml"], {"messages": [SYSTEM, *CHAT]}, str(tmp_path / "t.jinja"))
    assert "System role not supported" in line and tokenizer.chat_template == TEMPLATES["chatml"]
    pair = {"prompt": CHAT[:1], "chosen": CHAT[1:2], "rejected": CHAT[3:], "tools": TOOLS}
    assert "has `tools`, which this stage does not show" in refused(tokenizer, WITH_TOOLS, pair, shows_tools=False)


def test_refused_rows_are_named_by_file_and_line_or_dropped(tokenizer, tmp_path):
    tokenizer.chat_template = TEMPLATES["llama2"]
    file = tmp_path / "chats.jsonl"
    rows = [{"messages": CHAT}, {"messages": CHAT[1:]}, {"messages": CHAT[:2]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    load = lambda source: load_train_eval(DataArguments([source]), 0, ("messages",), check=row_check(tokenizer))[0]
    with pytest.raises(InputError, match=rf"{file}, row 2: the chat template refuses .* must alternate"):
        load({"path": str(file)})
    assert len(load({"path": str(file), "drop_bad_rows": True})) == 2


def test_prompts_are_rendered_with_their_tools(tokenizer):
    tokenizer.chat_template = WITH_TOOLS
    options = options_of({"tools": json.dumps(TOOLS), "chat_template_kwargs": None})
    (ids,) = encode_prompts(tokenizer, [CHAT[:1]], options=[options])
    assert "look_up" in tokenizer.decode(ids) and ids == prompt_token_ids(CHAT[:1], tokenizer, "", options)
    tokenizer.chat_template = TEMPLATES["gemma"]
    for encode in (
        lambda: encode_prompts(tokenizer, [[SYSTEM, CHAT[0]]]),
        lambda: prompt_token_ids([SYSTEM], tokenizer, ""),
    ):
        with pytest.raises(InputError, match="System role not supported"):
            encode()


def test_chat_template_kwargs_become_the_templates_own_defaults(tokenizer, tmp_path):
    tokenizer.chat_template = QWEN3
    tokenizer.save_pretrained(tmp_path)
    source = ModelArguments(tokenizer_name_or_path=str(tmp_path), chat_template_kwargs={"enable_thinking": False})
    read = load_tokenizer(source)
    ask = lambda tokenizer, **options: tokenizer.apply_chat_template(
        CHAT[:1], tokenize=False, add_generation_prompt=True, **options
    )
    assert ask(read) == ask(tokenizer, enable_thinking=False) != ask(tokenizer) == ask(read, enable_thinking=True)
    read.save_pretrained(tmp_path / "again")
    assert ask(load_tokenizer(ModelArguments(tokenizer_name_or_path=str(tmp_path / "again")))) == ask(read)
    source.chat_template_kwargs = {"thinking": False}
    with pytest.raises(InputError, match="chat_template_kwargs: the chat template does not read `thinking`"):
        load_tokenizer(source)


def test_a_loaded_policy_stops_where_the_template_ends_an_answer(tokenizer, tmp_path, capsys):
    tokenizer.chat_template = TEMPLATES["chatml"]
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    build_policy({"model_type": "llama", **small}, tokenizer).save_pretrained(tmp_path)
    tokenizer.eos_token = "<|pad|>"  # as a base model's <|endoftext|>
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.eos_token_id}))
    policy = load_policy(ModelArguments(model_name_or_path=str(tmp_path)), tokenizer)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in eos_token_ids(policy, tokenizer)
    assert "answers end in <|im_end|>, at which generation did not stop" in capsys.readouterr().out
    tokenizer.eos_token = "<|im_end|>"


class Letters:
    """A tokenizer of characters."""

    chat_template = None

    def __call__(self, texts, add_special_tokens=True):
        return {"input_ids": [[ord(c) for c in text] for text in texts]}


def test_prompts_that_cannot_be_encoded_are_named_by_row():
    assert encode_prompts(Letters(), ["ab"], 2) == [[97, 98]]
    with pytest.raises(InputError, match="row 2: the prompt has 3 tokens, but .* room for 2"):
        encode_prompts(Letters(), ["ab", "abc"], 2)
    with pytest.raises(InputError, match="row 2: the prompt is empty"):
        encode_prompts(Letters(), ["ab", ""])
    with pytest.raises(InputError, match="row 1: .* no chat template"):
        encode_prompts(Letters(), [CHAT[:1]])


def test_a_template_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(InputError, match="chat_template_path: a/b@none cannot be read: ."):
        read_template("a/b@none")
    with pytest.raises(InputError, match=f"chat_template_path: {tmp_path} cannot be read: ."):
        read_template(str(tmp_path))


def test_a_template_of_the_hub_is_that_of_the_revision_that_is_named(data_hub, tmp_path):  # noqa: F811
    tokenizer, commits = train_tokenizer(["a b c"] * 5, 300, 64), []
    for number in (1, 2):
        tokenizer.chat_template = f"{number} {{{{ messages }}}}"
        tokenizer.save_pretrained(tmp_path / "made")
        commits.append(data_hub.commit("a/b", {file.name: file.read_bytes() for file in (tmp_path / "made").iterdir()}))
    assert [read_template(f"a/b@{commit}") for commit in commits] == ["1 {{ messages }}", "2 {{ messages }}"]
    assert local_template("a/b") == "a/b" and local_template(None) is None
    with pytest.raises(InputError, match="chat_template_path: a/b@none cannot be read: ."):
        local_template("a/b@none")


LLAMA32 = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today Date: {{ date_string }}\n" + LOOP + "<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
)


def test_date_that_a_template_writes_is_that_of_the_runs_beginning(tokenizer, tmp_path, capsys):
    """Llama 3.2's template: a run continued on another day would go on with other tokens, or with those kept of that day."""
    from test_run import start

    from llmrecipes.durable import write_json
    from llmrecipes.templates import date_written, fix_date, render, set_defaults

    tokenizer.chat_template = LLAMA32
    fix_date("2024-01-31")
    assert render(tokenizer, CHAT, "").startswith("Today Date: 31 Jan 2024\n")
    first = row_check(tokenizer).key
    assert "writes the date into conversations; 2024-01-31 in all of this run" in capsys.readouterr().out
    fix_date("2024-02-01")
    assert row_check(tokenizer).key != first

    state = start(tmp_path / "o")
    write_json(tmp_path / "o" / "manifest.json", state.manifest | {"date": "2020-05-06"})  # it began, and was killed, then
    assert start(tmp_path / "o").manifest["date"] == "2020-05-06"
    assert render(tokenizer, CHAT, "").startswith("Today Date: 06 May 2020\n")
    assert start(tmp_path / "other").manifest["date"] == state.manifest["date"] > "2025"

    set_defaults(tokenizer, {"date_string": "26 Jul 2024"})
    capsys.readouterr()
    assert date_written(tokenizer) is None and row_check(tokenizer).key and not capsys.readouterr().out
    tokenizer.chat_template = TEMPLATES["gemma"]
    assert date_written(tokenizer) is None


STAGES = ("sft", "dpo", "kto", "reward", "sample", "evaluate", "ppo", "grpo")


@pytest.mark.parametrize(
    ("stage", "whose"),
    [*((stage, "policy") for stage in STAGES), ("ppo", "reward"), ("grpo", "reward"), ("evaluate", "reward")],
)
def test_every_stage_sees_before_it_loads_a_model_what_a_template_refuses(tmp_path, stage, whose):
    """Neither model has weights: loading one would be another error."""
    for name, kind in (("policy", "LlamaForCausalLM"), ("reward", "LlamaForSequenceClassification")):
        own = train_tokenizer(["Name a river. The Rhine."] * 3, 300, 64)
        own.chat_template = NO_SYSTEM if name == whose else TEMPLATES["chatml"]
        own.save_pretrained(tmp_path / name)
        config = {"model_type": "llama", "architectures": [kind], "hidden_size": 64, "id2label": {"0": "score"}}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    asked, good, bad = [SYSTEM, CHAT[0]], CHAT[1:2], CHAT[3:4]
    row = {"sft": {"prompt": asked, "completion": good}, "kto": {"prompt": asked, "completion": good, "label": True}}
    row = row.get(stage) or {"prompt": asked} | ({"chosen": good, "rejected": bad} if stage in ("dpo", "reward") else {})
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    values = {"output_dir": tmp_path / "out", "datasets": tmp_path / "a.jsonl", "model_name_or_path": tmp_path / "policy"}
    if stage == "evaluate":
        values |= {"models": json.dumps({"sft": str(values.pop("model_name_or_path"))}), "tasks": "[]"}
    if stage in ("ppo", "grpo") or whose == "reward":
        values["reward_model_name_or_path"] = tmp_path / "reward"
    argv = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    argv += ["--report_to", "none"] if stage not in ("sample", "evaluate") else []
    with pytest.raises(InputError) as caught:
        importlib.import_module(f"recipes.{stage}").main(*parse(*recipe_types(stage), argv=argv))
    reader = "reward model: " if whose == "reward" else ""
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}/a.jsonl, row 1: {reader}the chat template refuses the conversation (system, user")
    assert "no_such_filter" in line and "it takes no system turn here: put its text into the first question" in line


def test_a_special_token_that_somebody_spells_out_is_said_once(tokenizer, capsys):
    tokenizer.chat_template = TEMPLATES["chatml"]
    ask, answer = [{"role": "user", "content": "Name it."}], lambda text: [{"role": "assistant", "content": text}]
    pair = {"prompt": ask, "chosen": answer("The <|im_end|> of it."), "rejected": answer("No.")}
    check = row_check(tokenizer)
    check(pair | {"chosen": answer("The end.")}, "x.jsonl, row 1")
    assert not capsys.readouterr().out
    for row in (2, 3):
        check(pair, f"x.jsonl, row {row}")
    said = "x.jsonl, row 2: spells out a special token in what somebody says, which is read as that token\n"
    assert capsys.readouterr().out == said
    row_check(tokenizer, tells_special=False)(pair, "x.jsonl, row 2")
    assert not capsys.readouterr().out
