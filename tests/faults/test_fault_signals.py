"""Whole runs in processes of their own that are signalled or killed."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import short_run

_SECONDS = 300  # a child that takes longer hangs
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _lines(workdir):
  path = workdir / "metrics.jsonl"
  return path.read_text().count("\n") if path.exists() else 0


def _signal(process, workdir, number, more, seconds):
  """Sends a signal some time after so many more lines of metrics.

  Returns:
    (exit status, output); status 0 where the run was faster.
  """
  wanted, deadline = _lines(workdir) + more, time.monotonic() + _SECONDS
  while process.poll() is None and _lines(workdir) < wanted:
    if time.monotonic() > deadline:
      break
    time.sleep(0.01)
  time.sleep(seconds)
  process.send_signal(number)
  try:
    output, _ = process.communicate(timeout=_SECONDS)
  except subprocess.TimeoutExpired:
    process.kill()
    output, _ = process.communicate()
    pytest.fail(f"hung after {signal.Signals(number).name}:\n{output}")
  return process.returncode, output


@pytest.mark.slow
def test_stopped_at_random_moments_it_ends_the_same(
  start, finished, tmp_path, rng
):
  """Every result, metric and weight equal to the bit; so is the cache cut."""
  workdir = tmp_path / "run"
  for number in (signal.SIGKILL, *_STOPS, signal.SIGKILL):
    more = int(rng.integers(1, 5))
    status, output = _signal(
      start(workdir), workdir, number, more, rng.uniform(0, 0.3)
    )
    if status == 0:
      break
    if number == signal.SIGKILL:
      assert status == -signal.SIGKILL, output
    else:
      assert status == 75, output
      last = output.splitlines()[-1]
      assert last.startswith("stopped: ")
      assert ", saved at " in last or "stopped: before " in last
    # What was compiled before need not be whole either.
    for path in list((tmp_path / "cache").iterdir())[::3]:
      path.write_bytes(path.read_bytes()[: rng.integers(100)])
  process = start(workdir)
  output, _ = process.communicate(timeout=_SECONDS)
  assert process.returncode == 0, output
  short_run.same(workdir, finished)


@pytest.mark.slow
@pytest.mark.parametrize(
  "numbers",
  [
    pytest.param((signal.SIGINT,) * 10, id="ctrl_c"),
    pytest.param((signal.SIGKILL, *_STOPS) * 3, id="all"),
  ],
)
def test_stopped_at_any_second_it_ends_the_same(
  start, finished, tmp_path, numbers
):
  """From its first second on, with one line or two; what ended is compared."""
  rng, run = np.random.default_rng(0), 0
  for number in numbers:
    workdir = tmp_path / f"run{run}"
    with (tmp_path / "errors").open("w") as errors:
      process = start(workdir, errors)
    status, _ = _signal(process, workdir, number, 0, rng.uniform(1, 20))
    told = (tmp_path / "errors").read_text()
    assert "Traceback" not in told and told.count("\n") <= 2, told
    if status == 0:
      short_run.same(workdir, finished)
      run += 1
    elif number == signal.SIGINT:
      assert status == 75 and "the same command goes on" in told
    else:  # it is not watched yet while the configuration is read
      assert status == -number or status == 75 and number != signal.SIGKILL
  output, _ = start(workdir).communicate(timeout=_SECONDS)
  short_run.same(workdir, finished)


def test_a_second_signal_ends_it_at_once(start, tmp_path):
  process, workdir = start(tmp_path / "run"), tmp_path / "run"
  # In the first step, which compiles.
  line = ""
  while "pretrain  begins" not in line:
    line = process.stdout.readline()
    assert line, "ended too early"
  process.send_signal(signal.SIGTERM)
  while not line.startswith("SIGTERM: saving after this step"):
    line = process.stdout.readline()
    assert line, "ended without a word"
  status, output = _signal(process, workdir, signal.SIGTERM, 0, 0)
  if status == 75:
    pytest.skip("it was quicker than the second signal")
  assert status == -signal.SIGTERM, output


# Python waits for threads, gives signal handlers up, then ends globals.
_CTRL_C_AT_THE_END = """
import os, runpy, signal, sys, threading, time
def kill(kill=os.kill, pid=os.getpid(), number=signal.SIGINT):
  kill(pid, number)
def late():
  threading.main_thread().join()
  while True:  # just before the main thread waits, a signal does not wake it
    kill()
    time.sleep(0.1)
class Late:
  def __del__(self, kill=kill):
    kill()
if sys.argv[1] == "thread":
  threading.Thread(target=late).start()
else:
  last = Late()
sys.argv = ["main", "--help"]
runpy.run_module("hawis_jax.main", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("when", ["thread", "global"])
def test_ctrl_c_while_python_ends_changes_no_status(when):
  ended = subprocess.run(
    [sys.executable, "-c", _CTRL_C_AT_THE_END, when],
    capture_output=True,
    text=True,
    timeout=_SECONDS,
  )
  assert ended.returncode == 0, ended
  assert not ended.stderr and "--workdir" in ended.stdout


@pytest.mark.slow
def test_a_run_whose_folder_is_moved(start, finished, tmp_path):
  """Ends in one line; where the folder is now, it goes on."""
  workdir, moved = tmp_path / "run", tmp_path / "moved"
  process = start(workdir)
  while _lines(workdir) < 2:
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.05)
  workdir.rename(moved)
  output, _ = process.communicate(timeout=_SECONDS)
  assert process.returncode == 2, output
  error = output.splitlines()[-1]
  assert error.startswith(f"error: {workdir}: moved or deleted"), output
  assert "Traceback" not in output
  # At most what Orbax was writing in the background.
  left = {path.relative_to(workdir).parts[0] for path in workdir.rglob("*")}
  assert left <= {"pretrain", "search", "train"}
  output, _ = start(moved).communicate(timeout=_SECONDS)
  short_run.same(moved, finished)


@pytest.mark.slow
def test_two_runs_at_once(start, tmp_path):
  """The second one is refused, and the first one not disturbed."""
  workdir = tmp_path / "run"
  first = start(workdir)
  while not (workdir / "metrics.jsonl").exists():
    assert first.poll() is None
    time.sleep(0.05)
  second = start(workdir)
  output, _ = second.communicate(timeout=_SECONDS)
  assert second.returncode == 2
  assert "another process is running in it" in output
  status, output = _signal(first, workdir, signal.SIGTERM, 1, 0)
  assert status == 75, output
  assert json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
