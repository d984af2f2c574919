"""Loads configuration files."""

import importlib.machinery
import importlib.util
import os
import re
import sys
from typing import Any

import ml_collections

from hawis_jax import errors


def load(
  path: str | os.PathLike, *arguments: Any, name: str | None = None
) -> ml_collections.ConfigDict:
  """Returns what `get_config` of a configuration file does, locked.

  Args:
    path: of the file.
    *arguments: of `get_config`.
    name: of the file, for errors; None: its path.

  Raises:
    InputError: one line, whatever goes wrong in the file.
  """
  loader = importlib.machinery.SourceFileLoader("config_file", str(path))
  spec = importlib.util.spec_from_loader(loader.name, loader)
  module = importlib.util.module_from_spec(spec)
  sys.modules[loader.name] = module  # where its dataclasses look
  try:
    loader.exec_module(module)
    config = module.get_config(*arguments)
    if isinstance(config, ml_collections.ConfigDict):
      return config.lock()
  except errors.InputError:
    raise
  except (Exception, SystemExit) as error:
    raise errors.InputError(f"{name or path}: {reason(error)}") from error
  raise errors.InputError(
    f"{name or path}: got a {type(config).__name__} from get_config(), needed "
    "is hawis_jax.config.settings.default() with some values changed"
  )


def reason(error: BaseException) -> str:
  """Returns one line; of unknown fields ml_collections has many, quoted."""
  text = str(error)
  hint = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
  name = re.search(r'Key "(\w+)" does not exist|^\W*(\w+)\W*$', text)
  if isinstance(error, KeyError | AttributeError) and hint:
    return f"no field {hint[2]!r}; did you mean {hint[1]!r}?"
  if isinstance(error, KeyError | AttributeError) and name:
    return f"no field {name[1] or name[2]!r}"
  if isinstance(error, FileNotFoundError):
    return f"{error.strerror}: {error.filename!r}"
  return f"{type(error).__name__}: {' '.join(text.split())}"
