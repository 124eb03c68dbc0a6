"""Readers that turn public texts of the package index into our row shapes, and the rule that scores answers to them.

texts: pretraining documents · dialogues: questions with answers, safety prompts, gold-versus-distractor pairs ·
scrub: what is cleaned or dropped · gold: the score of a response. `configs/smalltalk/*.yaml` says which archive each
reader gets. Every reader is a function(rows) -> rows, chosen by a source's `reader:` key.
"""
