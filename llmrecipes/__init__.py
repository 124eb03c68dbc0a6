"""llmrecipes: the whole ChatGPT recipe on the Hugging Face stack, from corpus to aligned model."""

import logging

__version__ = "0.1.0"

# peft imports bitsandbytes if it is installed, which then reports that an optional CPU kernel is missing.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
