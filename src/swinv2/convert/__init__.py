"""Weights of other libraries into this package's folders, and back."""

from swinv2.convert.conversion import Account, convert, load

__all__ = ["Account", "convert", "load"]
