"""Building blocks that more than one family may use."""
