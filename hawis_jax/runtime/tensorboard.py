"""TensorBoard files, where tensorboardX is installed.

Its `SummaryWriter` writes in a thread, which a full disk or a clock that is set
back can end without a word; here every report is written before it returns.
"""

from collections.abc import Mapping
import pathlib
import time

from hawis_jax.runtime import storage

try:
  from tensorboardX import event_file_writer
  from tensorboardX import summary
  from tensorboardX.proto import event_pb2
except ImportError:  # an optional extra
  event_file_writer = None


def can_write(workdir: pathlib.Path) -> bool:
  """Whether there is anything to write with, and a folder to write to."""
  return event_file_writer is not None and not storage.is_remote(workdir)


class Board:
  """The events of one stage."""

  def __init__(self, folder: pathlib.Path, start: int):
    """Opens a new file; steps after `start` in older ones will be hidden.

    Raises:
      InputError: it can't be written to.
    """
    self._folder = folder
    with storage.write_errors(folder):
      folder.mkdir(parents=True, exist_ok=True)
      # Names hold the second, which may be that of the file before.
      number = len(list(folder.iterdir()))
      self._writer = event_file_writer.EventsWriter(
        str(folder / "events"), f".{number}"
      )
      if start or number:
        begin = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=start + 1, session_log=begin)

  def add(self, step: int, values: Mapping[str, float]) -> None:
    """Writes scalars by name.

    Raises:
      InputError: the file can't be written to.
    """
    with storage.write_errors(self._folder):
      for name, value in values.items():
        self._write(step=step, summary=summary.scalar(name, value))
      self._writer.flush()

  def close(self) -> None:
    """Ends the file; all that was added is in it."""
    try:  # to close it, wherever its folder is now
      self._writer.close()
    except OSError:
      with storage.write_errors(self._folder):
        raise

  def _write(self, **event):
    self._writer.write_event(event_pb2.Event(wall_time=time.time(), **event))
