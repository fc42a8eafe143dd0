"""`compare`, under the name that it has in the documentation of earlier versions."""

from ._draw.compare import compare

__all__ = ["compare"]
