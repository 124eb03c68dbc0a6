"""llmrecipes: the whole ChatGPT recipe on the Hugging Face stack, from corpus to aligned model."""

__version__ = "0.1.0"
