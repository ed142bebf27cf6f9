"""Differentiation of graphs at compile time: from a loss to gradients, from gradients to a training step; relevance."""

from .gradients import gradients, training_form
from .relevance import relevance
from .sparse import split_partly_trained

__all__ = ["gradients", "relevance", "split_partly_trained", "training_form"]
