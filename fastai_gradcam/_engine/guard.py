"""The old place of `_net.guard`."""

from .._net.guard import evaluating, unchanged, undisturbed, without_checkpoints

__all__ = ["evaluating", "unchanged", "undisturbed", "without_checkpoints"]
