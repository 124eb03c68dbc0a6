"""Nats of each text (predictions) over its UTF-8 bytes (references), in bits; bootstrap interval over texts.

For `evaluate.load("llmrecipes/hf_metrics/bits_per_byte")`; computed by llmrecipes.metrics.
`compute(..., groups=[...])` takes one value of each text: texts of one group (of one book, say) are resampled together."""

import math

import datasets
import evaluate

from llmrecipes import metrics


class BitsPerByte(evaluate.Metric):
    """`evaluate.load` module; see the module's docstring."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description="", features=features)

    def _compute(self, predictions, references, groups=None):
        estimate = metrics.ratio(predictions, references, groups=groups)
        bits = [value / math.log(2) for value in estimate[:3]]
        return metrics.Estimate(*bits, estimate.n)._asdict()
