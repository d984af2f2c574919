"""Standard streams, which whoever reads them may close at any time."""

import os
from typing import TextIO


def say(text: str, stream: TextIO, end: str = "\n") -> None:
  """Prints; where nobody reads any more, as after `| head`, to nobody.

  Args:
    text: to print.
    stream: such as sys.stdout.
    end: follows the text.
  """
  try:
    print(text, end=end, file=stream, flush=True)
  except BrokenPipeError:
    # What is still in its buffer would fail again when the program ends.
    discard(stream.fileno())


def discard(descriptor: int) -> None:
  """Lets nothing come of what is written to a descriptor."""
  nothing = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nothing, descriptor)
  os.close(nothing)
