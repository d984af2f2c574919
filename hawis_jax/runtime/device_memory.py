"""What compiled programs take of a device's memory, and what of them fits."""

from collections.abc import Callable
import math
import re
from typing import Any, NamedTuple

import jax

from hawis_jax import errors
from hawis_jax.runtime import programs

_BYTES = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30}
_AMOUNT = re.compile(r"([\d.]+)([KMG]?)(?=\)| of )")


class Needs(NamedTuple):
  """Of a device's memory, while a program runs, by XLA's account [bytes]."""

  arguments: float
  outputs: float
  temporary: float

  @property
  def memory(self) -> float:
    """All of it."""
    return sum(self)


def needs(executable: Any) -> Needs:
  """Returns what `jax.jit(...).lower(...).compile()` takes of one device."""
  sizes = executable.memory_analysis()
  # Outputs in the place of donated arguments are counted with those.
  return Needs(
    sizes.argument_size_in_bytes,
    sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
    sizes.temp_size_in_bytes,
  )


def compile_lowered(lowered: Any) -> tuple[Any, Needs]:
  """Compiles `jax.jit(...).lower(...)`: (executable, what it takes).

  The compilers of some devices refuse what these can't hold: the executable is
  None then, and what it takes as the compiler says, infinite if it does not.
  """
  try:
    executable = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    amount = _AMOUNT.search(str(error))
    size = float(amount[1]) * _BYTES[amount[2]] if amount else math.inf
    return None, Needs(0, 0, size)
  return executable, needs(executable)


def compile_fitting(
  make: Callable[[int], Any],
  most: int,
  memory: float,
  arguments: tuple,
  name: str,
) -> Any:
  """Compiles `make(n)`, jitted, for n as great as fits: `most`, or halved.

  Args:
    make: n -> a jitted function of `arguments`, which n does not change.
    most: the greatest n.
    memory: of a device [bytes].
    arguments: or their shapes.
    name: of n = 1 in an error, e.g. "one width vector".

  Raises:
    InputError: n = 1 does not fit; it says what that takes.
  """
  while True:
    executable, taken = compile_lowered(make(most).lower(*arguments))
    if executable is not None and taken.memory <= memory:
      return executable
    if most == 1:
      raise too_little(memory, taken.memory, name)
    most //= 2


def fitting(
  make: Callable[[int], Any], most: int, memory: float, name: str
) -> programs.Program:
  """Returns the program of `make(n)`, compiled by `compile_fitting`."""
  return programs.Program(
    lambda *arguments: compile_fitting(make, most, memory, arguments, name)
  )


def too_little(memory: float, needed: float, name: str) -> errors.InputError:
  """Returns the error of a device that can't hold the least there is."""
  got = "less than a compiler asks for"
  if math.isfinite(memory):
    got = f"{memory / 1e9:.3g} GB"
  least = f"are {needed / 1e9:.3g} GB" if math.isfinite(needed) else "is more"
  return errors.InputError(
    f"memory: got {got} a device, needed for {name} {least}"
  )
