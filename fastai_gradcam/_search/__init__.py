"""The search of the default layer, and of how a layer's output lies in space. One need not know how: see README.md."""
