"""What the artefacts of a work directory were made from, and if that is there.

A net is trained under a teacher, at widths that a search found with a
super-net, and is measured as it was trained. So search/ and train/<net>/ hold
inputs.json, and a net's entry of robustness/result.json its checkpoint's
digest. Data, teachers in files and the configuration are in config.json (see
`results.settle`).
"""

from collections.abc import Callable, Iterator
import importlib.metadata
import pathlib
import platform
from typing import Any, NamedTuple

from hawis_jax import errors
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


def record(folder: pathlib.Path, inputs: dict[str, Any]) -> None:
  """Writes <folder>/inputs.json, or adds to it that these versions go on."""

  def write():
    path = folder / "inputs.json"
    saved = {"inputs": inputs, "versions": []}
    if path.exists():
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


def net_digest(
  net: str, experiment: Experiment, workdir: pathlib.Path
) -> str | None:
  """Returns the digest of a trained net; None: its training has not finished.

  An 8-bit net that is made of a float net has that one's.
  """
  config = experiment.config.train
  if nets.is_quantized(net, experiment):
    net = net_names.float_of(net)
  digest = checkpoint.saved_digest(
    results.net_folder(workdir, net), config.steps
  )
  if digest and config.select == "best":
    digest = checkpoint.saved_digest(results.best_folder(workdir, net))
  return digest


def search_inputs(
  experiment: Experiment, workdir: pathlib.Path
) -> dict[str, Any]:
  """Returns what a search is made from; None: not there."""
  return {"super-net": supernet_digest(experiment, workdir)}


def training_inputs(
  net: str, experiment: Experiment, workdir: pathlib.Path
) -> dict[str, Any]:
  """Returns what a net's training is made from; None: not there."""
  config, name = experiment.config.train, net_names.parse(net)
  inputs = {"widths": None}
  if name.widths != "found" or results.search_path(workdir).exists():
    module = results.net_module(net, experiment, workdir)
    inputs["widths"] = [int(width) for width in module.max_widths]
  if name.kind != net_names.BINARY or config.loss in ("labels", "margin"):
    return inputs
  if config.loss == "supernet":
    return {**inputs, "teacher": supernet_digest(experiment, workdir)}
  if not pathlib.Path(config.teacher).is_file():
    inputs["teacher"] = net_digest(config.teacher, experiment, workdir)
  return inputs


def check(
  experiment: Experiment, workdir: pathlib.Path, remake: bool = False
) -> None:
  """Checks that artefacts were made from what lies in the folder now.

  What is not there now can't differ.

  Args:
    experiment: of the run.
    workdir: of the run.
    remake: removes an artefact that was made from something else, so that its
      stage makes it anew.

  Raises:
    InputError: one was, and `remake` is False; it says what has changed.
  """

  def check_all():
    for artefact in _artefacts(experiment, workdir):
      changed = _changed(artefact)
      if changed and remake:
        artefact.remove()
      elif changed:
        raise errors.InputError(
          f"{artefact.path}: {changed}; --remake makes it anew, or restore "
          "what it was made from, or take another --workdir"
        )

  distributed.on_first(check_all)


class _Artefact(NamedTuple):
  """Something made: its inputs then (None: unknown) and now; its removal."""

  path: pathlib.Path | str
  then: dict[str, Any] | None
  now: dict[str, Any]
  remove: Callable[[], None]


def _artefacts(experiment, workdir) -> Iterator[_Artefact]:
  """Those that are there, in the order in which they are made."""
  folders = {}
  if experiment.space:
    folders[workdir / "search"] = lambda: search_inputs(experiment, workdir)
  for net in nets.trained(experiment):
    folders[results.net_folder(workdir, net)] = lambda net=net: training_inputs(
      net, experiment, workdir
    )
  for folder, inputs in folders.items():
    if storage.holds_files(folder):
      yield _Artefact(
        folder,
        _recorded(folder),
        inputs(),
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
      f"{path}, net {net}",
      {"trained net": entry["checkpoint"]},
      {"trained net": net_digest(net, experiment, workdir)},
      lambda net=net: forget(net),
    )


def _recorded(folder):
  path = folder / "inputs.json"
  return storage.read_record(path)["inputs"] if path.exists() else None


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
