"""The one exception of this folder."""

from __future__ import annotations


class BundleError(ValueError):
    """A bundle or an image that cannot be used: one sentence with the reason and the remedy."""
