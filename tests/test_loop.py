"""The loop over steps: stopped anywhere, it ends as if it had not been."""

import collections
import contextlib
import io
import json
import math
import pathlib
import shutil
import tempfile

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import errors
from hawis_jax.runtime import checkpoint
from hawis_jax.runtime import loop
from hawis_jax.runtime import preemption
from hawis_jax.runtime.metrics import Metrics


@jax.jit
def _update(state, step):
  key = jax.random.fold_in(jax.random.key(0), step)
  return state * 0.9 + jax.random.normal(key, (3,)), {"loss": state.sum() + 1}


def _run(workdir, stop_at=None, scores=None, update=_update, **changes):
  """Runs 12 steps, or is asked to stop; returns the final state."""
  folder, calls = pathlib.Path(workdir), iter(range(1, 100))
  arguments = dict(
    name="toy", total=12, log_every=3, checkpoint_seconds=1e9, **changes
  )
  with contextlib.ExitStack() as stack:
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setattr(preemption, "reached", lambda: next(calls) == stop_at)
    checkpoints = stack.enter_context(checkpoint.Checkpoints(folder / "toy"))
    metrics = stack.enter_context(Metrics(folder, stream=io.StringIO()))
    if scores is not None:
      best = stack.enter_context(checkpoint.Checkpoints(folder / "best", 1))

      def measure(state):
        return scores[tuple(np.asarray(state).tolist())]

      arguments["validation"] = loop.Validation(
        measure, "score", 2, loop.Best(best)
      )
    return loop.run_steps(
      update,
      jnp.zeros(3),
      checkpoints=checkpoints,
      metrics=metrics,
      **arguments,
    )


def _lines(folder):
  text = (folder / "metrics.jsonl").read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  return [(line["step"], line["values"]) for line in lines]


@settings(max_examples=10)
@given(stops=st.lists(st.integers(1, 5), max_size=4))
def test_stopped_anywhere_it_ends_the_same(stops):
  with tempfile.TemporaryDirectory() as name:
    once, often = pathlib.Path(name) / "once", pathlib.Path(name) / "often"
    expected, done = _run(once), 0
    for stop in stops:
      done += stop
      if done >= 12:
        break
      with pytest.raises(
        errors.Preempted, match=f"toy, saved at step {done} of 12"
      ):
        _run(often, stop_at=stop)
    np.testing.assert_array_equal(_run(often), expected)
    assert _lines(often) == _lines(once)
    assert [step for step, _ in _lines(once)] == [3, 6, 9, 12]


def test_stopped_after_its_last_step_it_has_ended(tmp_path):
  with pytest.raises(errors.Preempted, match="saved at step 12 of 12"):
    _run(tmp_path, stop_at=12)
  expected = _run(tmp_path / "other")

  def refuse(*_):
    raise AssertionError("computed again")

  np.testing.assert_array_equal(_run(tmp_path, update=refuse), expected)


@pytest.mark.parametrize("stop", [None, 7])
def test_the_best_state_is_kept(tmp_path, stop):
  """The first of the highest scores, whatever interruptions there are."""
  states, state = {}, np.zeros(3, np.float32)
  for step in range(12):
    state, _ = _update(state, step)
    states[step + 1] = state
  values = {2: 0.1, 4: 0.7, 6: 0.3, 8: 0.7, 10: 0.2, 12: 0.6}
  scores = {
    tuple(np.asarray(states[step]).tolist()): value
    for step, value in values.items()
  }
  if stop:
    with pytest.raises(errors.Preempted):
      _run(tmp_path, stop_at=stop, scores=scores)
  _run(tmp_path, scores=scores)
  assert [p.name for p in (tmp_path / "best").iterdir()] == ["4"]
  with checkpoint.Checkpoints(tmp_path / "best") as kept:
    np.testing.assert_array_equal(loop.Best(kept).load(jnp.zeros(3)), states[4])
  shown = {s: v["score"] for s, v in _lines(tmp_path) if "score" in v}
  assert shown == values
  with checkpoint.Checkpoints(tmp_path / "none") as none:
    with pytest.raises(errors.InputError, match="none: missing; delete the"):
      loop.Best(none).load(jnp.zeros(3))


def test_a_best_state_that_is_lost_is_not_replaced_by_a_later_one(tmp_path):
  scores = collections.defaultdict(float)
  with pytest.raises(errors.Preempted):
    _run(tmp_path, stop_at=7, scores=scores)
  shutil.rmtree(tmp_path / "best" / "2")
  with pytest.raises(errors.InputError, match="best: missing; delete the"):
    _run(tmp_path, scores=scores)


@pytest.mark.parametrize("stop", [None, 8])
def test_what_is_not_finite_is_never_saved(tmp_path, stop):
  """Not even where the run is asked to stop between two looks at metrics."""

  def update(state, step):
    state, values = _update(state, step)
    if step == 7:
      return state * math.nan, {"loss": math.nan}
    return state, values

  with pytest.raises(errors.Preempted):
    _run(tmp_path, stop_at=5, update=update)
  with pytest.raises(errors.DivergenceError, match="nan at step 8") as info:
    _run(tmp_path, stop_at=stop and stop - 5, update=update)
  assert f"step 5 in {tmp_path / 'toy'}" in str(info.value)
  assert [p.name for p in (tmp_path / "toy").iterdir()] == ["5"]


@pytest.mark.parametrize("keep", [1, 2])
def test_while_one_replaces_another_there_is_one(tmp_path, monkeypatch, keep):
  state, rename = {"a": np.ones(3)}, pathlib.Path.rename

  def seen(path, target):
    result = rename(path, target)
    assert [p for p in tmp_path.iterdir() if p.name.isdecimal()]
    return result

  with checkpoint.Checkpoints(tmp_path, keep) as checkpoints:
    checkpoints.save(1, state)
    checkpoints.wait()
    monkeypatch.setattr(pathlib.Path, "rename", seen)
    for step in (2, 3, 4):
      checkpoints.save(step, state)
  left = sorted(path.name for path in tmp_path.iterdir())
  assert left == ["3", "4"][-keep:]
