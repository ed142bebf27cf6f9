"""Differentiation of graphs at compile time: from a loss to gradients, from gradients to a training step."""

from .gradients import gradients, training_form
from .sparse import split_partly_trained

__all__ = ["gradients", "split_partly_trained", "training_form"]
