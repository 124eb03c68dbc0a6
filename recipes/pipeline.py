"""Pipeline: runs a chain of stages from one YAML, skips unchanged ones, continues interrupted ones.

Launch: python recipes/pipeline.py --config configs/quickstart/pipeline.yaml [--from sft] [--to reward] [--only ppo]
        [--force] [--dry_run] [--seed 43 --output_dir outputs/quickstart-43] [--sweep dpo.beta=0.1,0.5]
Writes: output_dir/report.md and report.html, or for a sweep KEY=VALUE,VALUE/compare-STAGE/ in output_dir; each stage writes
        its own folder there.
"""

import re
import sys

from llmrecipes.config import RunArguments
from llmrecipes.parsing import launch
from llmrecipes.pipeline import PipelineArguments


def main(run, pipeline):
    from llmrecipes.comparison import write_comparison
    from llmrecipes.pipeline import plan_stages, run_stages
    from llmrecipes.report import write_report
    from llmrecipes.sweep import comparison_folder

    stages = plan_stages(pipeline, run.config_path, force=run.force)
    if pipeline.dry_run:
        width = max(len(stage.title) for stage in stages)
        for stage in stages:
            print(f"{stage.title:<{width}}  {stage.reason}")
    elif pipeline.sweep is not None:
        run_stages(stages, pipeline, run.config_path, run.force)
        varied = [stage for stage in stages if stage.variant and stage.selected]
        home = comparison_folder(stages, pipeline.output_dir)
        for name in dict.fromkeys(stage.name for stage in varied):
            folders = [str(stage.output_dir) for stage in varied if stage.name == name]
            print("\n" + write_comparison(folders, str(home / f"compare-{name}")), end="")
    else:
        run_stages(stages, pipeline, run.config_path, run.force)
        write_report(pipeline.output_dir, names=pipeline.stages)


if __name__ == "__main__":
    # `from` is a Python keyword, so the fields have longer names than the options.
    argv = [re.sub(r"^--(from|to)(?==|$)", r"--\1_stage", word) for word in sys.argv[1:]]
    launch(main, RunArguments, PipelineArguments, argv=argv, alone=True)
