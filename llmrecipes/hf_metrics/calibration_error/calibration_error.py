"""Expected calibration error of confidences (predictions) against whether they were right (references).

For `evaluate.load("llmrecipes/hf_metrics/calibration_error")`; computed by llmrecipes.metrics."""

import datasets
import evaluate

from llmrecipes import metrics


class CalibrationError(evaluate.Metric):
    """`evaluate.load` module; see the module's docstring."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("bool")})
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"calibration_error": metrics.calibration_error(predictions, references)}
