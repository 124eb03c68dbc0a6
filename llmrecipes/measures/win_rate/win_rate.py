"""Share of prompts on which a score (predictions) beats the baseline's (references), ties half; bootstrap interval.

For `evaluate.load("llmrecipes/measures/win_rate")`; computed by llmrecipes.metrics."""

import datasets
import evaluate

from llmrecipes import metrics


class WinRate(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")})
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return metrics.win_rate(predictions, references)._asdict()
