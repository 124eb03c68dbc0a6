"""Pipeline: runs a chain of stages from one YAML, skips what is unchanged, continues what was interrupted.

Launch: python recipes/pipeline.py --config configs/quickstart/pipeline.yaml [--from sft] [--to reward] [--only ppo]
        [--force] [--dry_run] [--seed 43 --output_dir outputs/quickstart-43]
Writes: output_dir/report.md and report.html; each stage writes its own folder below output_dir.
"""

import re
import sys
from dataclasses import dataclass, field

from llmrecipes.config import RunArguments, launch


@dataclass
class PipelineArguments:
    stages: list[str] = field(
        default_factory=list, metadata={"help": "STAGE or STAGE-VARIANT each; its YAML lies beside this one."}
    )
    rounds: int = field(
        default=1,
        metadata={"help": "Times to sample, rank, reward, ppo, each with the newest policy, keeping all judgements."},
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder of the chain; another one moves it all."})
    seed: int | None = field(default=None, metadata={"help": "Seed of every stage; default: what their YAMLs say."})
    accelerate_config: str | None = field(
        default=None, metadata={"help": "Launch the training stages by accelerate with this topology."}
    )
    from_stage: str | None = field(default=None, metadata={"help": "--from STAGE: first stage to look at."})
    to_stage: str | None = field(default=None, metadata={"help": "--to STAGE: last stage to look at."})
    only: list[str] = field(default_factory=list, metadata={"help": "Look at these stages alone."})
    dry_run: bool = field(default=False, metadata={"help": "Say what would run, and why; run nothing."})


def main(run, pipeline, config_path):
    from llmrecipes.pipeline import plan_stages, run_stages
    from llmrecipes.report import write_report

    stages = plan_stages(pipeline, config_path, force=run.force)
    if pipeline.dry_run:
        for stage in stages:
            print(f"{stage.name:<14}{stage.reason}")
    else:
        run_stages(stages, pipeline, config_path, run.force)
        write_report(pipeline.output_dir, config_path, pipeline.stages)


if __name__ == "__main__":
    # `from` is a Python keyword, so the fields have longer names than the options.
    argv = [re.sub(r"^--(from|to)(?==|$)", r"--\1_stage", word) for word in sys.argv[1:]]
    path = next((b if a == "--config" else a[9:] for a, b in zip(argv, argv[1:] + [""]) if a.startswith("--config")), "")
    launch(lambda run, pipeline: main(run, pipeline, path), RunArguments, PipelineArguments, argv=argv)
