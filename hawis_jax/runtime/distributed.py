"""The processes of one run: how they meet, and what the first does alone.

All of them run the same program with the same configuration, share a file
system, and take every decision alike: whatever one process alone can know (the
time, a file that is being written) the first one decides and tells.
"""

from collections.abc import Callable
import hashlib
import json
import re
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils
import numpy as np

from hawis_jax import errors
from hawis_jax.runtime import storage

T = TypeVar("T")

_LEAST_BYTES = 256  # sent at a time: a length of its own would compile anew


def join(
  address: str | None, num_processes: int | None, process_id: int | None
) -> None:
  """Meets the other processes; must come before jax's backend starts.

  Args:
    address: host:port of the first process, reachable from all.
    num_processes: of the run.
    process_id: of this one, from 0. All None: the cluster tells (TPU pods,
      GKE, SLURM, MPI).

  Raises:
    InputError: the arguments are none of these, or no cluster is found.
  """
  given = {
    "--coordinator_address": address,
    "--num_processes": num_processes,
    "--process_id": process_id,
  }
  missing = [name for name, value in given.items() if value is None]
  if 0 < len(missing) < len(given):
    raise errors.InputError(
      f"{missing[0]}: missing, needed are {', '.join(given)}, or none of them "
      "where the cluster tells"
    )
  if not missing:
    _check(address, num_processes, process_id)
  try:
    jax.distributed.initialize(address, num_processes, process_id)
  except (RuntimeError, ValueError) as error:
    reason = " ".join(str(error).split())
    raise errors.InputError(
      f"--distributed: {reason}; where no cluster is detected, needed are "
      f"{', '.join(given)}"
    ) from error


def _check(address, num_processes, process_id):
  if not re.fullmatch(r"\S+:\d+", address):
    raise errors.InputError(
      f"--coordinator_address: got {address!r}, allowed is host:port"
    )
  if num_processes < 1:
    raise errors.InputError(
      f"--num_processes: got {num_processes}, allowed is at least 1"
    )
  if not 0 <= process_id < num_processes:
    raise errors.InputError(
      f"--process_id: got {process_id}, allowed are 0 to {num_processes - 1}"
    )


def is_first() -> bool:
  """Whether this process writes and shows what the run finds."""
  return jax.process_index() == 0


def on_first(function: Callable[[], T]) -> T:
  """Calls a function on the first process; all return what it returned there.

  No process goes on before the function has ended.

  Args:
    function: returns what JSON can hold.

  Raises:
    InputError: the first process raised it; so do all.
    UnreachableError: the first process can't reach its storage.
  """
  if jax.process_count() == 1:
    return function()
  answer = {}
  if is_first():
    try:
      answer["value"] = function()
    except errors.InputError as error:
      answer["error"] = str(error)
    except Exception as error:
      if not storage.passes(error):
        raise
      answer["stop"] = " ".join(str(error).split())
  answer = json.loads(_from_first(json.dumps(answer).encode()))
  if "error" in answer:
    raise errors.InputError(answer["error"])
  if "stop" in answer:
    raise errors.UnreachableError(answer["stop"])
  return answer["value"]


def first_then_others(function: Callable[[], T]) -> T:
  """Calls a function on all processes; files the first makes are there then."""
  made = []
  on_first(lambda: made.append(function()))
  return made[0] if made else function()


def check_same(value: Any, name: str) -> None:
  """Checks that JSON-able values of all processes are equal.

  Raises:
    InputError: they are not; on all processes.
  """
  if jax.process_count() == 1:
    return
  text = json.dumps(value, sort_keys=True)
  digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
  everyone = multihost_utils.process_allgather(digest)
  differs = (everyone != everyone[0]).any(1)
  if differs.any():
    raise errors.InputError(
      f"{name}: got others on process {int(differs.argmax())} than on process "
      "0, allowed are the same on all"
    )


def _from_first(content):
  """The first process's bytes."""
  send = multihost_utils.broadcast_one_to_all
  length = int(send(np.int32(len(content))))
  size = max(_LEAST_BYTES, 1 << (length - 1).bit_length())
  padded = np.zeros(size, np.uint8)
  if is_first():
    padded[:length] = np.frombuffer(content, np.uint8)
  return np.asarray(send(padded), np.uint8)[:length].tobytes()
