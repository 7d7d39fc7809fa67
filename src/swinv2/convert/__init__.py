"""Converts weights of other libraries to folders of this package, and back."""

from swinv2.convert.conversion import ConversionReport, convert, load

__all__ = ["ConversionReport", "convert", "load"]
