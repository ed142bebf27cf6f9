"""Post-training quantization: a float graph and samples become a graph with quantizers that ``passes.integers`` lowers.

``place`` says where quantizers stand, ``observe`` runs the graph over the samples, ``ranges`` chooses scales from
what it saw, ``equalize``, ``smooth``, ``correct`` and ``rounding`` repair what that costs, ``quantizer`` is the table
of contents. Nothing here emulates: what a quantized graph computes is found out by running it.
"""
