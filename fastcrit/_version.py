"""The package's version, for whatever writes it into its results."""

__version__ = "0.1.0"
