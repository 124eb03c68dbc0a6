"""From sampled responses to preference pairs: sampling, rankings (from a file or simulated), pairs, data set cards."""
