"""PPO with a reward model or reward functions, on `transformers.Trainer`.

`config` holds the arguments, `trainer` the numbered steps, `rollout` the sampled batch, `rewards` the scoring,
`policy_value` the trained module, `losses` the mathematics, `prompts` the reading and ordering of prompts.
"""
