"""The exceptions that `main` prints as one line, without a traceback."""

from collections.abc import Iterable, Sequence
import difflib
import json
import math
import numbers
from typing import Any


class InputError(ValueError):
  """Bad input from the user: config, data, checkpoint, width vector, device.

  The message is one line that names the field, what it got and what is allowed.
  Any exception that is not of this file is a defect of ours.

  >>> import hawis_jax as hx
  >>> try:
  ...   hx.evolution(tournament=0)
  ... except hx.InputError as error:
  ...   print(error)
  evolution, tournament: got 0, needed is an integer from 1
  """

  def __init__(self, message: str):
    super().__init__(printable(message))


class DivergenceError(ArithmeticError):
  """A loss, reward or policy ran away; names the step, the last checkpoint."""


class Preempted(Exception):  # noqa: N818
  """The run was asked to stop and has saved; names what it goes on from."""


class UnreachableError(Exception):
  """The storage can't be reached now; what was saved goes on later."""


def printable(text: str) -> str:
  r"""Returns text with its line ends and control characters escaped.

  A file's name may hold them, and then write what it likes on a terminal.

  >>> printable("a\nb")
  'a\\nb'
  """
  return "".join(
    c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
  )


def check_fields(
  given: Iterable[str], allowed: Sequence[str], name: str
) -> None:
  """Checks the names of some fields.

  Args:
    given: the names.
    allowed: those there are.
    name: of what has them, for the error.

  Raises:
    InputError: the first that is not allowed, with the likeliest meant.
  """
  for field in given:
    if field not in allowed:
      raise InputError(
        f"{name}: got {field!r}, allowed are {', '.join(allowed)}"
        f"{suggestion(field, allowed)}"
      )


def suggestion(given: Any, allowed: Sequence[str]) -> str:
  """Returns what ends a message about a name: the likeliest meant, if any.

  >>> suggestion("policu", ["policy", "random"])
  "; did you mean 'policy'?"
  """
  close = difflib.get_close_matches(str(given), allowed, 1)
  return f"; did you mean {close[0]!r}?" if close else ""


def check_key(key: Any) -> None:
  """Checks that a key of random numbers is one.

  Args:
    key: of `jax.random.key`, or uint32 `[2]` of `jax.random.PRNGKey`.

  Raises:
    InputError: it is something else, such as a seed.
  """
  kind, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
  is_raw = kind == "uint32" and shape == (2,)
  if not is_raw and not (str(kind).startswith("key<") and shape == ()):
    got = repr(key) if isinstance(key, int) else f"a {type(key).__name__}"
    raise InputError(f"key: got {got}, needed is one key, as jax.random.key(0)")


def check_count(value: Any, name: str, least: int = 1) -> None:
  """Checks an integer that is at least so great.

  Raises:
    InputError: it is not, in words that say the `name`.
  """
  if not isinstance(value, numbers.Integral) or value < least:
    raise InputError(
      f"{name}: got {value!r}, needed is an integer from {least}"
    )


def check_images(images: Any, labels: Any, num_classes: int) -> None:
  """Checks what a net is given to classify.

  Args:
    images: an array, uint8 `[N, H, W, C]`.
    labels: an array of integers `[N]` from 0 to below `num_classes`.
    num_classes: of the net.

  Raises:
    InputError: names which of them, what it got and what is needed.
  """
  if images.dtype != "uint8" or images.ndim != 4 or not images.size:
    raise InputError(
      f"images: got {images.dtype} of shape {images.shape}, needed are uint8 "
      "[N, H, W, C], at least one"
    )
  check_labels(labels, len(images), num_classes)


def check_inputs(inputs: Any) -> None:
  """Checks arrays `[N, ...]` that a user's own net is given to classify.

  Raises:
    InputError: they are none, or no numbers.
  """
  if inputs.dtype.kind not in "buif" or not inputs.ndim or not inputs.size:
    raise InputError(
      f"images: got {inputs.dtype} of shape {inputs.shape}, needed are numbers "
      "[N, ...], at least one"
    )


def check_labels(labels: Any, num: int, num_classes: int) -> None:
  """Checks the labels of `num` images, as `check_images`.

  Raises:
    InputError: they are none of theirs.
  """
  if labels.dtype.kind not in "iu" or labels.shape != (num,):
    raise InputError(
      f"labels: got {labels.dtype} of shape {labels.shape}, needed are "
      f"integers of shape ({num},), one an image"
    )
  if labels.min() < 0 or labels.max() >= num_classes:
    raise InputError(
      f"labels: got {labels.min()} to {labels.max()}, allowed are 0 to "
      f"{num_classes - 1}"
    )


def parse_json(text: str | bytes, name: str) -> Any:
  """Returns what JSON text holds, as UTF-8, with or without its mark.

  Numbers are finite and an object has no field twice, which JSON leaves open.

  Raises:
    InputError: it is other than that; `name` is for the message.
  """
  try:
    if isinstance(text, bytes):
      text = text.decode("utf-8-sig")
    return json.loads(
      text.removeprefix("\ufeff"),
      object_pairs_hook=_object,
      parse_float=_finite,
      parse_constant=_finite,
    )
  except ValueError as error:
    raise InputError(f"{name}: can't be read: {error}") from error
  except RecursionError as error:
    raise InputError(f"{name}: can't be read: too many brackets") from error


def _object(pairs):
  fields = dict(pairs)
  if len(fields) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"{twice!r} is given twice")
  return fields


def _finite(text):
  if not math.isfinite(float(text)):
    raise ValueError(f"got the number {text}, allowed are finite ones")
  return float(text)


def parse_fields(text: str, name: str) -> dict[str, Any]:
  """Returns the object of fields that a user wrote in JSON.

  Raises:
    InputError: it is no JSON, or something else; `name` is for the message.
  """
  values = parse_json(text, name)
  if not isinstance(values, dict):
    raise InputError(
      f"{name}: got a {type(values).__name__}, needed is an object of fields"
    )
  return values
