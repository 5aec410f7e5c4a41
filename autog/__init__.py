"""autog: from nothing to a small language model that others can trust and use."""

__version__ = "0.1.0"
