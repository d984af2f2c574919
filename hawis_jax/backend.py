"""What depends on the backend or on jax's version, in one place."""

from collections.abc import Callable, Iterator
import contextlib
import os
from typing import Any

import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import jaxlib

from hawis_jax import errors

# jaxlib 0.10 routes CPU convolutions through YNNPACK, which is slow for the
# thin convolutions and weight gradients of these nets (2-3x, measured).
_CPU_FLAG = (
  "--xla_cpu_experimental_ynn_fusion_type="
  "-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
)

_target = None  # of `compiling_for`


def configure() -> None:
  """Sets XLA flags; must run before jax starts its backend.

  A flag unknown to XLA aborts the process, so it is set only for the jaxlib it
  was checked with, and never over a user's own choice.
  """
  flags = os.environ.get("XLA_FLAGS", "")
  if jaxlib.__version__ == "0.10.2" and "ynn_fusion" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} {_CPU_FLAG}".strip()


@contextlib.contextmanager
def configured() -> Iterator[None]:
  """XLA flags are those of `configure` within, as before afterwards."""
  before = os.environ.get("XLA_FLAGS")
  configure()
  try:
    yield
  finally:
    if before is None:
      os.environ.pop("XLA_FLAGS", None)
    else:
      os.environ["XLA_FLAGS"] = before


def start() -> None:
  """Starts jax's backend.

  Raises:
    InputError: it is one that is not there.
  """
  try:
    jax.devices()
  except Exception as error:  # of any type, by the backend
    reason = " ".join(str(error).split()) or type(error).__name__
    raise errors.InputError(
      f"JAX_PLATFORMS: got {os.environ.get('JAX_PLATFORMS', '')!r}, which "
      f"can't be started here ({reason}); cpu always can"
    ) from error


def platform() -> str:
  """What programs are made for: "cpu", "gpu" or "tpu"."""
  return _target or jax.default_backend()


def used_inputs(traced: Any, arguments: Any, select: Callable) -> Any:
  """Returns which inputs of a traced function some of its outputs depend on.

  Args:
    traced: of `jax.jit(function).trace(*arguments)`.
    arguments: as they were given to it.
    select: of what it returns, the outputs.

  Returns:
    bools, in the structure of `arguments`.
  """
  marked = jax.tree.map(lambda _: False, traced.out_info)
  numbers = jax.tree.unflatten(
    jax.tree.structure(marked), range(len(jax.tree.leaves(marked)))
  )
  chosen = set(jax.tree.leaves(select(numbers)))
  wanted = [number in chosen for number in jax.tree.leaves(numbers)]
  _, used = partial_eval.dce_jaxpr(traced.jaxpr.jaxpr, wanted)
  return jax.tree.unflatten(jax.tree.structure(arguments), used)


def typed_key(key: Any) -> Any:
  """Returns a key of `jax.random.key`, of one or of a `jax.random.PRNGKey`.

  Raises:
    InputError: it is none, e.g. a seed.
  """
  errors.check_key(key)
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key)
  usual = jax.random.key(0).dtype  # for which programs are compiled
  if key.dtype != usual:
    raise errors.InputError(f"key: got a {key.dtype}, needed is a {usual}")
  return key


@contextlib.contextmanager
def compiling_for(target: str) -> Iterator[None]:
  """Programs traced within are made for another platform than this one."""
  global _target
  before, _target = _target, target
  try:
    yield
  finally:
    _target = before
