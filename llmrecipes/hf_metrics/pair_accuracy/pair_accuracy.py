"""Share of pairs whose chosen score (predictions) is above the rejected one (references), ties half.

For `evaluate.load("llmrecipes/hf_metrics/pair_accuracy")`; computed by llmrecipes.metrics.
`compute(..., groups=[...])` takes one value of each pair: the ranking or prompt it comes from."""

import datasets
import evaluate

from llmrecipes import metrics


class PairAccuracy(evaluate.Metric):
    """`evaluate.load` module; see the module's docstring."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")})
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description="", features=features)

    def _compute(self, predictions, references, groups=None):
        return metrics.pair_accuracy(predictions, references, groups)._asdict()
