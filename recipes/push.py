"""Push: publishes a finished stage, or every stage of a chain, to a Hugging Face hub.

Launch: python recipes/push.py --path outputs/quickstart/ppo --namespace NAME [--dry_run] [--private false]
Writes: one repository per stage (models and data sets; private), tagged with the run's fingerprint; files that are not part
of the run are deleted there. The token is read from HF_TOKEN or `hf auth login`, the hub's address from HF_ENDPOINT.
"""

from dataclasses import dataclass, field

from llmrecipes.config import InputError
from llmrecipes.parsing import launch


@dataclass
class PushArguments:
    path: str = field(default="", metadata={"help": "Folder of a stage, or of a chain to push all of it."})
    namespace: str = field(default="", metadata={"help": "User or organisation on the hub."})
    private: bool = field(default=True, metadata={"help": "Only you can see the repositories."})
    not_secrets: list[str] = field(
        default_factory=list, metadata={"help": "Files, or FILE:LINE, that only look like secrets."}
    )
    dry_run: bool = field(default=False, metadata={"help": "List files and sizes; contact no server."})


def main(push):
    if not push.path or not push.namespace:
        raise InputError(f"`{'namespace' if push.path else 'path'}` is missing; give --path FOLDER --namespace NAME")

    from huggingface_hub import HfApi

    from llmrecipes.hub import plan_push, push_run

    for planned in plan_push(push.path, push.namespace, push.not_secrets):
        sizes = {name: file.stat().st_size for name, file in planned.files.items()}
        visible = "private" if push.private else "public"
        print(f"{planned.repo_id} ({planned.repo_type}, {visible}, tag {planned.tag}): {sum(sizes.values()):,} bytes")
        for name, size in sizes.items():
            print(f"  {size:>14,}  {name}")
        if not push.dry_run:
            print(f"  -> {push_run(planned, push.private, HfApi())}", flush=True)


if __name__ == "__main__":
    launch(main, PushArguments, alone=True)
