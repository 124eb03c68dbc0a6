"""Share of prompts on which a score (predictions) beats the baseline's (references), ties half.

For `evaluate.load("llmrecipes/hf_metrics/win_rate")`; computed by llmrecipes.metrics.
`compute(..., groups=[...])` takes one value of each prompt: prompts of one group are wordings of one question."""

import datasets
import evaluate

from llmrecipes import metrics


class WinRate(evaluate.Metric):
    """`evaluate.load` module; see the module's docstring."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")})
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description="", features=features)

    def _compute(self, predictions, references, groups=None):
        return metrics.win_rate(predictions, references, groups)._asdict()
