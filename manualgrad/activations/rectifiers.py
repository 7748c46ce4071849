"""Rectifiers: the identity for z > 0, something smaller below.

relu, leaky_relu and relu6 are piecewise linear, so their sigma' keeps a. elu, selu and celu keep
z: 1 + a loses every digit of e^z in bfloat16 once a is near -1.
sigma'' is differentiated as it stands for third derivatives, so its exp must not overflow.
At a kink, and at NaN where sigma' is constant on each side, sigma' is what torch takes.
"""

import torch
import torch.nn.functional as F

from manualgrad.activations.registry import register
from manualgrad.formula import clip, exp, expm1, full_like, maximum, minimum, where

# identity -- the output layer of a regression, and sigma^0 of the input


def identity(z):
    """z"""
    return z


def identity_prime(z):
    """1"""
    return full_like(z, 1.0)


def identity_second(z):
    """0"""
    return full_like(z, 0.0)


register(identity, identity_prime, identity_second, oracle=torch.clone)


# relu


def relu(z):
    """max(z, 0)"""
    return maximum(z, 0.0)


def relu_prime(a):
    """0 if a <= 0 else 1"""
    return where(a <= 0, 0.0, full_like(a, 1.0))


def relu_second(a):
    """0"""
    return full_like(a, 0.0)


register(relu, relu_prime, relu_second, oracle=F.relu, kinks=(0.0,))


# leaky_relu -- a has z's sign because the slope is not negative


def leaky_relu(z, negative_slope=0.01):
    """z if z > 0 else m z"""
    return where(z > 0, z, negative_slope * z)


def leaky_relu_prime(a, negative_slope=0.01):
    """1 if a > 0 else m"""
    return where(a > 0, 1.0, full_like(a, negative_slope))


def leaky_relu_second(a, negative_slope=0.01):
    """0"""
    return full_like(a, 0.0)


register(leaky_relu, leaky_relu_prime, leaky_relu_second, oracle=F.leaky_relu, kinks=(0.0,))


# relu6


def relu6(z):
    """min(max(z, 0), 6)"""
    return clip(z, 0.0, 6.0)


def relu6_prime(a):
    """1 if 0 < a < 6 else 0"""
    return where(a <= 0, 0.0, where(a >= 6, 0.0, full_like(a, 1.0)))


def relu6_second(a):
    """0"""
    return full_like(a, 0.0)


register(relu6, relu6_prime, relu6_second, oracle=F.relu6, kinks=(0.0, 6.0))


# relu_squared -- keeps z: the square root of a would overflow and underflow with a


def relu_squared(z):
    """max(z, 0)^2"""
    return maximum(z, 0.0) * maximum(z, 0.0)


def relu_squared_prime(z):
    """2 max(z, 0)"""
    return 2.0 * maximum(z, 0.0)


def relu_squared_second(z):
    """0 if z <= 0 else 2"""
    return where(z <= 0, 0.0, full_like(z, 2.0))


register(
    relu_squared,
    relu_squared_prime,
    relu_squared_second,
    oracle=lambda z: F.relu(z).square(),
    kinks=(0.0,),
)


# elu


def elu(z, alpha=1.0):
    """z if z > 0 else alpha (e^z - 1)"""
    return where(z > 0, z, alpha * expm1(z))


def elu_prime(z, alpha=1.0):
    """1 if z > 0 else alpha e^z"""
    return where(z > 0, 1.0, alpha * exp(z))


def elu_second(z, alpha=1.0):
    """0 if z > 0 else alpha e^z"""
    return where(z > 0, 0.0, alpha * exp(minimum(z, 0.0)))


register(elu, elu_prime, elu_second, oracle=F.elu, kinks=(0.0,))


# selu -- elu with the two constants of Klambauer et al. 2017 that keep mean 0 and variance 1

SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805


def selu(z):
    """scale (z if z > 0 else alpha (e^z - 1))"""
    return SELU_SCALE * where(z > 0, z, SELU_ALPHA * expm1(z))


def selu_prime(z):
    """scale (1 if z > 0 else alpha e^z)"""
    return SELU_SCALE * where(z > 0, 1.0, SELU_ALPHA * exp(z))


def selu_second(z):
    """scale (0 if z > 0 else alpha e^z)"""
    return SELU_SCALE * where(z > 0, 0.0, SELU_ALPHA * exp(minimum(z, 0.0)))


register(selu, selu_prime, selu_second, oracle=F.selu, kinks=(0.0,))


# celu -- elu made continuously differentiable for every alpha


def celu(z, alpha=1.0):
    """z if z > 0 else alpha (e^(z / alpha) - 1)"""
    return where(z > 0, z, alpha * expm1(z / alpha))


def celu_prime(z, alpha=1.0):
    """1 if z > 0 else e^(z / alpha)"""
    return where(z > 0, 1.0, exp(z / alpha))


def celu_second(z, alpha=1.0):
    """0 if z > 0 else e^(z / alpha) / alpha"""
    return where(z > 0, 0.0, exp(minimum(z, 0.0) / alpha) / alpha)


register(celu, celu_prime, celu_second, oracle=F.celu, kinks=(0.0,))
