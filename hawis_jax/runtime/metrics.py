"""Metrics of a run: metrics.jsonl, TensorBoard where installed, progress.

`<workdir>/metrics.jsonl` has one line a report:

    {"time": 1760000000.0, "stage": "pretrain", "step": 20, "values": {...},
     "crc": 123}

`time` is in seconds since 1970, `step` is the steps done, a value that is not
finite is null; `crc` is the CRC-32 of the line without it, by which a line that
was changed is noticed and dropped. A stage that goes on from a step drops its
lines after that step, because it computes them again: however often a run is
interrupted, each (stage, step) occurs once.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import contextlib
import json
import math
import pathlib
import shutil
import sys
import time
from typing import Self, TextIO
import zlib

import tqdm

from hawis_jax import errors
from hawis_jax.runtime import storage
from hawis_jax.runtime import tensorboard
from hawis_jax.runtime import terminal

_SHOW_SECONDS = 2.0  # least time between two lines of progress
_DONE_SECONDS = 1.0  # what takes less was finished by an earlier start
# At a terminal; a rate that is not known is a question mark.
_BAR = (
  "{desc}  {n_fmt}/{total_fmt} |{bar:10}| {rate_fmt}  ETA {remaining}{postfix}"
)


class Metrics:
  """The metrics of one run; as a context manager it closes its stages.

  Of several processes only the first records; the others pass
  `recording=False`, and what they report goes nowhere.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    recording: bool = True,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Opens `<workdir>/metrics.jsonl` and drops a line that a crash cut short.

    Args:
      workdir: of the run; created where missing.
      recording: False makes every method do nothing.
      stream: takes the progress; default sys.stdout.
      clock: in seconds, for the rate of progress.

    Raises:
      InputError: the directory or the file can't be written to.
    """
    self.recording = recording
    self.directory = workdir
    self.stream = stream or sys.stdout
    self.clock = clock
    self._path = self.directory / "metrics.jsonl"
    self._stages = contextlib.ExitStack()
    self._counts = []  # "stage 3 of 5", "net 2 of 4"
    self._took = []  # seconds of the nets so far
    if recording:
      storage.make_directory(self.directory)
      self._lines = storage.Lines(self._path)
      self._drop(lambda line: False)

  @contextlib.contextmanager
  def counted(
    self, what: str, name: str, number: int, of: int
  ) -> Iterator[None]:
    """Says in every line which one this is, and at its end how long it took.

    Args:
      what: "stage" of the run, or, within one, "net".
      name: of it.
      number: of it, from 1.
      of: how many there are.
    """
    before, start = self._counts, self.clock()
    self._counts = [*before, f"{what} {number} of {of}"]
    yield
    took, self._took = self.clock() - start, self._took if number > 1 else []
    if took >= _DONE_SECONDS:
      self._took = [*self._took, took]
    if self.recording:
      line = f"{', '.join(self._counts)}: {name} took {clock(took)}"
      if what == "net" and self._took and number < of:
        rest = sum(self._took) / len(self._took) * (of - number)
        line += f"; about {clock(rest)} for the other {of - number}"
      self.say(line)
    self._counts = before

  def stage(
    self,
    name: str,
    total: int,
    start: int = 0,
    shares: Collection[str] = (),
  ) -> "Progress":
    """Begins a stage, or continues it after an interruption.

    Args:
      name: of the stage.
      total: its steps.
      start: steps done before; 0 drops every line of the stage.
      shares: values that are shown in percent, beside accuracies.
    """
    if self.recording:
      self._drop(
        lambda line: (
          line["stage"] == name and (start == 0 or line["step"] > start)
        )
      )
    return self._stages.enter_context(
      contextlib.closing(Progress(self, name, total, start, shares))
    )

  def append(self, stage: str, step: int, values: Mapping[str, float]) -> None:
    """Writes one line to the file; `Progress.report` is the way to it."""
    finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
    now = round(time.time(), 3)
    line = dict(time=now, stage=stage, step=step, values=finite)
    line = json.dumps(line | {"crc": _crc(line)})
    with storage.write_errors(self._path):
      self._lines.append(line.encode() + b"\n")

  def flush(self) -> None:
    """Makes sure that all lines are written, before others rely on them."""
    if self.recording:
      with storage.write_errors(self._path):
        self._lines.flush()

  def say(self, text: str, end: str = "\n") -> None:
    """Prints to the stream; see `terminal.say`."""
    terminal.say(text, self.stream, end)

  def close(self) -> None:
    """Closes the stages."""
    self._stages.close()
    self.flush()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _drop(self, unwanted):
    """Rewrites the file without unwanted and damaged lines, if it has any."""
    with storage.write_errors(self._path):
      lines = self._lines.read()
      good = [(x, p) for x in lines if (p := _parse(x))]
      if damaged := len(lines) - len(good):
        self.say(f"{self._path}: dropped {damaged} damaged lines")
      kept = [line for line, content in good if not unwanted(content)]
      if kept != lines:
        self._lines.rewrite(kept)


class Progress:
  """Takes the reports of one stage; made by `Metrics.stage`."""

  def __init__(
    self,
    metrics: Metrics,
    name: str,
    total: int,
    start: int,
    shares: Collection[str],
  ):
    """See `Metrics.stage`."""
    self._metrics = metrics
    self._name = name
    self._total = total
    self._shares = shares
    counts = ", ".join(metrics._counts)
    self._title = f"{counts}: {name}" if counts else name
    self._since = None  # (step, time) of the first report: it has compiled
    self._shown = None  # when the last line was
    self._bar = None
    self._board = None
    if metrics.recording:
      metrics.say(
        f"{self._title}  begins at {start}/{total}; the first step compiles"
      )
    if metrics.recording and tensorboard.can_write(metrics.directory):
      folder = metrics.directory / "tensorboard" / name
      self._board = tensorboard.Board(folder, start)

  def report(self, step: int, values: Mapping[str, float]) -> None:
    """Records what was measured when `step` steps were done.

    Args:
      step: steps done, more than in the report before.
      values: scalars by name; the terminal shows an accuracy in percent.

    Raises:
      InputError: the file can't be written to.
    """
    if not self._metrics.recording:
      return
    values = {name: float(value) for name, value in values.items()}
    self._metrics.append(self._name, step, values)
    if self._board:
      self._board.add(step, values)
    self._show(step, values)

  def show(self, step: float, values: Mapping[str, float]) -> None:
    """Shows progress within a step, without recording it."""
    if self._metrics.recording and step < self._total:
      self._show(int(step), values)

  def close(self) -> None:
    """Ends the bar of progress and the TensorBoard file."""
    if self._bar:
      self._bar.close()
    self._bar = None
    if self._board:
      self._board.close()
    self._board = None

  def _show(self, step, values):
    """Prints progress, unless the last line is too recent."""
    now = self._metrics.clock()
    first, last = self._shown is None, step >= self._total
    if first:
      self._since = step, now
    if not (first or last or now - self._shown >= _SHOW_SECONDS):
      return
    self._shown = now
    compiled, since = self._since
    rate = (step - compiled) / max(now - since, 1e-9)
    shown = _shown(values, self._shares)
    stream = self._metrics.stream
    if not stream.isatty():
      line = progress_line(self._title, step, self._total, shown, rate)
      self._metrics.say(line)
      return
    if not self._bar:
      self._bar = _Bar(
        total=self._total,
        initial=step,
        desc=self._title,
        unit="step",
        file=_Stream(stream),
        bar_format=_BAR,
        miniters=1,
      )
    # A line that wraps could not be written over.
    self._bar.ncols = shutil.get_terminal_size().columns - 1
    self._bar.set_postfix_str("  ".join(shown), refresh=False)
    self._bar.update(step - self._bar.n)
    self._bar.refresh()


class _Bar(tqdm.tqdm):
  """A bar without the thread that looks whether it hangs."""

  monitor_interval = 0


class _Stream:
  """A terminal, which may be closed at any time."""

  def __init__(self, stream: TextIO):
    self.stream = stream
    self.encoding = stream.encoding

  def write(self, text):
    terminal.say(text, self.stream, end="")

  def flush(self):
    """Is done at every write."""

  def isatty(self):
    return True


def progress_line(
  title: str, step: int, total: int, shown: Sequence[str], rate: float
) -> str:
  """Returns e.g. "pretrain  40/2000  3.1 step/s  ETA 10:32  loss 0.412".

  Args:
    title: of the stage.
    step: steps done.
    total: steps of the stage.
    shown: what follows.
    rate: [steps/s]; 0 where not known yet.
  """
  count = f"{step:{len(str(total))}}/{total}"
  if not rate:
    return "  ".join([title, count, *shown])
  speed = f"{rate:.1f} step/s" if rate >= 1 else f"{1 / rate:.1f} s/step"
  eta = f"ETA {clock((total - step) / rate)}"
  return "  ".join([title, count, speed, eta, *shown])


def clock(seconds: float) -> str:
  """Returns a time [s] as minutes:seconds, or hours:minutes:seconds."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  eta = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
  return f"{eta}:{seconds:02d}"


def _shown(values, shares):
  """Values with their names; shares and accuracies in percent."""
  return [
    f"{name} {100 * value:.1f} %"
    if "accuracy" in name or name in shares
    else f"{name} {value:.4g}"
    for name, value in values.items()
  ]


def read(path: pathlib.Path) -> list[dict]:
  """Returns what the lines of a metrics.jsonl hold, but for damaged ones."""
  lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
  return [content for line in lines if (content := _parse(line))]


def _parse(line):
  """Returns a line's content, None if the line is damaged or was changed."""
  try:
    content = errors.parse_json(line, "line")
    crc = content.pop("crc")
  except (errors.InputError, AttributeError, KeyError, TypeError):
    return None
  return content if line.endswith(b"\n") and crc == _crc(content) else None


def _crc(content):
  return zlib.crc32(json.dumps(content, sort_keys=True).encode())
