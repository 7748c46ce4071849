"""Gates: z times a smooth step, z Phi(z). All keep z, for a is not monotone in it.

Far out the step is exactly 0 or 1 in every dtype. Clipping z there, at FAR, keeps inf * 0 from
becoming NaN: gelu(-inf) = 0 and gelu'(inf) = 1, where torch's own answer is NaN.
"""

import torch
import torch.nn.functional as F

from manualgrad.activations.registry import register
from manualgrad.formula import (
    clip,
    erf,
    exp,
    full_like,
    log1p,
    maximum,
    sigmoid,
    tanh,
    where,
)

FAR = 1e4
NEARER = 80.0  # sigma'' is differentiated as it stands, so e^NEARER must not overflow in float32
SQRT_HALF = 0.7071067811865476
INV_SQRT_TAU = 0.3989422804014327  # 1 / sqrt(2 pi)

# gelu -- Phi and phi are the standard normal distribution and density


def gelu(z):
    """z Phi(z)"""
    return 0.5 * maximum(z, -FAR) * (1.0 + erf(SQRT_HALF * z))


def gelu_prime(z):
    """Phi(z) + z phi(z)"""
    c = clip(z, -FAR, FAR)
    return 0.5 * (1.0 + erf(SQRT_HALF * c)) + c * INV_SQRT_TAU * exp(-0.5 * c * c)


def gelu_second(z):
    """(2 - z^2) phi(z)"""
    c = clip(z, -FAR, FAR)
    square = c * c
    return (2.0 - square) * (INV_SQRT_TAU * exp(-0.5 * square))


register(gelu, gelu_prime, gelu_second, oracle=F.gelu)


# gelu_tanh -- Phi(z) ~ (1 + tanh u) / 2 = 1 / (1 + e^-2u), 2u = 2 sqrt(2 / pi) (z + 0.044715 z^3)

TWICE_SQRT_2_OVER_PI = 1.5957691216057308
CUBIC = 0.044715
NEAR = 30.0  # p is 0 or 1 well before; v' grows with z^2, so clip no later


def gelu_tanh(z):
    """z p, p = 1 / (1 + e^-v), v = 2 sqrt(2 / pi) (z + 0.044715 z^3)"""
    c = clip(z, -NEAR, NEAR)
    v = TWICE_SQRT_2_OVER_PI * (c + CUBIC * c * c * c)
    return maximum(z, -NEAR) / (1.0 + exp(-v))


def gelu_tanh_prime(z):
    """p + z v' p (1 - p)"""
    c = clip(z, -0.125 * NEARER, 0.125 * NEARER)
    e = exp(-TWICE_SQRT_2_OVER_PI * (c + CUBIC * c * c * c))
    p = 1.0 / (1.0 + e)
    dv = TWICE_SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * c * c)
    return p + c * dv * p * (e * p)  # e p = 1 - p, which would lose digits that dv magnifies


def gelu_tanh_second(z):
    """p (1 - p) (2 v' + z v'' + z v'^2 (1 - 2p))"""
    c = clip(z, -0.125 * NEARER, 0.125 * NEARER)
    e = exp(-TWICE_SQRT_2_OVER_PI * (c + CUBIC * c * c * c))
    p = 1.0 / (1.0 + e)
    dv = TWICE_SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * c * c)
    ddv = TWICE_SQRT_2_OVER_PI * 6.0 * CUBIC * c
    return p * (e * p) * (2.0 * dv + c * ddv + c * dv * dv * (e * p - p))


register(
    gelu_tanh, gelu_tanh_prime, gelu_tanh_second, oracle=lambda z: F.gelu(z, approximate="tanh")
)


# quick_gelu -- Phi(z) ~ sigmoid(1.702 z)

QUICK = 1.702


def quick_gelu(z):
    """z p, p = 1 / (1 + e^-(1.702 z))"""
    return maximum(z, -FAR) / (1.0 + exp(-QUICK * z))


def quick_gelu_prime(z):
    """p + 1.702 z p (1 - p)"""
    c = clip(z, -FAR, FAR)
    p = sigmoid(QUICK * c)
    return p + QUICK * c * p * (1.0 - p)


def quick_gelu_second(z):
    """1.702 p (1 - p) (2 + 1.702 z (1 - 2p))"""
    c = clip(z, -0.5 * NEARER, 0.5 * NEARER)
    p = sigmoid(QUICK * c)
    q = 1.0 - p
    return QUICK * p * q * (2.0 + QUICK * c * (q - p))


register(
    quick_gelu,
    quick_gelu_prime,
    quick_gelu_second,
    oracle=lambda z: z * torch.sigmoid(1.702 * z),
)


# silu


def silu(z):
    """z p, p = 1 / (1 + e^-z)"""
    return maximum(z, -FAR) / (1.0 + exp(-z))


def silu_prime(z):
    """p + z p (1 - p)"""
    c = clip(z, -FAR, FAR)
    p = sigmoid(c)
    return p + c * p * (1.0 - p)


def silu_second(z):
    """p (1 - p) (2 + z (1 - 2p))"""
    c = clip(z, -NEARER, NEARER)
    p = sigmoid(c)
    q = 1.0 - p
    return p * q * (2.0 + c * (q - p))


register(silu, silu_prime, silu_second, oracle=F.silu)


# mish -- the step is t = tanh(softplus z); p is softplus' derivative, the sigmoid


def mish(z):
    """z tanh(log(1 + e^z))"""
    return maximum(z, -FAR) * tanh(log1p(exp(z)))


def mish_prime(z):
    """t + z (1 - t^2) p"""
    c = clip(z, -FAR, FAR)
    t = tanh(log1p(exp(c)))
    p = sigmoid(c)
    return t + c * (1.0 - t * t) * p


def mish_second(z):
    """(1 - t^2) p (2 + z (1 - p - 2 t p))"""
    c = clip(z, -NEARER, NEARER)
    t = tanh(log1p(exp(c)))
    p = sigmoid(c)
    return (1.0 - t * t) * p * (2.0 + c * (1.0 - p - 2.0 * t * p))


register(mish, mish_prime, mish_second, oracle=F.mish)


# hardswish


def hardswish(z):
    """z min(max(z + 3, 0), 6) / 6"""
    return maximum(z, -FAR) * clip(z + 3.0, 0.0, 6.0) / 6.0


def hardswish_prime(z):
    """0 if z <= -3, z / 3 + 1/2 if z < 3, else 1"""
    return where(z <= -3, 0.0, where(z < 3, z / 3.0 + 0.5, 1.0))


def hardswish_second(z):
    """1/3 if -3 < z < 3 else 0"""
    return where(z > -3, where(z < 3, full_like(z, 1.0 / 3.0), 0.0), 0.0)


register(hardswish, hardswish_prime, hardswish_second, oracle=F.hardswish, kinks=(-3.0, 3.0))


# gaussian


def gaussian(z):
    """e^(-z^2)"""
    return exp(-z * z)


def gaussian_prime(z):
    """-2 z e^(-z^2)"""
    c = clip(z, -FAR, FAR)
    return -2.0 * c * exp(-c * c)


def gaussian_second(z):
    """(4 z^2 - 2) e^(-z^2)"""
    c = clip(z, -FAR, FAR)
    return (4.0 * c * c - 2.0) * exp(-c * c)


register(gaussian, gaussian_prime, gaussian_second, oracle=lambda z: torch.exp(-torch.square(z)))
