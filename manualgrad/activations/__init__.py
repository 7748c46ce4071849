"""Activation functions: sigma, sigma' and sigma'' side by side, each written once.

A formula's parameter says what backward must keep: sigma'(z) keeps the pre-activation; sigma'(a)
keeps the output, which the next layer stores anyway. Which of the two an activation is written
in is a question of digits: a, wherever sigma' is as exact in a as in z, in half types too.
"""

from manualgrad.activations import gates, rectifiers, sigmoidal
from manualgrad.activations.names import activation_of, activations
from manualgrad.activations.registry import ACTIVATIONS, Activation, register

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "activation_of",
    "activations",
    "gates",
    "rectifiers",
    "register",
    "sigmoidal",
]
