"""Chat: a page on this machine to talk with the models of a chain, one stage or another.

Launch: python recipes/chat.py --path outputs/quickstart [--port 7860]
Writes: nothing.
"""

from dataclasses import dataclass, field

from llmrecipes.config import InputError, launch


@dataclass
class ChatArguments:
    path: str = field(default="outputs/quickstart", metadata={"help": "Folder of a chain, or of one model."})
    port: int = field(default=7860, metadata={"help": "Of 127.0.0.1; nobody else can reach the page."})


def main(chat):
    from pathlib import Path

    if not Path(chat.path).is_dir():
        raise InputError(f"{chat.path}: does not exist; run the chain first (make quickstart)")

    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from llmrecipes.chat import build_page, find_models
    from llmrecipes.run import tame_logs

    tame_logs()
    models = find_models(chat.path)
    folder = list(models.values())[-1]
    print(f"In a terminal: transformers serve {folder} --host 127.0.0.1   and then   transformers chat {folder}", flush=True)
    # Else any web page could reach this one under a host name of its own (DNS rebinding).
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    try:
        build_page(models).launch(
            server_name="127.0.0.1", server_port=chat.port, share=False, app_kwargs={"middleware": [guard]}
        )
    except OSError:
        raise InputError(f"port: {chat.port} is taken; choose another with --port") from None


if __name__ == "__main__":
    launch(main, ChatArguments)
