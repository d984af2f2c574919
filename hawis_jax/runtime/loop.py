"""The loop over a stage's steps: from its last checkpoint to its end."""

from collections.abc import Callable, Collection, Iterator, Mapping
import dataclasses
import math
import time
from typing import Any

import chex
import jax

from hawis_jax import errors
from hawis_jax.runtime import checkpoint
from hawis_jax.runtime import distributed
from hawis_jax.runtime import preemption
from hawis_jax.runtime.metrics import Metrics

Values = dict[str, chex.Array]


class Best:
  """Keeps the state of the highest score, the first of equal ones."""

  def __init__(self, checkpoints: checkpoint.Reader):
    """Takes where to keep it: one checkpoint, that of an earlier run if any.

    One that is only loaded may be a `checkpoint.Reader`'s.
    """
    self._checkpoints = checkpoints
    self._score = None  # not known yet

  def resume(self, example: Any) -> None:
    """Takes up what was kept, where something must have been.

    Args:
      example: of the state, arrays or their shapes.

    Raises:
      InputError: there is none, or it is damaged.
    """
    self._score = self._kept(example)["score"]

  def offer(self, state: Any, step: int, score: float) -> None:
    """Saves a state of `step` if its score is the highest so far."""
    if self._score is None:
      kept = self._checkpoints.restore(_scored(state, 0.0))
      self._score = kept[1]["score"] if kept else -math.inf
    if score > self._score:
      self._score = score
      self._checkpoints.save(step, _scored(state, score))
      self._checkpoints.wait()

  def load(self, example: Any) -> Any:
    """Returns the state that is kept.

    Args:
      example: of the state, arrays or their shapes.

    Raises:
      InputError: there is none, or it is damaged.
    """
    return self._kept(example)["state"]

  def _kept(self, example):
    kept = self._checkpoints.restore(_scored(example, 0.0))
    if kept is None:
      raise errors.InputError(
        f"{self._checkpoints.directory}: missing; delete the folder above and "
        "run --stages train again"
      )
    return kept[1]


def _scored(state, score):
  return {"state": state, "score": score}


@dataclasses.dataclass(frozen=True)
class Validation:
  """How a state is measured while it is trained.

  Attributes:
    measure: state -> value, the higher the better.
    name: of the value.
    every: steps between two measurements, one being after the last step.
    best: keeps the best state; None: none is kept.
  """

  measure: Callable[[Any], float]
  name: str
  every: int
  best: Best | None = None


def run_steps(
  update: Callable[..., tuple[Any, Values]],
  state: Any,
  *,
  name: str,
  total: int,
  checkpoints: checkpoint.Checkpoints,
  metrics: Metrics,
  log_every: int,
  checkpoint_seconds: float,
  stride: int = 1,
  shares: Collection[str] = (),
  limits: Mapping[str, float] | None = None,
  validation: Validation | None = None,
  batches: Callable[[int], Iterator[dict[str, jax.Array]]] | None = None,
) -> Any:
  """Runs a stage's steps from its last checkpoint to its end.

  Args:
    update: (state, step[, batch]) -> (state, metrics of scalars). A pure
      function of its arguments: that makes a resumed run bit-identical.
    state: at step 0, placed where it is to stay; the structure of the
      checkpoints.
    name: of the stage, for metrics and errors.
    total: steps; the state after the last one is always saved.
    checkpoints: of the stage.
    metrics: of the run.
    log_every: steps between two looks at the metrics.
    checkpoint_seconds: least time between two checkpoints [s].
    stride: steps that one `update` does, a divisor of `total`.
    shares: metrics that are shown in percent, beside accuracies.
    limits: {metric: the most it may be}; of all others: finite.
    validation: see `Validation`; None: no measurements.
    batches: start step -> batches from there on; None: `update` takes none.

  Returns:
    The final state.

  Raises:
    DivergenceError: a metric is not finite or above its limit; nothing of it is
      saved.
    InputError: a checkpoint, or the best state so far, is damaged or lost.
    Preempted: the run was asked to stop; the state is saved.
  """
  restored = checkpoints.restore(state)
  start, state = restored if restored else (0, state)
  if start >= total:
    return state
  if validation and validation.best and start >= validation.every:
    validation.best.resume(state)
  # On several CPU devices, steps on their way at the same time can wait for
  # each other's collectives without end.
  waiting = jax.default_backend() == "cpu" and jax.device_count() > 1
  progress = metrics.stage(name, total, start, shares)
  stream = batches(start) if batches else None
  saved, pending = time.monotonic(), []
  for step in range(start, total, stride):
    batch = (next(stream),) if stream else ()
    state, values = update(state, step, *batch)
    pending.append(jax.block_until_ready(values) if waiting else values)
    done = step + stride
    last, stopping = done == total, preemption.reached()
    validating = validation and (done % validation.every == 0 or last)
    due = done % log_every == 0 or last or validating
    if not (due or stopping):
      continue
    pending = jax.device_get(pending)
    first = done - (len(pending) - 1) * stride
    for index, values in enumerate(pending):
      _check(name, first + index * stride, values, limits or {}, checkpoints)
    if due:
      shown = {k: float(v) for k, v in pending[-1].items()}
      if validating:
        shown[validation.name] = score = validation.measure(state)
        if validation.best:
          checkpoints.wait()  # one save at a time
          validation.best.offer(state, done, score)
      progress.report(done, shown)
    pending = []
    late = time.monotonic() - saved > checkpoint_seconds
    if last or stopping or distributed.on_first(lambda late=late: late):
      metrics.flush()
      checkpoints.save(done, state)
      saved = time.monotonic()
    if stopping:
      checkpoints.wait()
      raise errors.Preempted(f"{name}, saved at step {done} of {total}")
  checkpoints.wait()
  return state


def load_final(
  checkpoints: checkpoint.Reader, example: Any, total: int, stage: str
) -> Any:
  """Returns the state that a finished stage left.

  Args:
    checkpoints: of the stage.
    example: of the state, arrays or their shapes.
    total: steps of the stage.
    stage: its name, for the error.

  Raises:
    InputError: the stage has not finished.
  """
  restored = checkpoints.restore(example)
  step, state = restored if restored else (0, None)
  if step < total:
    raise errors.InputError(
      f"{checkpoints.directory}: got step {step}, needed is {total}; run "
      f"--stages {stage} first"
    )
  return state


def _check(name, step, values, limits, checkpoints):
  """Raises DivergenceError where a metric is not what it may be."""
  bad = [
    key
    for key, value in values.items()
    if not math.isfinite(value) or value > limits.get(key, math.inf)
  ]
  if not bad:
    return
  value = float(values[bad[0]])
  above = f", above {limits[bad[0]]:g}" if math.isfinite(value) else ""
  last = checkpoints.latest_step()
  good = "none" if last is None else f"step {last} in {checkpoints.directory}"
  raise errors.DivergenceError(
    f"{name}: {bad[0]} is {value:g}{above} at step {step}; last good "
    f"checkpoint: {good}. Lower the learning rate or start from another seed"
  )
