"""nervure compiles neural networks into self-contained native programs for CPUs and edge devices."""

__version__ = "0.1.0"
