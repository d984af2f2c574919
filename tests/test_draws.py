"""Random numbers of reads: as good as independent ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from hawis_jax.crossbar import draws

_SHAPE = 12, 12, 40  # positions and columns


def _keys(rng, num):
  """As the engine makes them: of the images of one layer of one chip."""
  key = jax.random.key(int(rng.integers(2**31)))
  return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num))


def _words(pairs, shape):
  keys = jax.random.wrap_key_data(jnp.asarray(pairs, jnp.uint32))
  return np.asarray(draws.read_words(keys, shape))


def test_each_bit_of_key_and_place_flips_half_of_the_words_bits(rng):
  """Whichever bit of the word; of 98,304 pairs a share varies by 0.0016."""
  num = 4096
  pairs = rng.integers(0, 2**32, (num, 2), np.uint32)
  words = _words(pairs, (32,))
  flips = []
  for bit in range(64):
    other = pairs.copy()
    other[:, bit // 32] ^= np.uint32(1 << bit % 32)
    changed = words[:, :24] ^ _words(other, (24,))
    flips.append([(changed >> place & 1).mean() for place in range(32)])
  for bit in range(3):  # of the place
    here = np.flatnonzero(~np.arange(32) >> bit & 1)[:12]
    changed = words[:, here] ^ words[:, here | 1 << bit]
    flips.append([(changed >> place & 1).mean() for place in range(32)])
  assert np.abs(np.array(flips) - 0.5).max() < 0.012
  assert np.abs(np.array(flips[:64]) - 0.5).mean() < 0.002


def test_words_of_a_key_are_all_different(rng):
  words = np.asarray(draws.read_words(_keys(rng, 2), (200_000,)))
  assert all(len(np.unique(of_key)) == len(of_key) for of_key in words)
  assert (words[0] == words[1]).mean() < 1e-4


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_word_follows_from_key_and_place_alone(rng, kind):
  key = jax.random.key(int(rng.integers(2**31)), impl=kind)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(5))
  words = np.asarray(draws.read_words(keys, (6, 8)))
  some = np.asarray(draws.read_words(keys[jnp.array([3, 1])], (48,)))
  np.testing.assert_array_equal(words[[3, 1]].reshape(2, -1), some)


def test_normals_are_normal_and_independent(rng):
  """Of neighbouring columns, positions, images; of words and of their squares.

  p-values above 1e-4 and correlations within 4.5 standard deviations.
  """
  words = draws.read_words(_keys(rng, 40), _SHAPE)
  normals = np.asarray(draws.normal(words), np.float64)
  assert stats.kstest(normals.ravel(), "norm").pvalue > 1e-4
  fifth = np.floor(stats.norm.cdf(normals) * 5).astype(int)
  for lag in ((0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0)):
    first = tuple(
      slice(0, n - step) for n, step in zip(words.shape, lag, strict=True)
    )
    second = tuple(
      slice(step, n) for n, step in zip(words.shape, lag, strict=True)
    )
    for x in (normals, normals**2):
      here, there = x[first].ravel(), x[second].ravel()
      found = np.corrcoef(here, there)[0, 1]
      assert abs(found) < 4.5 / np.sqrt(here.size), lag
    pairs = 5 * fifth[first].ravel() + fifth[second].ravel()
    assert stats.chisquare(np.bincount(pairs, minlength=25)).pvalue > 1e-4, lag


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_sums_over_many_words_scatter_as_they_should(rng, kind):
  """As a column's noise over images: variances of sums are not too regular."""
  keys = jax.random.split(
    jax.random.key(int(rng.integers(2**31)), impl=kind), 500
  )
  normals = np.asarray(
    draws.normal(draws.read_words(keys, (1024,))), np.float64
  )
  sums = normals.sum(1) / 32
  assert stats.kstest(sums, "norm").pvalue > 1e-4
  low, high = stats.chi2.ppf((1e-4, 1 - 1e-4), len(sums))
  assert low < np.square(sums).sum() < high
