"""Saturating activations and the softplus family, whose derivative saturates.

sigmoid, tanh and log_sigmoid keep a: sigma' is as exact in a as it is in z. hardsigmoid, softplus
and softsign keep z: a half type rounds a to its limit long before sigma' vanishes.
"""

import torch
import torch.nn.functional as F

from manualgrad.activations.registry import register
from manualgrad.formula import (
    absolute,
    clip,
    cos,
    exp,
    expm1,
    full_like,
    log1p,
    minimum,
    sin,
    where,
)
from manualgrad.formula import sigmoid as _sigmoid
from manualgrad.formula import tanh as _tanh

# sigmoid


def sigmoid(z):
    """1 / (1 + e^-z)"""
    return _sigmoid(z)


def sigmoid_prime(a):
    """a (1 - a)"""
    return a * (1.0 - a)


def sigmoid_second(a):
    """a (1 - a) (1 - 2a)"""
    return a * (1.0 - a) * (1.0 - 2.0 * a)


register(sigmoid, sigmoid_prime, sigmoid_second, oracle=torch.sigmoid)


# tanh


def tanh(z):
    """(e^z - e^-z) / (e^z + e^-z)"""
    return _tanh(z)


def tanh_prime(a):
    """1 - a^2"""
    return 1.0 - a * a


def tanh_second(a):
    """-2 a (1 - a^2)"""
    return -2.0 * a * (1.0 - a * a)


register(tanh, tanh_prime, tanh_second, oracle=torch.tanh)


# hardsigmoid


def hardsigmoid(z):
    """min(max(z + 3, 0), 6) / 6"""
    return clip(z + 3.0, 0.0, 6.0) / 6.0


def hardsigmoid_prime(z):
    """1/6 if -3 < z < 3 else 0"""
    return where(z > -3, where(z < 3, full_like(z, 1.0 / 6.0), 0.0), 0.0)


def hardsigmoid_second(z):
    """0"""
    return full_like(z, 0.0)


register(
    hardsigmoid, hardsigmoid_prime, hardsigmoid_second, oracle=F.hardsigmoid, kinks=(-3.0, 3.0)
)


# log_sigmoid


def log_sigmoid(z):
    """log(1 / (1 + e^-z)) = min(z, 0) - log(1 + e^-|z|)"""
    return minimum(z, 0.0) - log1p(exp(-absolute(z)))


def log_sigmoid_prime(a):
    """1 - e^a"""
    return -expm1(a)


def log_sigmoid_second(a):
    """-e^a (1 - e^a)"""
    return exp(a) * expm1(a)


register(log_sigmoid, log_sigmoid_prime, log_sigmoid_second, oracle=F.logsigmoid)


# softplus -- exactly z once beta z > threshold, as in torch


def softplus(z, beta=1.0, threshold=20.0):
    """log(1 + e^(beta z)) / beta"""
    return where(beta * z > threshold, z, log1p(exp(beta * z)) / beta)


def softplus_prime(z, beta=1.0, threshold=20.0):
    """1 / (1 + e^-(beta z))"""
    return where(beta * z > threshold, 1.0, _sigmoid(beta * z))


def softplus_second(z, beta=1.0, threshold=20.0):
    """beta p (1 - p), p = 1 / (1 + e^-(beta z))"""
    p = _sigmoid(clip(beta * z, -80.0, 80.0))
    return where(beta * z > threshold, 0.0, beta * p * (1.0 - p))


register(softplus, softplus_prime, softplus_second, oracle=F.softplus, kinks=(20.0,))


# softsign -- z is clipped where 1 + |z| = |z| to every digit, so that inf / inf does not arise

HUGE = 1e30


def softsign(z):
    """z / (1 + |z|)"""
    c = clip(z, -HUGE, HUGE)
    return c / (1.0 + absolute(c))


def softsign_prime(z):
    """1 / (1 + |z|)^2"""
    return 1.0 / ((1.0 + absolute(z)) * (1.0 + absolute(z)))


def softsign_second(z):
    """-2 sign(z) / (1 + |z|)^3"""
    r = 1.0 / (1.0 + absolute(z))
    return where(z < 0, 2.0 * r * r * r, where(z > 0, -2.0 * r * r * r, 0.0))


register(softsign, softsign_prime, softsign_second, oracle=F.softsign, kinks=(0.0,))


# sine -- sigma(+-inf) and its derivatives are NaN: the limits do not exist


def sine(z):
    """sin z"""
    return sin(z)


def sine_prime(z):
    """cos z"""
    return cos(z)


def sine_second(z):
    """-sin z"""
    return -sin(z)


register(sine, sine_prime, sine_second, oracle=torch.sin)
