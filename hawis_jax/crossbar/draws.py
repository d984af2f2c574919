"""Random numbers of cells and of reads, counter-based.

A block of Threefry-2x32 (Salmon et al., SC 2011) gives 64 bits. A cell's word
is half of the block whose counter is the cell's place in its tile; the other
half is that of its partner in the differential pair. So a number depends on key
and place alone, at half the work of `jax.random`, which spends a block a word.

A read needs a number a column and position: as many as the products have
outputs, so that Threefry would cost several times these. Its words are those of
a mixing function of 32 bits, keyed by the 64 of a Threefry key.

Axes: 2 = (positive, negative) array, R rows and C columns of a tile.
"""

import math

import chex
import jax
from jax.extend import random as jax_random
import jax.numpy as jnp
import numpy as np


def words(key: chex.PRNGKey, shape: tuple[int, ...]) -> chex.Array:
  """Returns 32 random bits a cell, uint32 of `shape` = (2 or 1, R, C).

  A longer tile starts with the words of a shorter one of as many columns. `key`
  is of any implementation, and consumed.
  """
  pair = _pair(key)
  place = jnp.arange(math.prod(shape[1:]), dtype=jnp.uint32)
  counts = jnp.concatenate([jnp.zeros_like(place), place])
  both = jax_random.threefry_2x32(pair, counts).reshape(2, *shape[1:])
  return both[: shape[0]]


def _pair(key):
  """64 bits of a key, uint32 `[2]`: a Threefry key, and half of another one.

  Not drawn with it: under vmap, other generators draw by the place in a batch.
  """
  return jax.random.key_data(key)[:2]


def read_words(keys: chex.PRNGKey, shape: tuple[int, ...]) -> chex.Array:
  """Returns 32 random bits a number of a read, uint32 `[B, *shape]`.

  A word follows from its key, of `keys` `[B]`, and its place; those of a key
  are all different, up to 2^32 of them.
  """
  pairs = jax.vmap(_pair)(keys)
  place = jnp.arange(math.prod(shape), dtype=jnp.uint32)[None]
  mixed = _mix(place + pairs[:, :1])
  return _mix(mixed ^ pairs[:, 1:]).reshape(len(keys), *shape)


def _mix(x):
  """A permutation of 32-bit words, of github.com/skeeto/hash-prospector.

  tests/test_draws.py has how evenly input bits flip output bits.
  """
  x ^= x >> 16
  x *= np.uint32(0x21F0AAAD)
  x ^= x >> 15
  x *= np.uint32(0xD35A2D97)
  return x ^ (x >> 15)


def uniform(bits: chex.Array) -> chex.Array:
  """Returns float32 in [0, 1), multiples of 2^-24, from uint32 `bits`."""
  return (bits >> 8).astype(jnp.float32) * np.float32(2**-24)


def normal(bits: chex.Array) -> chex.Array:
  """Returns float32 of N(0, 1), symmetric, up to 5.4 in magnitude."""
  # Half a step up: symmetric about 0, and never -1 or 1, which are infinite.
  centred = (bits >> 8).astype(jnp.int32) - 2**23
  inside = centred.astype(jnp.float32) * np.float32(2**-23)
  return np.float32(math.sqrt(2)) * jax.lax.erf_inv(inside + np.float32(2**-24))
