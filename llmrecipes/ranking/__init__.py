"""From sampled responses to preference pairs: rankings (by people, a model, a file or simulated raters), pairs, quality."""
