"""Programs that are compiled once, and what is compiled beside a stage."""

import contextlib
import threading
import time

import jax
import numpy as np
import pytest

from hawis_jax.pipeline import stages
from hawis_jax.runtime import programs


def _wait_for(condition):
  end = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def test_callers_wait_for_one_that_makes_the_same():
  made, begun, going = [], threading.Event(), threading.Event()

  @programs.once(2)
  def make(number, double=False):
    begun.set()
    going.wait(60)
    made.append(number)
    return [2 * number if double else number]

  found = []
  threads = [
    threading.Thread(target=lambda: found.append(make(3, double=True))),
    threading.Thread(target=lambda: found.append(make(3, True))),
  ]
  for thread in threads:
    thread.start()
  assert begun.wait(60)
  going.set()
  for thread in threads:
    thread.join()
  assert made == [3] and found == [[6], [6]] and found[0] is found[1]
  assert make(number=3, double=True) is found[0]
  assert make(3) == make(3, False) == [3] and made == [3, 3]


def test_what_raises_is_made_anew():
  calls = []

  @programs.once(1)
  def make(number):
    calls.append(number)
    if len(calls) == 1:
      raise ValueError("once")
    return number

  with pytest.raises(ValueError, match="once"):
    make(5)
  assert make(5) == make(5) == 5 and calls == [5, 5]


def test_a_program_has_one_executable_for_arguments_of_the_same_shapes():
  traced = []

  @jax.jit
  def double(tree):
    traced.append(jax.tree.structure(tree))
    return jax.tree.map(lambda x: 2 * x, tree)

  program = programs.of(double)
  program.compile({"a": jax.ShapeDtypeStruct((3,), np.float32)})
  for number in (1.0, 2.0):
    found = program({"a": np.full(3, number, np.float32)})
    np.testing.assert_array_equal(found["a"], np.full(3, 2 * number))
  assert len(traced) == 1
  program({"b": np.zeros(3, np.float32)})
  program({"a": np.zeros(4, np.float32)})
  assert len(traced) == 3


def test_jobs_are_done_in_order_whatever_fails():
  done = []

  def fail():
    raise ValueError("told where it is needed")

  def jobs():
    yield lambda: done.append(1)
    yield fail
    yield lambda: done.append(2)
    raise ValueError("and the rest is not known")

  with programs.ahead() as ahead:
    ahead(jobs)
    ahead(lambda: iter([lambda: done.append(3)]))
    _wait_for(lambda: 3 in done)
  assert done == [1, 2, 3]


def test_what_is_left_at_the_end_is_not_done():
  done, begun, going = [], threading.Event(), threading.Event()

  def first():
    begun.set()
    going.wait(60)
    done.append("first")

  with programs.ahead() as ahead:
    ahead(lambda: iter([first, lambda: done.append("second")]))
    ahead(lambda: iter([lambda: done.append("third")]))
    assert begun.wait(60)
  # It does not wait for the first.
  assert not done
  going.set()
  _wait_for(lambda: done)
  _wait_for(lambda: not [t for t in threading.enumerate() if "ahead" in t.name])
  assert done == ["first"]


def test_what_is_of_a_run_is_forgotten_at_its_end():
  made = []

  @programs.once(2)
  def of_a_run(number):
    made.append(number)

  @programs.once(2, of_a_run=False)
  def of_all(number):
    made.append(number)

  for _ in range(2):
    with programs.ahead():
      for _ in range(2):
        of_a_run(1)
        of_all(2)
  assert made == [1, 2, 1]


def test_with_accelerators_and_several_processes_nothing_is_done(monkeypatch):
  done = []
  for name, value in (
    ("jax.process_count", 2),
    ("hawis_jax.backend.platform", "gpu"),
  ):
    with monkeypatch.context() as patched:
      patched.setattr(name, lambda value=value: value)
      with programs.ahead() as ahead:
        ahead(lambda: iter([lambda: done.append(1)]))
  assert not done


@pytest.mark.slow
@pytest.mark.parametrize(
  "stage, before, fields",
  [
    ("search", "pretrain", {"search__selection": 1.0, "search__selected": 2}),
    ("train", "search", {"train__nets": "('found_chips','baseline_1x_int8')"}),
    (
      "robustness",
      "train",
      {
        "robustness__batch_norm": "('fixed','chip')",
        "robustness__scenarios": "({'stuck_off':(0.0,0.1)},{'adc_bits':(5,)})",
      },
    ),
  ],
)
def test_what_is_compiled_ahead_is_what_a_stage_calls(
  run, after, monkeypatch, stage, before, fields
):
  """All of its programs, by shapes alone."""
  if stage == "search":
    fields |= {"pretrain__faulty_widths": 1}
  workdir = after(before, f"ahead_{stage}", **fields)
  # The run's own thread is to do nothing more.
  monkeypatch.setattr(programs, "ahead", _nothing)
  jobs = stages._JOBS[stage]

  def after_jobs(experiment, workdir, metrics):
    for job in jobs(experiment, workdir):
      job()
    with monkeypatch.context() as patched:
      patched.setattr(programs, "_Made", _refused)
      stages.STAGES[stage + "_itself"](experiment, workdir, metrics)

  monkeypatch.setitem(stages.STAGES, stage + "_itself", stages.STAGES[stage])
  monkeypatch.setitem(stages.STAGES, stage, after_jobs)
  assert run(workdir, f"--stages={stage}", **fields) == 0


@contextlib.contextmanager
def _nothing():
  yield lambda jobs: None


def _refused(make):
  raise AssertionError("a program that was not compiled ahead")
