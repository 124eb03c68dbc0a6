"""Chat: a local web page for talking to the models of a chain.

Launch: python recipes/chat.py --path outputs/quickstart [--port 7860]
        python recipes/chat.py --path outputs/quickstart --compare sft ppo
Writes: with --compare path/votes.jsonl, rankings that recipes/rank.py reads; otherwise nothing.
"""

from dataclasses import dataclass, field

from llmrecipes.config import InputError
from llmrecipes.parsing import launch


@dataclass
class ChatArguments:
    path: str = field(default="outputs/quickstart", metadata={"help": "Folder of a chain, or of one model."})
    compare: list[str] = field(
        default_factory=list, metadata={"help": "Two or more models that answer blind, side by side, to be voted on."}
    )
    port: int = field(
        default=7860,
        metadata={"help": "Port on 127.0.0.1, for this machine alone; the next free one if it is in use."},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the models' folders."})


def main(chat):
    import shutil
    import sys
    from functools import partial
    from pathlib import Path

    if not Path(chat.path).is_dir():
        raise InputError(f"{chat.path}: does not exist; run the chain first (make quickstart)")

    from llmrecipes.chat import build_page, example_prompts, find_models, stream_answer, terminal_lines
    from llmrecipes.logs import quiet_logs
    from llmrecipes.votes import build_compare_page
    from llmrecipes.web import prepare_server, serve_blocks

    quiet_logs()
    models = find_models(chat.path)
    folder = list(models.values())[-1]
    beside = Path(sys.executable).with_name("transformers")  # the environment may not be activated, and so not on the PATH
    command = beside if beside.exists() and shutil.which("transformers") != str(beside) else "transformers"
    print(terminal_lines(folder, command), flush=True)
    answer = partial(stream_answer, trust_remote_code=chat.trust_remote_code)
    if chat.compare:
        unknown = [name for name in chat.compare if name not in models]
        if unknown or len(set(chat.compare)) < 2:
            wrong = f"{unknown[0]} is not one of" if unknown else "give two or more of"
            raise InputError(f"compare: {wrong} {', '.join(models)}")
        page = build_compare_page({name: models[name] for name in chat.compare}, Path(chat.path) / "votes.jsonl", answer)
        print(f"Votes go to {chat.path}/votes.jsonl", flush=True)
    else:
        page = build_page(
            models, answer, f"Talk to the models of {Path(chat.path).resolve().name}", example_prompts(chat.path)
        )
    address, run, _ = prepare_server(serve_blocks(page), "127.0.0.1", chat.port)
    print(f"Running on {address}", flush=True)
    run()


if __name__ == "__main__":
    launch(main, ChatArguments, alone=True)
