"""The old place of `_net.layers`."""

from .._net.layers import Layer, Spot, named_layers, unwrap

__all__ = ["Layer", "Spot", "named_layers", "unwrap"]
