"""Scores of reward models and callables: right position, right text, and one clear line for every mistake."""

import asyncio

import ppo_toys as toys
import pytest
import torch
from datasets import Dataset
from forked import run_python
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from llmrecipes.config import InputError
from llmrecipes.ppo.rewards import Rewards
from llmrecipes.reward_models.scoring import score_with_model

ROWS = {
    "prompt": ["w1 w2", "w3"],
    "prompt_ids": [[5, 6], [7]],
    "answer": ["a", "b"],
}
RESPONSES = [[8, 9, toys.EOS], [10]]
FINISHED = [True, False]


def score(functions, rows=ROWS, tokenizers=None, weights=None):
    return Rewards(functions, tokenizers, toys.tokenizer(), weights).score(rows, RESPONSES, FINISHED, 4)


def test_reward_model_is_read_at_the_last_token_whatever_the_pad_id():
    model = toys.reward_model().eval()
    rows = [[5, 6, toys.EOS], [7], [8, toys.PAD, 9, 10, 11]]
    expected = [model.score(model.model(torch.tensor([row])).last_hidden_state)[0, -1, 0] for row in rows]
    for pad in (toys.PAD, toys.EOS):
        model.config.pad_token_id = pad
        torch.testing.assert_close(score_with_model(model, rows, 2), torch.stack(expected))


def test_reward_model_reads_prompt_and_response_with_its_eos():
    model = toys.reward_model().eval()
    expected = score_with_model(model, [[5, 6, 8, 9, toys.EOS], [7, 10]], 4)
    torch.testing.assert_close(score(model)[:, 0], expected)


def test_conversations_are_rendered_by_the_reward_models_template():
    model, tokenizer = toys.reward_model().eval(), toys.tokenizer()
    prompt = [{"role": "w1", "content": "w2"}]
    rows = {"prompt": [prompt] * 2, "prompt_ids": [[5], [5]]}
    whole, cut = (
        tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": text}], return_dict=True)["input_ids"]
        for text in ("w4 w5", "w6")
    )
    torch.testing.assert_close(score(model, rows)[:, 0], score_with_model(model, [whole, cut[:-1]], 4))


def test_reward_model_with_another_tokenizer_reads_the_text():
    class Reversed:
        """The policy's words under other ids."""

        eos_token_id, chat_template = 1, None

        def get_vocab(self):
            return {"w": 0}

        def __len__(self):
            return toys.VOCABULARY

        def __call__(self, text):
            return {"input_ids": [63 - toys.tokenizer().convert_tokens_to_ids(word) for word in text.split()]}

    model = toys.reward_model().eval()
    rows = {"prompt": ["w1 w2 ", "w3 "], "prompt_ids": [[5, 6], [7]]}
    expected = score_with_model(model, [[58, 57, 55, 54, 1], [56, 53]], 4)
    torch.testing.assert_close(score(model, rows, tokenizers=[Reversed()])[:, 0], expected)


def saved_reward_model(folder, tokenizer=None):
    """A reward model as read from a folder, with a tokenizer beside it or without."""
    toys.reward_model().save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return LlamaForSequenceClassification.from_pretrained(folder).eval()


def test_a_reward_model_is_read_with_the_tokenizer_beside_it(tmp_path):
    words = [f"w{i}" for i in reversed(range(60))]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    own = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    rows = {"prompt": ["w1 w2 ", "w3 "], "prompt_ids": [[5, 6], [7]]}
    model = saved_reward_model(tmp_path, own)
    expected = score_with_model(model, [[59, 58, 56, 55], [57, 54]], 4)
    torch.testing.assert_close(score(model, rows)[:, 0], expected)


def test_a_line_says_that_the_reward_model_reads_prompts_without_their_tools(tmp_path, capsys):
    rows = [{"prompt": [{"role": "user", "content": f"w{i}"}], "tools": [{"name": "w9"}] if i else []} for i in range(16)]
    said = "reward model: it reads the prompts without their `tools`"
    for reward, there in ((toys.even_share, False), (toys.reward_model(), True)):
        toys.trainer(tmp_path, reward=reward, data=Dataset.from_list(rows))
        assert (said in capsys.readouterr().out) == there


def test_a_reward_model_without_a_tokenizer_reads_the_policys_tokens(tmp_path):
    model = saved_reward_model(tmp_path)
    expected = score_with_model(model, [[5, 6, 8, 9, toys.EOS], [7, 10]], 4)
    torch.testing.assert_close(score(model)[:, 0], expected)
    # For these transformers makes up a tokenizer of one special token.
    small = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "num_labels": 1, "pad_token_id": 0}
    GPT2ForSequenceClassification(GPT2Config(**small)).save_pretrained(tmp_path / "gpt2")
    model = GPT2ForSequenceClassification.from_pretrained(tmp_path / "gpt2")
    assert Rewards(model, None, toys.tokenizer(), None).each[0].reads_policy_tokens


def test_vocabularies_are_compared_once_and_not_for_every_response():
    calls, tokenizer = [], toys.tokenizer()
    tokenizer.get_vocab = lambda: calls.append(1) or {}
    rewards = Rewards(toys.reward_model(), tokenizer, toys.tokenizer(), None)
    for _ in range(2):
        rewards.score({"prompt": ["w1 w2", "w3"], "prompt_ids": [[5, 6], [7]]}, RESPONSES, FINISHED, 4)
    assert len(calls) == 1


def test_functions_and_tokenizers_may_be_tuples():
    one, two = (lambda completions: [1.0, 2.0]), (lambda completions: [3.0, 4.0])
    assert score((one, two), tokenizers=(None, None)).tolist() == [[1.0, 3.0], [2.0, 4.0]]


def test_callables_get_prompts_completions_and_every_extra_column():
    seen = {}

    def everything(prompts, completions, **columns):
        seen.update(columns, prompts=prompts, completions=completions)
        return [1.0, 2]

    def only_answers(answer):
        return torch.tensor([10.0, 20.0]) if answer == ["a", "b"] else None

    async def later(completions, **_):
        return [100.0, 200.0]

    functions = [everything, only_answers, later]
    scores = score(functions)
    torch.testing.assert_close(scores, torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]]))
    total = Rewards(functions, None, toys.tokenizer(), [1.0, 0.5, 0.01]).total(scores)
    torch.testing.assert_close(total, torch.tensor([7.0, 14.0]))
    assert seen["prompts"] == ROWS["prompt"] and seen["answer"] == ["a", "b"]
    assert seen["completions"] == ["w4 w5", "w6"] and seen["completion_ids"] == RESPONSES


def test_coroutine_functions_are_awaited_inside_a_running_loop_too():
    async def later(completions):
        await asyncio.sleep(0)
        return [1.0, 2.0]

    async def notebook():
        return score(later)

    assert asyncio.run(notebook()).tolist() == [[1.0], [2.0]]


def test_a_function_that_needs_a_missing_column_is_named_with_it():
    def picky(prompts, solution, hint=None):
        return [0.0, 0.0]

    def also(solution, **columns):
        return [0.0, 0.0]

    def broken(prompts):
        raise TypeError("of its own")

    for function in (picky, also):
        with pytest.raises(InputError, match=f"reward function {function.__name__}: missing .*'solution'; .*answer\\)"):
            score(function)
    with pytest.raises(TypeError, match="of its own"):
        score(broken)


def test_a_function_in_the_current_folder_is_found_from_a_script_elsewhere(tmp_path):
    (tmp_path / "mymodule.py").write_text("def brevity(completion_ids):\n    return [1.0]\n")
    script = tmp_path / "recipes" / "script.py"
    script.parent.mkdir()
    script.write_text(
        "from llmrecipes.config import load_function\nprint(load_function('mymodule:brevity', 'reward_functions')([[1]]))\n"
    )
    done = run_python(script, cwd=tmp_path, env={"PYTHONPATH": str(toys.ROOT)})
    assert done.stdout == "[1.0]\n", done.stderr


def test_conversational_prompts_give_conversational_completions():
    rows = {"prompt": [[{"role": "user", "content": "w1"}]] * 2, "prompt_ids": [[5], [5]]}
    seen = []
    score(lambda completions: seen.extend(completions) or [0, 0], rows)
    assert seen[0] == [{"role": "assistant", "content": "w4 w5"}]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0], "picky: returned 1 scores for 2 responses"),
        (None, "picky: returned None"),
        ([1.0, None], "picky: row 1 got None"),
        ([float("nan"), 1.0], "picky: row 0 got nan"),
        ([0.0, float("inf")], "picky: row 1 got inf"),
        ([0.0, "good"], "picky: row 1 got 'good'"),
        (["0.5", "1"], "picky: row 0 got '0.5' .str.; expected a finite number"),
        ("12", "picky: returned '12'; expected a list"),
        ({0: 1.0, 1: 2.0}, "picky: returned .0: 1.0"),
        ({1.0, 2.0}, "picky: returned .1.0"),
        ([1.0, 10**400], "picky: row 1 got 10+ .int.; expected"),
        ([1j, 1.0], "picky: row 0 got 1j"),
        ([[1.0], [1.0, 2.0]], "picky: row 0 got .1.0."),
        (torch.ones(2, 2), "picky: row 0 got tensor"),
        (torch.tensor(1.0), "picky: returned tensor.1"),
    ],
)
def test_bad_results_name_the_function_and_the_row(result, message):
    def picky(prompts, completions, **_):
        return result

    with pytest.raises(InputError, match=message):
        score(picky)


def test_a_row_left_to_the_other_functions_counts_theirs_alone_and_functions_may_log():
    logged, rewards = {}, lambda functions: Rewards(functions, None, toys.tokenizer(), [2.0, 1.0])

    def code(completions, trainer_state, log_metric):
        log_metric("passed", 0.5)
        return [float(trainer_state), None]

    def style(completions):
        return [10.0, 20.0]

    offered = {"trainer_state": 3, "log_metric": logged.__setitem__}
    scores = rewards([code, style]).score(ROWS, RESPONSES, FINISHED, 4, offered=offered)
    assert scores[0].tolist() == [3.0, 10.0] and scores[1].isnan().tolist() == [True, False]
    assert rewards([code, style]).total(scores).tolist() == [16.0, 20.0] and logged == {"passed": 0.5}
    with pytest.raises(InputError, match="code, also: row 1 got None, and no other function gives it a number"):

        def also(completions):
            return [1.0, None]

        rewards([code, also]).score(ROWS, RESPONSES, FINISHED, 4, offered=offered)


def test_reward_model_that_gives_nan_is_named():
    model = toys.reward_model()
    model.score.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="reward model LlamaForSequenceClassification: gave nan for row 0"):
        score(model)


def test_wrong_settings_are_refused():
    with pytest.raises(InputError, match="gives 2 labels"):
        Rewards(toys.reward_model(num_labels=2), None, toys.tokenizer(), None)
    with pytest.raises(InputError, match="reward_weights: 2 for 1"):
        Rewards(toys.reward_model(), None, toys.tokenizer(), [1.0, 2.0])
    with pytest.raises(InputError, match="reward_funcs: is empty"):
        Rewards([], None, toys.tokenizer(), None)
    with pytest.raises(InputError, match="reward model Llama.*: the tokenizer has 65 tokens, the model only 64"):
        Rewards(toys.reward_model(), toys.tokenizer(vocabulary=65), toys.tokenizer(), None)
    with pytest.raises(InputError, match="reward_funcs: 'me/reward' is neither a model nor a function; load it first"):
        Rewards("me/reward", None, toys.tokenizer(), None)
    wrapped = get_peft_model(toys.reward_model(), LoraConfig(target_modules="all-linear"))
    with pytest.raises(InputError, match="wrapped by PEFT; pass its merge_and_unload"):
        Rewards(wrapped, None, toys.tokenizer(), None)
