"""What depends on the backend or on jax's version, in one place."""

from collections.abc import Iterator
import contextlib
import os

import jax
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


@contextlib.contextmanager
def compiling_for(target: str) -> Iterator[None]:
  """Programs traced within are made for another platform than this one."""
  global _target
  before, _target = _target, target
  try:
    yield
  finally:
    _target = before
