"""Pruning: what of a network can go, what it costs, and what is left.

``structure.py`` finds channels, heads, units and blocks that can be taken out together, ``shrink.py`` takes them out.
``patterns.py`` says which single weights may become zero so that kernels can leave them out. ``layers.py`` is the
common ground: the weights of a graph as matrices.
"""
