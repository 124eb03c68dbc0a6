"""llmrecipes: the whole ChatGPT recipe on the Hugging Face stack, from corpus to aligned model."""

import logging

__version__ = "0.1.0"

# Where peft finds it, bitsandbytes reports at import that an optional CPU kernel is missing.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
