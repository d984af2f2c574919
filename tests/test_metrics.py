import io
import json
import math
import struct

import numpy as np
import pytest

from hawis_jax.runtime.metrics import Metrics
from hawis_jax.runtime.metrics import progress_line
from hawis_jax.runtime.metrics import read as read_lines


class Clock:
  """Time stands still until it is set."""

  now = 100.0

  def __call__(self):
    return self.now


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock():
  return Clock()


@pytest.fixture
def stream():
  return io.StringIO()


@pytest.fixture
def metrics(tmp_path, stream, clock):
  with Metrics(tmp_path, stream=stream, clock=clock) as metrics:
    yield metrics


def read(folder):
  """[(stage, step, values)] of every line; refuses what is not strict JSON."""

  def refuse(constant):
    raise ValueError(constant)

  lines = (folder / "metrics.jsonl").read_text().splitlines()
  content = [json.loads(line, parse_constant=refuse) for line in lines]
  names = {"time", "stage", "step", "values", "crc"}
  assert all(set(c) == names for c in content)
  return [(c["stage"], c["step"], c["values"]) for c in content]


def record(folder, name, steps, start=0, total=100):
  with Metrics(folder, stream=io.StringIO()) as metrics:
    progress = metrics.stage(name, total=total, start=start)
    for step in steps:
      progress.report(step, {"loss": step + start / 1000})


def test_a_line_is_in_the_file_at_once(tmp_path, metrics):
  metrics.stage("search", total=2).report(1, {"reward": np.float32(0.5)})
  assert read(tmp_path) == [("search", 1, {"reward": 0.5})]


def test_values_that_are_not_finite_are_null(tmp_path, metrics):
  metrics.stage("search", total=9).report(1, {"a": math.nan, "b": -math.inf})
  assert read(tmp_path) == [("search", 1, {"a": None, "b": None})]


def test_resuming_drops_what_is_computed_again(tmp_path):
  record(tmp_path, "pretrain", [0, 20, 40, 60])
  record(tmp_path, "train/found", [20, 40])
  record(tmp_path, "pretrain", [60, 80], start=40)
  lines = read(tmp_path)
  assert [(stage, step) for stage, step, _ in lines] == [
    *(("pretrain", step) for step in (0, 20, 40)),
    *(("train/found", step) for step in (20, 40)),
    *(("pretrain", step) for step in (60, 80)),
  ]
  assert ("pretrain", 60, {"loss": 60.04}) in lines
  record(tmp_path, "pretrain", [0])  # anew: the whole stage
  assert [line[:2] for line in read(tmp_path)] == [
    ("train/found", 20),
    ("train/found", 40),
    ("pretrain", 0),
  ]


def test_a_changed_line_is_dropped_and_told(tmp_path, stream):
  record(tmp_path, "pretrain", [20, 40])
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text().replace('"loss": 20.0', '"loss": 10.0'))
  assert [line["step"] for line in read_lines(path)] == [40]
  with Metrics(tmp_path, stream=stream):
    assert stream.getvalue() == f"{path}: dropped 1 damaged lines\n"
  assert [line[:2] for line in read(tmp_path)] == [("pretrain", 40)]


@pytest.mark.parametrize("cut", [1, 60])
def test_a_line_cut_short_is_dropped_at_reopening(tmp_path, cut):
  record(tmp_path, "pretrain", [20, 40])
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(path.read_bytes()[:-cut])
  record(tmp_path, "search", [1])
  assert [line[:2] for line in read(tmp_path)] == [
    ("pretrain", 20),
    ("search", 1),
  ]


def test_only_the_recording_process_writes(tmp_path, stream):
  with Metrics(tmp_path, recording=False, stream=stream) as metrics:
    metrics.stage("pretrain", total=10).report(10, {"loss": 1.0})
  assert not list(tmp_path.iterdir())
  assert not stream.getvalue()


def test_progress_line():
  line = progress_line("pretrain", 1240, 2000, ["loss 0.4123"], 3.1)
  assert line == "pretrain  1240/2000  3.1 step/s  ETA 4:05  loss 0.4123"
  slow = progress_line("search", 1, 101, [], 0.02)
  assert slow == "search    1/101  50.0 s/step  ETA 1:23:20"
  unknown = progress_line("train", 0, 10, ["loss nan"], 0)
  assert unknown == "train   0/10  loss nan"


def test_shares_are_in_percent(metrics, stream):
  values = {"loss": 0.4123, "accuracy_max": 0.912, "random": 0.5, "a": 0.5}
  values["nan"] = math.nan
  metrics.stage("search", 9, shares=["random"]).report(1, values)
  assert stream.getvalue().splitlines()[1] == (
    "search  1/9  loss 0.4123  accuracy_max 91.2 %  random 50.0 %  a 0.5  "
    "nan nan"
  )


def test_the_first_report_which_compiled_is_in_no_rate(metrics, stream, clock):
  progress = metrics.stage("pretrain", total=2000, start=1000)
  clock.now += 1000.0
  progress.report(1020, {})  # 20 steps, compilation included
  clock.now += 10.0
  progress.report(1120, {})  # 100 steps in 10 s
  assert stream.getvalue().splitlines() == [
    "pretrain  begins at 1000/2000; the first step compiles",
    "pretrain  1020/2000",
    "pretrain  1120/2000  10.0 step/s  ETA 1:28",
  ]


def test_a_line_says_which_stage_of_how_many(metrics, stream, clock):
  with metrics.counted("stage", "search", 2, 3):
    progress = metrics.stage("search", total=10)
    for step in (1, 2, 6):
      clock.now += 4
      progress.report(step, {})
    for number, seconds in enumerate((0.2, 70, 50, 30), 1):
      with metrics.counted("net", f"net_{number}", number, 4):
        clock.now += seconds
    with metrics.counted("net", "found", 4, 4):
      metrics.stage("train/found", total=10)
  metrics.stage("report", total=1)
  assert stream.getvalue().splitlines() == [
    "stage 2 of 3: search  begins at 0/10; the first step compiles",
    "stage 2 of 3: search   1/10",
    "stage 2 of 3: search   2/10  4.0 s/step  ETA 0:32",
    "stage 2 of 3: search   6/10  1.6 s/step  ETA 0:06",
    # Of an earlier start: it tells nothing of the others.
    "stage 2 of 3, net 1 of 4: net_1 took 0:00",
    "stage 2 of 3, net 2 of 4: net_2 took 1:10; about 2:20 for the other 2",
    "stage 2 of 3, net 3 of 4: net_3 took 0:50; about 1:00 for the other 1",
    "stage 2 of 3, net 4 of 4: net_4 took 0:30",
    "stage 2 of 3, net 4 of 4: train/found  begins at 0/10; the first step "
    "compiles",
    "stage 2 of 3, net 4 of 4: found took 0:00",
    "stage 2 of 3: search took 2:42",
    "report  begins at 0/1; the first step compiles",
  ]


def test_a_line_every_two_seconds_and_always_first_and_last(
  metrics, stream, clock
):
  progress = metrics.stage("pretrain", total=100)
  for step in range(10, 101, 10):
    clock.now += 0.5
    progress.report(step, {})
  shown = [line.split()[1] for line in stream.getvalue().splitlines()[1:]]
  assert shown == ["10/100", "50/100", "90/100", "100/100"]


def test_a_terminal_gets_one_line_written_over(tmp_path, clock):
  terminal = Terminal()
  with Metrics(tmp_path, stream=terminal, clock=clock) as metrics:
    progress = metrics.stage("train", total=3)
    for step in (1, 2):
      clock.now += 5
      progress.report(step, {"loss": 1 / step})
  begin, text = terminal.getvalue().split("\n", 1)
  assert begin == "train  begins at 0/3; the first step compiles"
  assert text.count("\r") > 2 and "2/3 |" in text and "loss 0.5" in text
  assert text.count("\n") == 1
  assert text.endswith("\n")


def test_a_terminal_line_does_not_wrap(tmp_path, monkeypatch):
  monkeypatch.setenv("COLUMNS", "40")
  terminal = Terminal()
  with Metrics(tmp_path, stream=terminal) as metrics:
    metrics.stage("train", total=3).report(1, {"long_name" * 9: 1.0})
  lines = terminal.getvalue().split("\n")[1].split("\r")
  assert "1/3" in lines[-1] and max(map(len, lines)) < 40


def _events(path):
  """Of a TensorBoard file: records of length, checksum, event, checksum."""
  event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
  content, place = path.read_bytes(), 0
  while place < len(content):
    (size,) = struct.unpack_from("<Q", content, place)
    place += 12
    yield event_pb2.Event.FromString(content[place : place + size])
    place += size + 4


def test_tensorboard(tmp_path):
  """A stage that goes on hides the steps that it does again."""
  record(tmp_path, "train/found", [1, 2])
  folder = tmp_path / "tensorboard" / "train" / "found"
  (first,) = folder.iterdir()
  scalars = [
    (event.step, value.tag, value.simple_value)
    for event in _events(first)
    for value in event.summary.value
  ]
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  expected = [
    (line["step"], name, pytest.approx(value))
    for line in map(json.loads, lines)
    for name, value in line["values"].items()
  ]
  assert scalars == expected and len(scalars) >= 2
  content = first.read_bytes()
  with Metrics(tmp_path, stream=io.StringIO()) as metrics:
    metrics.stage("train/found", total=3, start=1).report(2, {"loss": 3.0})
  assert first.read_bytes() == content
  (second,) = {*folder.iterdir()} - {first}
  assert [(e.step, e.session_log.status) for e in _events(second)] == [
    (0, 0),
    (2, 1),  # START
    (2, 0),
  ]
  record(tmp_path, "train/found", [1])  # from the start: all is done again
  (third,) = {*folder.iterdir()} - {first, second}
  assert [(e.step, e.session_log.status) for e in _events(third)][1] == (1, 1)
