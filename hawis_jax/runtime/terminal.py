"""Standard streams, which may be closed, or their disk full, at any time."""

import contextlib
import os
from typing import TextIO


def say(text: str, stream: TextIO | None, end: str = "\n") -> None:
  """Prints; where that can't be, as after `| head`, to nobody.

  No run ends because its log can't be written.

  Args:
    text: to print.
    stream: such as sys.stdout; None: it was closed before the start.
    end: follows the text.
  """
  if stream is None:
    return
  # A file name may hold what is no UTF-8.
  text = text.encode("utf-8", "backslashreplace").decode()
  try:
    print(text, end=end, file=stream, flush=True)
  except OSError:
    # What is still in its buffer would fail again when the program ends.
    with contextlib.suppress(OSError):
      discard(stream.fileno())


def discard(descriptor: int) -> None:
  """Lets nothing come of what is written to a descriptor."""
  nothing = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nothing, descriptor)
  os.close(nothing)
