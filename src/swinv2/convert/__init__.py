"""Weights of other libraries into this package's folders, and back."""

from swinv2.convert.conversion import ConversionReport, convert, load

__all__ = ["ConversionReport", "convert", "load"]
