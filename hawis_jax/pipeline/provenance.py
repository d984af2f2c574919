"""What the artefacts of a work directory were made from, and if that is there.

A net is trained under a teacher, at widths that a search found with a
super-net, and is measured as it was trained. So pretrain/, search/ and
train/<net>/ hold inputs.json, and a net's entry of robustness/result.json its
inputs: digests of checkpoints and of what config.json says, of data, teachers
and fault maps in files too (see `results.settle`).
"""

from collections.abc import Callable, Collection, Iterator
import dataclasses
import importlib.metadata
import json
import pathlib
import platform
from typing import Any, NamedTuple

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.config import settings
from hawis_jax.networks import net_names
from hawis_jax.pipeline import nets
from hawis_jax.pipeline import results
from hawis_jax.pipeline.experiment import Experiment
from hawis_jax.runtime import checkpoint
from hawis_jax.runtime import distributed
from hawis_jax.runtime import storage

_SHOWN = 12  # digits of a digest in an error


def versions() -> dict[str, str]:
  """Returns the versions of what computes a run's numbers, by package."""
  found = {"python": platform.python_version()}
  for package in ("hawis_jax", "jax", "jaxlib", "flax", "numpy"):
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = "not installed"
  return found


def record(
  experiment: Experiment, workdir: pathlib.Path, stage: str, net: str = ""
) -> None:
  """Writes what a stage is about to make something from, to inputs.json.

  Where something is made already it adds that these versions go on.
  """
  folder = results.net_folder(workdir, net) if net else workdir / stage
  saved = {"inputs": inputs(experiment, workdir, stage, net), "versions": []}

  def write(saved=saved):
    path = folder / results.INPUTS
    if path.exists() and results.holds_artefacts(folder):
      saved = storage.read_record(path)
    if versions() not in saved["versions"]:
      saved["versions"].append(versions())
      storage.write_record(path, saved)

  distributed.on_first(write)


def supernet_digest(
  experiment: Experiment, workdir: pathlib.Path
) -> str | None:
  """Returns the digest of the pre-trained super-net; None: not finished."""
  steps = experiment.config.pretrain.steps
  return checkpoint.saved_digest(workdir / "pretrain", steps)


def inputs(
  experiment: Experiment, workdir: pathlib.Path, stage: str, net: str = ""
) -> dict[str, Any]:
  """Returns what something is made from, by name; None: not there.

  Args:
    experiment: of the run.
    workdir: of the run.
    stage: that makes it.
    net: of the stages train and robustness.
  """
  found = {"configuration": _configuration(workdir, stage)}
  if stage == "search":
    found["super-net"] = supernet_digest(experiment, workdir)
    config = experiment.config
    if config.search.selection or config.search.batch_norm == "design":
      found["training"] = storage.record_digest(
        [
          {k: v for k, v in config.train.to_dict().items() if k != "nets"},
          config.hardware_aware.to_dict(),
        ]
      )
  if stage == "robustness":
    found["trained net"] = results.net_digest(net, experiment, workdir)
  if stage != "train":
    return found
  config, name = experiment.config.train, net_names.parse(net)
  found["widths"] = None
  if name.widths in experiment.widths or results.search_path(workdir).exists():
    module = results.net_module(net, experiment, workdir)
    found["widths"] = [int(width) for width in module.max_widths]
  if name.kind != net_names.BINARY or config.loss in ("labels", "margin"):
    return found
  if config.loss == "supernet":
    found["teacher"] = supernet_digest(experiment, workdir)
  elif not pathlib.Path(config.teacher).is_file():
    found["teacher"] = results.net_digest(config.teacher, experiment, workdir)
  return found


# Fields of a device whose defaults are in every digest.
_HELD = {
  "tile_shape",
  "write_sigma",
  "write_range",
  "drift_mean",
  "drift_std",
  "telegraph",
  "relaxation_shift",
  "relaxation_spread",
  "relaxation_growth",
  "flicker",
}


def _configuration(workdir, stage):
  """Digest of what config.json says that a stage's artefacts depend on.

  Values that are defaults are left out, so that a field that is newer than a
  run changes nothing.
  """
  path = workdir / "config.json"
  if not path.exists():
    return None
  fields = json.loads(json.dumps(settings.flatten(settings.default())))
  device = {f.name: f.default for f in dataclasses.fields(crossbar.Device)}
  # As JSON has them, but for tuples that digests have held from the beginning.
  newer = device.keys() - _HELD
  device |= json.loads(json.dumps({name: device[name] for name in newer}))

  def sparse(value):
    if isinstance(value, list):
      return [sparse(item) for item in value]
    if isinstance(value, dict):  # of a device or a technology
      if "drift_mean" in value and not value.get("drift_time"):
        # Of no effect: as they were when the first digests were made.
        start = {"drift_start": device["drift_start"]}
        value = value | results.FORMER_DRIFT | start
      return {k: v for k, v in value.items() if v and v != device.get(k)}
    return value

  saved = storage.read_record(path)
  return storage.record_digest(
    {
      name: sparse(value)
      for name, value in saved.items()
      if results.concerns(name, stage) and value not in (None, fields.get(name))
    }
  )


def check(
  experiment: Experiment,
  workdir: pathlib.Path,
  remade: Collection[str] = (),
  say: Callable[[str], None] = print,
) -> None:
  """Checks that artefacts were made from what lies in the folder now.

  What is not there now can't differ.

  Args:
    experiment: of the run.
    workdir: of the run.
    remade: stages whose artefacts are removed, and said to be, where they were
      made from something else, so that they are made anew.
    say: takes the lines that name them.

  Raises:
    InputError: another stage's was; it says what has changed.
  """

  def check_all():
    for artefact in _artefacts(experiment, workdir):
      changed = _changed(artefact)
      if changed and artefact.stage in remade:
        say(f"{artefact.path}: removed, to be made anew: {changed}")
        artefact.remove()
      elif changed:
        raise errors.InputError(
          f"{artefact.path}: {changed}; --remake with --stages "
          f"{artefact.stage} makes it anew, or restore what it was made from, "
          "or take another --workdir"
        )

  distributed.on_first(check_all)


def check_trained(
  experiment: Experiment, trained: Experiment, source: pathlib.Path
) -> dict[str, str]:
  """Checks that another run's nets are there, made from what lies there.

  Args:
    experiment: of the run that is to measure them.
    trained: as it, with that run's own configuration.
    source: that run's folder.

  Returns:
    {net: digest of what was trained}.

  Raises:
    InputError: one is missing or damaged, or was made from something else.
  """
  digests = {}
  for net in experiment.config.train.nets:
    digests[net] = results.net_digest(net, experiment, source)
    if digests[net] is None:
      raise errors.InputError(
        f"--from: got {source}, in which the net {net} is missing, damaged or "
        "not trained to its end; run --stages train there first"
      )
  for artefact in _artefacts(trained, source):
    if artefact.stage != "robustness" and (changed := _changed(artefact)):
      raise errors.InputError(f"--from: {artefact.path}: {changed}")
  return digests


def check_measured(
  workdir: pathlib.Path,
  names: Collection[str],
  experiment: Experiment,
  source: pathlib.Path,
  is_remade: bool,
) -> None:
  """Checks that nets measured in a folder are those that a source has now.

  It comes before source.json is written, which would say of accuracies that
  they are of other nets.

  Args:
    workdir: of the run that measures.
    names: of the nets that it is to measure.
    experiment: of that run.
    source: folder of the run that has the nets.
    is_remade: nets of `names` that are others are measured anew.

  Raises:
    InputError: one is another, and isn't measured anew.
  """
  if not results.robustness_path(workdir).exists():
    return
  measured = results.load_robustness(workdir)["nets"]
  before = (results.load_source(workdir) or {}).get("folder")
  for net, entry in measured.items():
    then = entry["inputs"]["trained net"]
    now = results.net_digest(net, experiment, source)
    # What is not there any more where it was can't differ.
    is_gone = now is None and before == str(source)
    if now == then or is_gone or (is_remade and net in names):
      continue
    raise errors.InputError(
      f"--from: got {source}, whose net {net} ({_short(now)}) is another than "
      f"{workdir} has measured ({_short(then)}); take another --workdir, or "
      "--remake with --stages robustness and all measured nets in "
      "config.train.nets"
    )


class _Artefact(NamedTuple):
  """Something made: its inputs then (None: unknown) and now; its removal."""

  stage: str
  path: pathlib.Path | str
  then: dict[str, Any] | None
  now: dict[str, Any]
  remove: Callable[[], None]


def _artefacts(experiment, workdir) -> Iterator[_Artefact]:
  """Those that are there, in the order in which they are made."""
  places = [("train", net) for net in nets.trained(experiment)]
  if results.source_of(workdir):  # which has them
    places = []
  elif experiment.space:
    places = [("pretrain", ""), ("search", ""), *places]
  for stage, net in places:
    folder = results.net_folder(workdir, net) if net else workdir / stage
    if results.holds_artefacts(folder):
      yield _Artefact(
        stage,
        folder,
        _recorded(folder),
        inputs(experiment, workdir, stage, net),
        lambda folder=folder: storage.remove_folder(folder),
      )
  path = results.robustness_path(workdir)
  if not path.exists():
    return
  result = results.load_robustness(workdir)

  def forget(net):
    del result["nets"][net]
    results.write_robustness(workdir, result)

  for net, entry in list(result["nets"].items()):
    if net not in experiment.config.train.nets:
      continue
    yield _Artefact(
      "robustness",
      f"{path}, net {net}",
      entry["inputs"],
      inputs(experiment, workdir, "robustness", net),
      lambda net=net: forget(net),
    )


def _recorded(folder):
  path = folder / results.INPUTS
  return storage.read_record(path).get("inputs") if path.exists() else None


def _changed(artefact):
  """Says which inputs are others now; "" if none is."""
  if artefact.then is None:
    return "has no inputs.json, which says what it was made from"
  return ", ".join(
    f"it was made from another {name} ({_short(then)}) than is there now "
    f"({_short(artefact.now[name])})"
    for name, then in artefact.then.items()
    if artefact.now.get(name) is not None and artefact.now[name] != then
  )


def _short(value):
  return f"digest {value[:_SHOWN]}" if isinstance(value, str) else value
