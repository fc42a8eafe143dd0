"""The old place of `_net.shadow`."""

from .._net.shadow import copied, original, shadow

__all__ = ["copied", "original", "shadow"]
