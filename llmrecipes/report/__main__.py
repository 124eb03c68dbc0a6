"""The report of stages that were run one by one: python -m llmrecipes.report --path outputs/mine [--title TEXT]."""

from dataclasses import dataclass, field

from llmrecipes.config import InputError
from llmrecipes.parsing import launch
from llmrecipes.report import write_report


@dataclass
class ReportArguments:
    """Keys of `python -m llmrecipes.report`."""

    path: str = field(default="", metadata={"help": "Folder that holds the stages' folders; report.html goes there."})
    title: str = field(default="", metadata={"help": "Heading of the report; default: the folder's name."})


def main(report):
    """Writes the report."""
    if not report.path:
        raise InputError("`path` is missing; give --path FOLDER")
    write_report(report.path, report.title)


if __name__ == "__main__":
    launch(main, ReportArguments)
