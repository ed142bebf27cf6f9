"""Differentiation of graphs at compile time: from a loss to gradients, from gradients to a training step."""

from .gradients import gradients, training_form

__all__ = ["gradients", "training_form"]
