"""vidtune: fine-tune video language models with numbers that can be trusted."""

import logging

__version__ = "0.1.0"

# PEFT imports it, and it then says that a faster four-bit kernel for CPUs lies on a hub: the first line of every run.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
