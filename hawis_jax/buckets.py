"""Folders in Google Cloud Storage, for machines that share no file system.

Paths are `etils.epath` ones, which have pathlib's methods; gcsfs, of the extra
`gcs`, makes the requests. An object is written whole or not at all, but
nothing can be renamed at once, appended to or locked. So a checkpoint is what
has its seal, which is written last; lines are gathered and the object that
holds them is written anew; and a lock is an object whose owner changes it all
the time.
"""

from collections.abc import Iterator, Sequence
import contextlib
import importlib.util
import json
import logging
import os
import sys
import threading
import time
import uuid

from etils import epath
import fsspec

from hawis_jax import errors
from hawis_jax import terminal

# For epath and gcsfs, when they are first used: gcsfs makes all requests, also
# where TensorFlow is installed, and in the one way that is tested.
os.environ.setdefault("EPATH_USE_TF", "false")
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

PREFIX = "gs://"
_REQUEST = 30.0  # the most that a request may take [s]
_BEAT = 20.0  # time between two changes of a lock [s]
_SILENCE = 60.0  # time without a change after which its owner ends itself [s]
_PATIENCE = 80.0  # and after which others take it for dead [s]
_POLL = 1.0  # [s]
_PROBE = "probe"

# Of Google's answers: those that another try may not get.
_PASSING_CODES = (408, 429)
_PASSING_WORDS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL")

_log = logging.getLogger(__name__)


def holds(path: str | os.PathLike) -> bool:
  """Whether a path is one of a bucket."""
  return os.fspath(path).startswith(PREFIX)


def folder(address: str, field: str) -> epath.Path:
  """Returns the path of an address; nothing need be there.

  Args:
    address: such as "gs://bucket/runs/digits".
    field: that holds it, for errors.

  Raises:
    InputError: it has no bucket or no name in it, or one that is a pattern;
      gcsfs is missing.
  """
  bucket, _, name = address.removeprefix(PREFIX).partition("/")
  if not bucket or not name.strip("/"):
    raise errors.InputError(
      f"{field}: got {address!r}, allowed is gs://<bucket>/<folder>"
    )
  if set(address) & set("*?[]"):  # gcsfs would take them for patterns
    raise errors.InputError(
      f"{field}: got {address!r}, allowed is a name without any of *?[]"
    )
  if importlib.util.find_spec("gcsfs") is None:
    raise errors.InputError(
      f"{field}: got {address!r}, for which gcsfs is missing: pip install "
      "'hawis_jax[gcs]'; or give a folder of this machine's file system"
    )
  fsspec.config.conf["gcs"] = {
    # Else listings are kept, which others' writes do not change.
    "use_listings_cache": False,
    "requests_timeout": _REQUEST,
  }
  return epath.Path(address.rstrip("/"))


def _requests():
  """What makes requests: the same one that epath has."""
  return fsspec.filesystem("gcs", finalize_on_close=True)


def trouble(error: BaseException) -> errors.UnreachableError | None:
  """What passes by itself, as a network that is down; None: it does not.

  Args:
    error: of a bucket, or any other one.
  """
  if isinstance(error, errors.UnreachableError):
    return error
  if "gcsfs" not in sys.modules:
    return None
  import aiohttp
  import gcsfs.retry
  from google.auth import exceptions as auth
  import requests

  network = (
    aiohttp.ClientError,
    requests.exceptions.RequestException,
    auth.TransportError,
    ConnectionError,
    TimeoutError,
  )
  code = getattr(error, "code", None)
  passing = isinstance(error, network)
  if isinstance(error, gcsfs.retry.HttpError):
    code = int(code or 500)
    passing = code >= 500 or code in _PASSING_CODES
  elif isinstance(error, ValueError):  # TensorStore's
    text = str(error)
    passing |= PREFIX in text and any(w in text for w in _PASSING_WORDS)
  if not passing:
    return None
  reason = " ".join(str(error).split()) or type(error).__name__
  return errors.UnreachableError(f"the bucket can't be reached: {reason}")


def is_refusal(error: BaseException) -> bool:
  """Whether an error that does not pass is a bucket's, and not one of ours."""
  package = type(error).__module__.split(".")[0]
  return (
    isinstance(error, OSError)
    or package in ("gcsfs", "google")
    or (isinstance(error, ValueError) and PREFIX in str(error))  # TensorStore's
  )


def check_writable(path: epath.Path) -> None:
  """Writes to a folder, and deletes what it wrote; raises what goes wrong."""
  probe = path / _PROBE
  probe.write_bytes(b"")
  probe.unlink(missing_ok=True)  # another process may have checked too


def contents(path: epath.Path) -> list[epath.Path]:
  """Returns all objects of a folder, also of those in it; or none.

  What goes wrong is raised: epath and gcsfs would say that there is no folder.
  """
  start = os.fspath(path)
  names = _requests().find(start)
  start = start.removeprefix(PREFIX) + "/"
  return [
    path / name.removeprefix(start)
    for name in names
    if name.startswith(start) and name != start + _PROBE
  ]


class Lines:
  """An object of lines; as `files.Lines`."""

  def __init__(self, path: epath.Path):
    """Reads what is there."""
    self._path = path
    self._content = path.read_bytes() if path.exists() else b""
    self._is_written = path.exists()

  def read(self) -> list[bytes]:
    """Returns all lines with their ends."""
    return self._content.splitlines(keepends=True)

  def rewrite(self, lines: Sequence[bytes]) -> None:
    """Replaces all lines."""
    self._content = b"".join(lines)
    self._is_written = False
    self.flush()

  def append(self, line: bytes) -> None:
    """Adds a line, which `flush` will write."""
    self._content += line
    self._is_written = False

  def flush(self) -> None:
    """Writes the object, if there is anything new."""
    if not self._is_written:
      self._path.write_bytes(self._content)
      self._is_written = True


@contextlib.contextmanager
def locked(path: epath.Path) -> Iterator[None]:
  """Holds a folder for this process alone.

  The object `lock` tells its owner, who changes it every 20 s. Nobody's clock
  matters: who finds a lock waits whether it changes, and takes it if it does
  not for 80 s, as after a kill. Who could not change its own for 60 s, because
  it was stopped or cut off, ends at once: another one may be about to start.

  Args:
    path: the folder.

  Raises:
    InputError: another process holds it; the bucket refuses.
  """
  lock, owner = path / "lock", uuid.uuid4().hex
  pulse = _Pulse(path, lock, owner, _take(path, lock, owner))
  try:
    yield
  finally:
    pulse.stop()
    try:
      if _owner(_content(lock)) == owner:
        lock.unlink(missing_ok=True)
    except Exception as error:  # it will be found dead
      _log.warning("can't remove %s: %s", lock, error)


def _take(path, lock, owner):
  """Makes the lock, if need be in the place of a dead one; returns when [s]."""
  others = errors.InputError(
    f"{path}: another process is running in it, allowed is one at a time"
  )
  begun = time.monotonic()
  if _create(lock, owner):
    return begun
  found, since = _content(lock), time.monotonic()
  terminal.say(
    f"{path}: got the lock of another process, which may have been killed; "
    f"waiting {_PATIENCE:.0f} s for a sign of life",
    sys.stderr,
  )
  while found and time.monotonic() - since < _PATIENCE:
    time.sleep(_POLL)
    now = _content(lock)
    if now is not None and now != found:
      raise others
    found = now  # None: it has ended
  if found and not _remove_dead(lock, found):
    raise others
  begun = time.monotonic()
  if not _create(lock, owner):
    raise others
  return begun


def _remove_dead(lock, found):
  """Deletes the lock if it is still the one that was found; says whether."""
  try:
    generation = _requests().info(os.fspath(lock))["generation"]
    if _content(lock) != found:
      return False
    bucket, _, name = os.fspath(lock).removeprefix(PREFIX).partition("/")
    _requests().call(
      "DELETE", "b/{}/o/{}", bucket, name, ifGenerationMatch=generation
    )
  except FileNotFoundError:  # somebody else did
    return True
  except FileExistsError:  # gcsfs' for another generation: it is taken
    return False
  return True


def _create(lock, owner):
  """Makes the lock, unless there is one; says whether it is this owner's."""
  try:
    _requests().pipe_file(os.fspath(lock), _beaten(owner, 0), mode="create")
  except FileExistsError:  # or the answer to a first request was lost
    return _owner(_content(lock)) == owner
  return True


class _Pulse:
  """Changes a lock until it is stopped; ends the process where it can't."""

  def __init__(self, path, lock, owner, begun):
    """Starts two threads: a request may hang, the other one counts."""
    self._path, self._lock, self._owner = path, lock, owner
    self._last = begun  # the start of the last change that succeeded
    self._stopped = threading.Event()
    for function in (self._beat, self._count):
      threading.Thread(target=function, daemon=True).start()

  def stop(self):
    """Ends both; a request that is on its way may still come."""
    self._stopped.set()

  def _beat(self):
    number = 0
    while not self._stopped.wait(_BEAT):
      number += 1
      start = time.monotonic()
      try:
        if _owner(_content(self._lock)) != self._owner:
          self._end("error", "another process has taken this run over", 2)
          return
        if not self._stopped.is_set():
          self._lock.write_bytes(_beaten(self._owner, number))
          self._last = start
      except Exception as error:  # the next beat may reach it
        _log.warning("can't change %s: %s", self._lock, error)

  def _count(self):
    while not self._stopped.wait(_POLL):
      if time.monotonic() - self._last > _SILENCE:
        text = f"its lock could not be changed for {_SILENCE:.0f} s"
        self._end("stopped", f"{text}; the same command goes on", 75)
        return

  def _end(self, how, why, status):
    terminal.say(f"{how}: {self._path}: {why}", sys.stderr)
    os._exit(status)


def _beaten(owner, number):
  return json.dumps({"owner": owner, "beat": number}).encode()


def _content(lock):
  try:
    return lock.read_bytes()
  except FileNotFoundError:
    return None


def _owner(content):
  return json.loads(content)["owner"] if content else None
