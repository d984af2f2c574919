"""Runs stages one after another in a work directory."""

from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import pathlib
import time

import ml_collections

from hawis_jax import errors
from hawis_jax.config import fields
from hawis_jax.config import settings
from hawis_jax.pipeline import pretrain
from hawis_jax.pipeline import provenance
from hawis_jax.pipeline import report
from hawis_jax.pipeline import results
from hawis_jax.pipeline import robustness
from hawis_jax.pipeline import search
from hawis_jax.pipeline import train
from hawis_jax.pipeline.experiment import prepare
from hawis_jax.pipeline.experiment import prepare_trained
from hawis_jax.runtime import checkpoint
from hawis_jax.runtime import distributed
from hawis_jax.runtime import preemption
from hawis_jax.runtime import programs
from hawis_jax.runtime import storage
from hawis_jax.runtime.metrics import clock
from hawis_jax.runtime.metrics import Metrics

STAGES = {
  "pretrain": pretrain.run,
  "search": search.run,
  "train": train.run,
  "robustness": robustness.run,
  "report": report.run,
}
# What is compiled beside a stage, of it and of the next one.
_JOBS = {
  "search": search.jobs,
  "train": train.jobs,
  "robustness": robustness.jobs,
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
    source = _settled_source(workdir, names, source)
    if source:
      config = results.fit_to_source(config, workdir, source)
    distributed.on_first(
      lambda: _check_begun(config, workdir, names, source is not None)
    )
    prepared = distributed.first_then_others(lambda: _prepare(config, source))
    experiment, digests = prepared
    if "train" in names:
      train.check_teacher(experiment, workdir)
    if "robustness" in names:
      robustness.check_chips(experiment, source or workdir)
    distributed.on_first(lambda: stack.enter_context(storage.locked(workdir)))
    if source:
      is_remade = remake and "robustness" in names
      distributed.on_first(
        lambda: provenance.check_measured(
          workdir, experiment.config.train.nets, experiment, source, is_remade
        )
      )
    facts = experiment.splits.facts()
    distributed.on_first(lambda: results.settle(config, workdir, facts, source))
    if source:
      distributed.on_first(
        lambda: results.write_source(workdir, source, digests)
      )
    metrics = stack.enter_context(Metrics(workdir, recording=first))
    ahead, begun = stack.enter_context(programs.ahead()), set()
    for number, name in enumerate(names, 1):
      if preemption.reached():
        raise errors.Preempted(f"before {name}")
      remade = names if remake else ()
      provenance.check(experiment, workdir, remade, metrics.say)
      for later in names[number - 1 : number + 1]:
        # Of train once more: the found net is known now.
        if later in _JOBS and (later not in begun or later == "train"):
          ahead(functools.partial(_JOBS[later], experiment, workdir))
          begun.add(later)
      told = {"argv": argv} if name == "report" else {}
      with metrics.counted("stage", name, number, len(names)):
        STAGES[name](experiment, workdir, metrics, **told)
  if first:
    took = clock(time.monotonic() - start)
    metrics.say(f"done in {took}; results in {workdir}")


def _settled_source(workdir, names, source):
  """Folder of the run whose nets are measured; None: they are its own.

  A run that measures another one's nets may measure a third one's, which are
  then the other's.
  """
  if source is None:
    source = results.source_of(workdir)
    unfit = [name for name in names if name not in fields.STAGES[3:]]
    if source and unfit:
      raise errors.InputError(
        f"--workdir: got {workdir}, which measures nets of {source}, allowed "
        f"are --from={source} and --stages robustness,report, not {unfit[0]}"
      )
  else:
    if not (source / "config.json").exists():
      raise errors.InputError(
        f"--from: got {source}, which has no config.json, needed is the folder "
        "of a run"
      )
    if not storage.is_remote(source):
      source = source.absolute()
    source = results.source_of(source) or source
  return source


def _prepare(config, source):
  """(The experiment, digests of the nets that are another run's)."""
  if source is None:
    return prepare(config), {}
  theirs = results.saved_config(source)
  experiment = prepare_trained(config, theirs)
  results.check_data(experiment.splits.facts(), source)
  trained = dataclasses.replace(experiment, config=theirs)
  return experiment, provenance.check_trained(experiment, trained, source)


def _check_begun(config, workdir, names, is_trained):
  """Raises InputError where the first stage's input can't be there.

  So that a mistake leaves no folder behind.
  """
  before = fields.STAGES[: fields.STAGES.index(names[0])]
  if is_trained:
    before = before[3:]
  elif not settings.searches(config):
    before = before[2:]
  there = [s for s in results.STAGES if results.holds_artefacts(workdir / s)]
  if before and not there:
    raise errors.InputError(
      f"--workdir: got {workdir}, which holds no run, needed for --stages "
      f"{names[0]} is one whose {before[-1]} has finished; run --stages all "
      f"there, or {','.join(before)} first"
    )


def _check_same(config, others):
  """Raises InputError where processes were not started alike."""
  values = settings.flatten(config)
  for own in ("data.data_dir", "data.read_threads"):
    del values[own]
  distributed.check_same(values, "--config")
  distributed.check_same(others, "--workdir, --stages, --from")
