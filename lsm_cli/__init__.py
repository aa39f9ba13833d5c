"""Long user-behaviour sequence modelling for advertising."""

__version__ = "0.1.0"
