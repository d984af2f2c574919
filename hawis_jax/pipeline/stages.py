"""Runs stages one after another in a work directory."""

from collections.abc import Sequence
import contextlib
import pathlib
import time

import ml_collections

from hawis_jax import errors
from hawis_jax.config import settings
from hawis_jax.pipeline import pretrain
from hawis_jax.pipeline import provenance
from hawis_jax.pipeline import report
from hawis_jax.pipeline import results
from hawis_jax.pipeline import robustness
from hawis_jax.pipeline import search
from hawis_jax.pipeline import train
from hawis_jax.pipeline.experiment import prepare
from hawis_jax.runtime import checkpoint
from hawis_jax.runtime import distributed
from hawis_jax.runtime import preemption
from hawis_jax.runtime import storage
from hawis_jax.runtime.metrics import Metrics

STAGES = {
  "pretrain": pretrain.run,
  "search": search.run,
  "train": train.run,
  "robustness": robustness.run,
  "report": report.run,
}


def run(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  names: Sequence[str],
  source: pathlib.Path | None = None,
  remake: bool = False,
  argv: Sequence[str] = (),
) -> None:
  """Runs stages; those already finished are not repeated.

  Args:
    config: of the run, validated.
    workdir: of the run.
    names: of the stages, in their order.
    source: work directory whose trained nets are measured; None: the run's own.
    remake: makes anew what was made from something else than lies there now.
    argv: the command and its arguments, for the report.

  Raises:
    InputError: something does not fit; one line says what.
    Preempted: the run was asked to stop; what is done is saved.
  """
  start = time.monotonic()
  _check_same(config, [str(workdir), list(names), str(source)])
  first = distributed.is_first()
  with contextlib.ExitStack() as stack:
    stack.enter_context(preemption.watch())
    stack.enter_context(checkpoint.without_leftovers())
    experiment = distributed.first_then_others(lambda: prepare(config))
    if "train" in names:
      train.check_teacher(experiment, workdir)
    if "robustness" in names:
      robustness.check_chips(experiment, workdir)
    distributed.on_first(lambda: stack.enter_context(storage.locked(workdir)))
    facts = experiment.splits.facts()
    distributed.on_first(lambda: results.settle(config, workdir, facts))
    metrics = stack.enter_context(Metrics(workdir, recording=first))
    for name in names:
      if preemption.reached():
        raise errors.Preempted(f"before {name}")
      remade = names if remake else ()
      provenance.check(experiment, workdir, remade, metrics.say)
      STAGES[name](experiment, workdir, metrics)
  if first:
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    metrics.say(f"done in {minutes}:{seconds:02d}; results in {workdir}")


def _check_same(config, others):
  """Raises InputError where processes were not started alike."""
  fields = settings.flatten(config)
  for own in ("data.data_dir", "data.read_threads"):
    del fields[own]
  distributed.check_same(fields, "--config")
  distributed.check_same(others, "--workdir, --stages, --from")
