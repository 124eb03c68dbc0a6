"""Judges: a model behind an OpenAI-compatible endpoint, asked about one answer or about two."""
