"""Products with several chips' weights: all ways give the same sums."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import backend
from hawis_jax import crossbar
from hawis_jax.arithmetic import binary
from hawis_jax.networks import products
from hawis_jax.robustness import monte_carlo

_WAYS = [
  products.Way(method, parts)
  for method, parts in itertools.product(products.METHODS, (False, True))
]
_CHIPS = 3
# Kernels, strides and padding of the ResNets; None is a linear layer.
_WINDOWS = [(3, 1, 1), (3, 2, 1), (1, 2, 0), None]
_WINDOWS.append(pytest.param((7, 2, 3), marks=pytest.mark.slow))
# What is vmapped: inputs, weights.
_AXES = [(None, None), (None, 0), (0, None), (0, 0)]


def _product(window):
  if window is None:
    return binary.multiply
  _, strides, padding = window
  return functools.partial(binary.convolve, strides=strides, padding=padding)


def _operands(rng, window, axes, values):
  """Bits, and weights of `values(shape)`."""
  size = window[0] if window else 0
  x = rng.integers(0, 2, (_CHIPS, 2, *(9, 9)[: 2 * bool(size)], 5))
  w = values((_CHIPS, *(size, size)[: 2 * bool(size)], 5, 4))
  return tuple(
    operand.astype(np.float32) if axis == 0 else operand[0].astype(np.float32)
    for operand, axis in zip((x, w), axes, strict=True)
  )


def _convolve(x, w, strides, padding):
  """One tap after the other, in float64."""
  edge = (padding, padding)
  x = np.pad(x.astype(np.float64), ((0, 0), edge, edge, (0, 0)))
  taps = len(w)
  out = x.shape[1] - taps + 1
  return sum(
    x[:, i : i + out : strides, j : j + out : strides] @ w[i, j]
    for i in range(taps)
    for j in range(taps)
  )


def _expected(x, w, axes, window):
  """Of every chip, where anything is vmapped."""
  product = np.matmul
  if window:
    product = functools.partial(_convolve, strides=window[1], padding=window[2])
  chips = [
    product(*(a[s] if n == 0 else a for a, n in zip((x, w), axes, strict=True)))
    for s in range(_CHIPS)
  ]
  return np.stack(chips) if 0 in axes else chips[0]


def _on_chips(way, window, axes):
  with products.using(way):
    function = products.on_chips(_product(window))
  return jax.vmap(function, axes) if 0 in axes else function


@pytest.mark.exact
@pytest.mark.parametrize("window", _WINDOWS)
def test_all_ways_have_the_same_sums(window, rng):
  """Of integers to the bit, also of bfloat16; of others as float32 rounds."""
  integers = functools.partial(rng.integers, -1, 2)
  for axes in _AXES:
    bits, signs = _operands(rng, window, axes, integers)
    _, weights = _operands(rng, window, axes, lambda s: rng.normal(size=s))
    calls = [_on_chips(way, window, axes) for way in _WAYS]
    short = [x.astype(jnp.bfloat16) for x in (bits, signs)]

    @jax.jit
    def all_ways(bits, signs, weights, short, calls=calls):
      return [
        (call(bits, signs), call(*short), call(bits, weights)) for call in calls
      ]

    exact = _expected(bits, signs, axes, window)
    real = _expected(bits, weights, axes, window)
    terms = weights.size // (4 * (_CHIPS if axes[1] == 0 else 1))
    found = all_ways(bits, signs, weights, short)
    for way, (of_float32, of_bfloat16, rounded) in zip(
      _WAYS, found, strict=True
    ):
      assert of_bfloat16.dtype == np.float32
      np.testing.assert_array_equal(of_float32, exact, str(way))
      np.testing.assert_array_equal(of_bfloat16, exact, str(way))
      # Of bfloat16 weights some are off by 1e-2, of two parts by 4e-5.
      np.testing.assert_allclose(
        rounded, real, rtol=0, atol=1e-6 * np.sqrt(terms), err_msg=str(way)
      )


def test_a_loop_has_each_chips_own_bits(rng):
  """As without vmap."""
  window, axes = (3, 1, 1), (0, 0)
  x, w = _operands(rng, window, axes, lambda s: rng.normal(size=s))
  for parts in (False, True):
    way = products.Way("loop", parts)
    together = jax.jit(_on_chips(way, window, axes))(x, w)
    alone = jax.jit(_on_chips(way, window, (None, None)))
    for s in range(_CHIPS):
      np.testing.assert_array_equal(together[s], alone(x[s], w[s]))


@pytest.mark.parametrize("way", _WAYS, ids=str)
@pytest.mark.parametrize("axes", [(None, 0), (0, None), (0, 0)], ids=str)
def test_gradients_are_those_of_the_product(way, axes, rng):
  """<g, product(x, w')> = <gradient of w, w'> for any w', and so of inputs."""
  window = (3, 2, 1)
  x, w = _operands(rng, window, axes, lambda s: rng.normal(size=s))
  other_x, other_w = (rng.normal(size=a.shape) for a in (x, w))
  call = _on_chips(way, window, axes)
  g = rng.normal(size=_expected(x, w, axes, window).shape).astype(np.float32)
  pull_back = jax.jit(lambda x, w, g: jax.vjp(call, x, w)[1](g))
  by_x, by_w = map(np.asarray, pull_back(x, w, g))
  for left, right, grad, other in (
    (x, other_w, by_w, other_w),
    (other_x, w, by_x, other_x),
  ):
    moved = (g * _expected(left, right, axes, window)).sum()
    np.testing.assert_allclose((grad * other).sum(), moved, rtol=1e-4)


@pytest.mark.exact
@pytest.mark.slow
def test_the_engine_has_the_same_bits_by_all_methods(tiny):
  """Stuck cells alone: those of the CPU's planes, in an accelerator's form."""
  module, variables, images, labels = tiny
  device = crossbar.Device(stuck_off=0.1, stuck_on=0.02)
  setting = monte_carlo.Setting(module, variables, device)

  def correct(target, method):
    with backend.compiling_for(target), products.using(products.Way(method)):
      found = monte_carlo.classify(
        *(jax.random.key(5), setting, images, labels, range(4))
      )
      return np.concatenate(list(found))

  reference = correct("cpu", "loop")
  assert 0 < reference.mean() < 1
  for method in products.METHODS:
    np.testing.assert_array_equal(correct("tpu", method), reference)
