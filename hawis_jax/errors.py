"""The exceptions that `main` prints as one line, without a traceback."""


class InputError(ValueError):
  """Bad input from the user: config, data, checkpoint, width vector, device.

  The message is one line that names the field, what it got and what is allowed.
  Any exception that is not of this file is a defect of ours.
  """


class DivergenceError(ArithmeticError):
  """A loss or reward is not finite; names the step and the last checkpoint."""
