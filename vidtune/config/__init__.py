"""What may be configured: schema dataclasses and interpolations."""
