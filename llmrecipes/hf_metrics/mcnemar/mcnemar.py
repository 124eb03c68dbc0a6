"""McNemar's exact test of two models' hits (predictions, references) on the same items.

For `evaluate.load("llmrecipes/hf_metrics/mcnemar")`; computed by llmrecipes.metrics.
`compute(..., groups=[...])` takes one value of each item: items of one group (wordings of one question) fall together."""

import datasets
import evaluate

from llmrecipes import metrics


class McNemar(evaluate.Metric):
    """`evaluate.load` module; see the module's docstring."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("bool"), "references": datasets.Value("bool")})
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description="", features=features)

    def _compute(self, predictions, references, groups=None):
        only_first, only_second, p_value = metrics.mcnemar(predictions, references, groups)
        return {"only_first": only_first, "only_second": only_second, "p_value": p_value}
