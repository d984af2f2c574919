"""Programs that fit a device's memory, and those that do not."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import errors
from hawis_jax.runtime import device_memory


def _make(n):
  """Sums of products that take n times as much at a time."""

  def sums(x):
    parts = x.reshape(-1, n)
    found = jax.lax.map(
      lambda part: jnp.sort(part[:, None] * x[None])[:, -1], parts
    )
    return found.reshape(-1)

  return jax.jit(sums)


_X = np.linspace(0, 1, 64, dtype=np.float32)


def _taken(n):
  return device_memory.needs(_make(n).lower(_X).compile()).memory


def test_it_is_halved_until_it_fits():
  tried = []

  def make(n):
    tried.append(n)
    return _make(n)

  sums = device_memory.fitting(make, 32, _taken(8), "one")
  expected = np.asarray(_make(32)(_X))
  np.testing.assert_allclose(sums(_X), expected, rtol=1e-5)
  assert tried == [32, 16, 8]
  sums(_X)
  assert tried == [32, 16, 8]  # compiled once


def test_it_says_what_the_least_takes():
  needed = _taken(1)
  sums = device_memory.fitting(_make, 4, needed - 1, "one vector")
  with pytest.raises(errors.InputError) as error:
    sums(_X)
  assert str(error.value) == (
    f"memory: got {(needed - 1) / 1e9:.3g} GB a device, needed for one vector "
    f"are {needed / 1e9:.3g} GB"
  )


@pytest.mark.parametrize(
  "text, gigabytes",
  [
    (
      "Ran out of memory on HBM, the total memory required for HLO temporaries "
      "(20.74G) exceeds available HBM (15.75G).",
      20.74,
    ),
    ("Ran out of memory in memory space hbm. Used 512.00M of 15.75G hbm.", 0.5),
    ("Out of memory", np.inf),
  ],
)
def test_a_compilers_refusal_says_how_much(text, gigabytes):
  def refuse():
    raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {text}")

  lowered = types.SimpleNamespace(compile=refuse)
  executable, needs = device_memory.compile_lowered(lowered)
  assert executable is None
  assert needs.memory == pytest.approx(gigabytes * 2**30)


@pytest.mark.parametrize(
  "needed, least", [(2e9, "are 2 GB"), (np.inf, "is more")]
)
def test_what_is_not_known_is_no_number(needed, least):
  error = device_memory.too_little(np.inf, needed, "one vector")
  assert str(error) == (
    "memory: got less than a compiler asks for a device, needed for one "
    f"vector {least}"
  )


def test_other_errors_of_a_compiler_are_not_hidden():
  def fail():
    raise jax.errors.JaxRuntimeError("INTERNAL: a bug (20.74G)")

  with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
    device_memory.compile_lowered(types.SimpleNamespace(compile=fail))
