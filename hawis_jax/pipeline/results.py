"""What a run has left in its work directory: read and written here alone.

pretrain/                 checkpoints of the super-net
search/                   checkpoints, result.json, evaluations.npz
train/<net>/              checkpoints; best/ keeps the best one
robustness/result.json    accuracies; partial.json while chips are measured
robustness/correct/       which images each chip classifies correctly
report/                   index.html, report.json, figures
config.json, metrics.jsonl, lock
source.json               of a run that measures another one's nets: where they
                          are, and their digests; it has no folders of its own
                          for the first three stages
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import textwrap
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import ml_collections
import numpy as np

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import interop
from hawis_jax.config import fields
from hawis_jax.config import settings
from hawis_jax.networks import net_names
from hawis_jax.networks import reference_resnet
from hawis_jax.pipeline import nets
from hawis_jax.pipeline.experiment import Experiment
from hawis_jax.pipeline.experiment import prepare
from hawis_jax.pipeline.experiment import prepare_trained
from hawis_jax.robustness import scenarios
from hawis_jax.runtime import checkpoint
from hawis_jax.runtime import loop
from hawis_jax.runtime import storage

# Of search/result.json: 4 has the digest of evaluations.npz.
_SEARCH_FORMAT = 4
# Of robustness/result.json: a new one where chips, keys or names change.
ROBUSTNESS_FORMAT = 5
# Constants that devices without any drift had before.
FORMER_DRIFT = {
  "drift_start": 20.0,
  "drift_mean": [0.0, 0.1, 0.1, 0.1],
  "drift_std": [0.0, 0.05, 0.05, 0.05],
}
_ELSEWHERE = "take another --workdir"
# Of a stage's or a net's folder: what it is made from (see `provenance`).
INPUTS = "inputs.json"
# Stages with artefacts of their own in <workdir>/<stage>, in order.
STAGES = fields.STAGES[:-1]


class Trained(NamedTuple):
  """A trained net.

  Attributes:
    module: with `encode` and `apply`, as all networks here.
    variables: its `params` and `batch_stats`; without `batch_stats`, it
      normalises with the batch's statistics.
  """

  module: nn.Module
  variables: dict


def source_of(workdir: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder of the run whose nets a run measures; None: its own.

  Raises:
    InputError: source.json is damaged, or that run is not there any more.
  """
  path = workdir / "source.json"
  if not path.exists():
    return None
  folder = storage.folder_path(storage.read_record(path)["folder"], str(path))
  if not (folder / "config.json").exists():
    raise errors.InputError(
      f"{path}: got {folder}, where no run is any more; say where it is now "
      "with --from"
    )
  return folder


def load_source(workdir: pathlib.Path) -> dict[str, Any] | None:
  """Returns what source.json holds: `folder`, and digests of `nets` there."""
  path = workdir / "source.json"
  return storage.read_record(path) if path.exists() else None


def write_source(
  workdir: pathlib.Path, source: pathlib.Path, digests: Mapping[str, str]
) -> None:
  """Writes source.json."""
  record = {"folder": str(source), "nets": dict(digests)}
  storage.write_record(workdir / "source.json", record)


def _trained_in(workdir):
  """The folder that has what stages up to train have made."""
  return source_of(workdir) or workdir


def net_folder(workdir: pathlib.Path, net: str) -> pathlib.Path:
  """Returns the folder of a net's checkpoints."""
  return _trained_in(workdir) / "train" / net


def best_folder(workdir: pathlib.Path, net: str) -> pathlib.Path:
  """Returns the folder of the state that `train.select` may ask for."""
  return net_folder(workdir, net) / "best"


def search_path(workdir: pathlib.Path) -> pathlib.Path:
  """Returns the path of the search's result."""
  return _trained_in(workdir) / "search" / "result.json"


def robustness_path(workdir: pathlib.Path) -> pathlib.Path:
  """Returns the path of the robustness stage's result."""
  return workdir / "robustness" / "result.json"


def load_supernet(experiment: Experiment, workdir: pathlib.Path) -> dict:
  """Returns the pre-trained super-net's `params`.

  Raises:
    InputError: the stage has not finished.
  """
  init, _ = nets.supernet_init(experiment)
  example = jax.eval_shape(init, experiment.key("pretrain_init"))
  checkpoints = checkpoint.Reader(workdir / "pretrain")
  steps = experiment.config.pretrain.steps
  return loop.load_final(checkpoints, example, steps, "pretrain").params


def write_search(workdir: pathlib.Path, result: dict[str, Any]) -> None:
  """Writes search/result.json."""
  table = storage.digest(evaluations_path(workdir))
  result = {"format": _SEARCH_FORMAT, "evaluations_digest": table, **result}
  storage.write_record(search_path(workdir), result)


def evaluations_path(workdir: pathlib.Path) -> pathlib.Path:
  """Returns the path of all that the search scored."""
  return _trained_in(workdir) / "search" / "evaluations.npz"


def load_search(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns the search's result.

  Raises:
    InputError: the stage has not finished, or its file is damaged or of an
      earlier version.
  """
  result = _load(search_path(workdir), "search", _SEARCH_FORMAT)
  table = evaluations_path(workdir)
  if table.exists() and storage.digest(table) != result["evaluations_digest"]:
    raise errors.InputError(
      f"{table}: got another content than was written there; restore the file, "
      "or delete it: nothing else needs it"
    )
  return result


def load_evaluations(workdir: pathlib.Path) -> Any:
  """Returns the arrays of all that the search scored; None: they are gone."""
  path = evaluations_path(workdir)
  return np.load(io.BytesIO(path.read_bytes())) if path.exists() else None


def net_module(
  net: str, experiment: Experiment, workdir: pathlib.Path
) -> nn.Module:
  """Returns a net's module; found nets' widths are the search's result."""
  found, name = None, net_names.parse(net).widths
  if name not in experiment.widths:
    field = f"{search_path(workdir)}: {name}"
    found = found_widths(load_search(workdir), experiment.config)[name]
    found = tuple(map(int, experiment.space.check(found, field)))
  return nets.module(net, experiment, found)


def found_widths(
  result: Mapping[str, Any], config: ml_collections.ConfigDict
) -> dict[str, list[int]]:
  """Returns widths of the found net of every budget, by name.

  That of another budget than the main one is the first method's best.
  """
  best = result["best"][result["method"]]
  named = {
    net_names.at_share("found", share): entry and entry["widths"]
    for share, entry in zip(settings.shares(config), best, strict=True)
  }
  return named | {"found": result["found"]}


def net_digest(
  net: str, experiment: Experiment, workdir: pathlib.Path
) -> str | None:
  """Returns the digest of a trained net; None: its training has not finished.

  An 8-bit net that is made of a float net has that one's.
  """
  config = experiment.config.train
  if nets.is_quantized(net, experiment):
    net = net_names.float_of(net)
  digest = checkpoint.saved_digest(net_folder(workdir, net), config.steps)
  if digest and config.select == "best":
    digest = checkpoint.saved_digest(best_folder(workdir, net))
  return digest


def load_net(
  net: str, experiment: Experiment, workdir: pathlib.Path
) -> Trained:
  """Returns a trained net, of the last or the best step.

  Its statistics are those of ideal weights, see `nets.ideal_statistics`.

  Raises:
    InputError: it has not been trained; or it is another run's, where another
      one lies now than was measured.
  """
  _check_measured(net, experiment, workdir)
  config, module = experiment.config, net_module(net, experiment, workdir)
  if nets.is_quantized(net, experiment):
    float_net = net_names.float_of(net)
    images = nets.calibration_images(experiment)
    variables = load_net(float_net, experiment, workdir).variables
    return Trained(module, reference_resnet.quantize(module, variables, images))
  init, _ = nets.net_init(net, module, experiment)
  example = jax.eval_shape(init, experiment.key("train_init"))
  checkpoints = checkpoint.Reader(net_folder(workdir, net))
  state = loop.load_final(checkpoints, example, config.train.steps, "train")
  if config.train.select == "best":
    best = checkpoint.Reader(best_folder(workdir, net))
    state = loop.Best(best).load(example)
  variables = state.variables
  if net_names.parse(net).on_chips:
    variables = nets.ideal_statistics(module, variables, experiment)
  return Trained(module, variables)


def _check_measured(net, experiment, workdir):
  """Raises InputError where another run has other nets than were measured."""
  source = load_source(workdir)
  if source is None:
    return
  known = [source["nets"].get(net)]
  if robustness_path(workdir).exists():
    entry = load_robustness(workdir)["nets"].get(net)
    known += [entry["inputs"]["trained net"]] if entry else []
  now = net_digest(net, experiment, workdir)
  if now and any(then and then != now for then in known):
    raise errors.InputError(
      f"{workdir}: its net {net} in {source['folder']} is another now than was "
      "measured; restore it there, or measure it anew with --from and --remake"
    )


def open_run(workdir: str | os.PathLike) -> Experiment:
  """Returns the experiment of a work directory, as its config.json says.

  Raises:
    InputError: there is none, or it is damaged or of another version; its data
      can't be read.
  """
  config = saved_config(pathlib.Path(workdir))
  source = source_of(pathlib.Path(workdir))
  try:
    settings.validate(config, is_trained=source is not None)
    if source:
      return prepare_trained(config, saved_config(source))
    return prepare(config)
  except errors.InputError as error:
    raise errors.InputError(
      f"{workdir}: {error}; files that a run names are looked for from the "
      f"current folder, {os.getcwd()}"
    ) from error


def check_device(config: ml_collections.ConfigDict, workdir: pathlib.Path):
  """Checks that a run's device still is the one that it was measured on.

  Its file may have changed, or be another folder's.

  Raises:
    InputError: tells what differs.
  """
  now = _as_read(_resolved_nets(config) | _resolved_chips(config))
  before = _with_new_fields(now, _read_config(workdir / "config.json"))
  for field in ("device.resolved", "robustness.effects"):
    if now[field] != before[field]:
      raise errors.InputError(
        f"--device: got none, and {config.device.preset} is another device now "
        f"than {workdir} was measured on: "
        f"{_difference(field, before[field], now[field])}"
      )


def saved_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
  """Returns the configuration of a run, as its config.json says.

  Raises:
    InputError: there is none, or it is damaged.
  """
  saved = _read_config(workdir / "config.json")
  config = settings.default()
  with config.unlocked():
    for name, value in saved.items():
      if name in fields.FIELDS:
        config.update_from_flattened_dict({name: _as_tuples(value)})
  return config


# What nets of another run may be measured with, sections and fields; and the
# sections that are no matter any more: those of that run are taken.
_MEASURED = ("device", "hardware_aware", "robustness")
_MEASURED += ("seed", "space.technology", "space.duplication", "train.nets")
_PAST = ("pretrain", "search")


def fit_to_source(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  source: pathlib.Path,
) -> ml_collections.ConfigDict:
  """Returns the configuration with which a run can measure another one's nets.

  It is as given, but for what that run has done before its nets were trained.

  Args:
    config: of the run.
    workdir: of the run.
    source: of the other one.

  Raises:
    InputError: it is no other run, or trains other nets; or `workdir` has nets
      of its own.
  """
  here, there = (os.path.realpath(path) for path in (workdir, source))
  if pathlib.Path(there) in (pathlib.Path(here), *pathlib.Path(here).parents):
    raise errors.InputError(
      f"--workdir: got {workdir}, in which --from has its nets; allowed is "
      "another folder, outside of it"
    )
  own = [s for s in STAGES[:3] if holds_artefacts(workdir / s)]
  if own:
    raise errors.InputError(
      f"--workdir: got {workdir}, which has its own {' and '.join(own)}, "
      "allowed with --from is a folder without"
    )
  saved, fitting = saved_config(source), config.copy_and_resolve_references()
  for section in _PAST:
    fitting[section] = saved[section]
  theirs, ours = (_as_read(settings.flatten(one)) for one in (saved, fitting))
  changed = [
    f"config.{name} is {value!r}, there {theirs[name]!r}"
    for name, value in ours.items()
    if not (fields.FIELDS[name].is_free or value == theirs[name])
    and not {name, name.split(".")[0]} & {*_MEASURED}
  ]
  there = settings.nets(saved)
  changed += [
    f"config.train.nets has {net}, there are {', '.join(there)}"
    for net in settings.nets(fitting)
    if net not in there
  ]
  if changed:
    raise errors.InputError(
      f"--from: got {source}, whose nets are of another configuration: "
      f"{'; '.join(changed)}"
    )
  return fitting.lock()


def check_data(facts: Mapping[str, Any], source: pathlib.Path) -> None:
  """Checks that images are those that another run's nets were trained on.

  Raises:
    InputError: they are others.
  """
  now, then = _as_read(dict(facts)), _read_config(source / "config.json")
  then = then.get("data.resolved", now)
  if now != then:
    raise errors.InputError(
      f"--from: got {source}, whose data are others: "
      f"{_difference('data', then, now)}"
    )


def load_net_of_run(workdir: str | os.PathLike, name: str) -> Trained:
  """Returns a trained net of a run: (module, variables).

  >>> import hawis_jax as hx
  >>> net, variables = hx.load_net("runs/digits", "found")  # doctest: +SKIP

  Args:
    workdir: of a run whose stage `train` has finished for the net.
    name: as in `config.train.nets`, e.g. "found" or "baseline_1x_int8".

  Raises:
    InputError: there is no such net, or it has not been trained.
  """
  experiment = open_run(workdir)
  errors.check_fields([name], experiment.config.train.nets, "name")
  return load_net(name, experiment, pathlib.Path(workdir))


def _as_tuples(value):
  """A value of JSON as a configuration has it: lists are tuples."""
  if isinstance(value, list):
    return tuple(map(_as_tuples, value))
  if isinstance(value, dict):
    return {key: _as_tuples(item) for key, item in value.items()}
  return value


def chosen_step(net: str, experiment: Experiment, workdir: pathlib.Path) -> int:
  """Returns the step of training that `load_net`'s net is of."""
  config = experiment.config.train
  if config.select == "last":
    return config.steps
  if nets.is_quantized(net, experiment):
    net = net_names.float_of(net)
  return checkpoint.Reader(best_folder(workdir, net)).latest_step()


def load_teacher(
  experiment: Experiment, workdir: pathlib.Path
) -> Trained | None:
  """Returns the teacher of the binary nets; None where labels teach.

  Raises:
    InputError: it has not been trained; its file is missing or damaged, or
      holds another network.
  """
  config = experiment.config.train
  if config.loss in ("labels", "margin"):
    return None
  if config.loss == "supernet":
    params = load_supernet(experiment, workdir)
    return Trained(experiment.supernet, {"params": params})
  if not pathlib.Path(config.teacher).is_file():
    return load_net(config.teacher, experiment, workdir)
  module = nets.teacher_module(experiment)
  try:
    variables = interop.from_torch_state_dict(config.teacher, module)
  except errors.InputError as error:
    raise errors.InputError(f"config.train.teacher: {error}") from error
  return Trained(module, variables)


def load_robustness(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns the robustness stage's result, which may lack some levels.

  Raises:
    InputError: the stage has not begun; its file is damaged, or of a version
      whose chips are not those of this one.
  """
  return _load(robustness_path(workdir), "robustness", ROBUSTNESS_FORMAT)


def _load(path, stage, needed):
  if not path.exists():
    raise errors.InputError(f"{path}: missing; run --stages {stage} first")
  result = storage.read_record(path)
  if result.get("format") != needed:
    raise errors.InputError(
      f"{path}: got results of format {result.get('format', 1)}, allowed is "
      f"{needed}: it is of another version of hawis_jax. Delete {path.parent} "
      "to make it anew, or take another --workdir"
    )
  return result


def write_robustness(workdir: pathlib.Path, result: dict[str, Any]) -> None:
  """Writes robustness/result.json."""
  storage.write_record(robustness_path(workdir), result)


def settle(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  data: Mapping[str, Any] | None = None,
  source: pathlib.Path | None = None,
) -> None:
  """Writes <workdir>/config.json, or checks that it can go on with this one.

  A difference is allowed where it can't matter: in fields that are free, or in
  the section of a stage that neither has begun nor has a later one. A field
  that the file lacks is newer than the run, which had what is its default now.

  Args:
    config: of the run.
    workdir: of the run.
    data: what `Splits.facts` says, for `data.data_dir` may change but not what
      is there; None: not known.
    source: of the run whose nets are measured; None: they are this one's.

  Raises:
    InputError: lists the differences; or the folder can't be written.
  """
  path = workdir / "config.json"
  if not path.exists():
    left = [stage for stage in STAGES if holds_artefacts(workdir / stage)]
    left += ["metrics.jsonl"] * storage.has_content(workdir / "metrics.jsonl")
    if left:
      raise errors.InputError(
        f"{path}: missing beside {', '.join(left)}: nothing else says what "
        "these are of; restore it, or take another --workdir"
      )
  now = _as_read(settings.flatten(config) | _resolved(config, source))
  if data is not None:
    now["data.resolved"] = _as_read(dict(data))
  before = now
  if path.exists():
    saved = _read_config(path)
    defaults = _as_read(settings.flatten(settings.default()))
    before = _with_new_fields(now, defaults | saved)
    if data is None and "data.resolved" in before:
      now["data.resolved"] = before["data.resolved"]
  changed = [
    field
    for field in sorted(before.keys() | now.keys())
    if before.get(field) != now.get(field) and _matters(field, workdir)
  ]
  if changed:
    # What follows from fields is told where no field tells it.
    told = [field for field in changed if field in fields.FIELDS] or changed
    told = [_difference(x, before.get(x), now.get(x)) for x in told]
    raise errors.InputError(
      f"{workdir} holds a run with another configuration: {'; '.join(told)}."
      " Take another --workdir, or the old values"
    )
  storage.write_record(path, now)


_MOST_SHOWN = 300  # characters of a value in a line


def _difference(field, before, now):
  """Says how a field differs; of a device or a list of them only what does."""
  parts = _differing(before, now)
  before, now = (textwrap.shorten(repr(x), _MOST_SHOWN) for x in parts)
  return f"config.{field} was {before}, is {now}"


def _differing(before, now):
  if isinstance(before, dict) and isinstance(now, dict):
    names = [x for x in before | now if before.get(x) != now.get(x)]
    pairs = {x: _differing(before.get(x), now.get(x)) for x in names}
    return tuple({x: pair[i] for x, pair in pairs.items()} for i in (0, 1))
  is_list = isinstance(before, list) and isinstance(now, list)
  if is_list and len(before) == len(now):
    pairs = [_differing(*x) for x in zip(before, now, strict=True)]
    if all(isinstance(x, dict) for x in (*before, *now)):
      return tuple([pair[i] for pair in pairs] for i in (0, 1))
  return before, now


def _read_config(path):
  """What config.json holds, and what its 8-bit nets had before a field."""
  saved = storage.read_record(path, _ELSEWHERE)
  statistics = saved.get("robustness.batch_norm")
  if isinstance(statistics, str):  # before it was a tuple
    saved["robustness.batch_norm"] = [statistics]
  kinds = [net_names.parse(net).kind for net in saved.get("train.nets", ())]
  older = {"train.int8_scales": "tensor"} if net_names.INT8 in kinds else {}
  return older | saved


def _with_new_fields(now, before):
  """What an older version wrote, and what it lacks as it is now.

  A field of a device that is newer than a run is an effect that was absent,
  and is so by default.
  """
  absent = {f.name: f.default for f in dataclasses.fields(crossbar.Device)}
  absent = _as_read(absent)
  before = now | before

  def as_now(device):
    former = {name: device.get(name) for name in FORMER_DRIFT} == FORMER_DRIFT
    if former and not device["drift_time"]:
      device = device | {name: absent[name] for name in FORMER_DRIFT}
    return absent | device

  before["device.resolved"] = as_now(before["device.resolved"])
  for stage in ("pretrain", "train", "robustness"):
    before[f"{stage}.devices"] = [*map(as_now, before[f"{stage}.devices"])]
  technology = "space.technology.resolved"
  before[technology] = now[technology] | before[technology]
  return before


def _resolved(config, source=None):
  """What may change under the same name: a preset, a file."""
  if source is None:
    return _resolved_nets(config) | _resolved_chips(config)
  theirs = _read_config(source / "config.json")
  chips = _resolved_chips(config)
  kept = theirs.keys() - chips.keys() - settings.flatten(config).keys()
  return {name: theirs[name] for name in kept} | chips


def _resolved_nets(config):
  """Of what nets are made of."""
  costs = settings.own_costs(config)
  teacher = pathlib.Path(config.train.teacher)
  from_file = config.train.loss == "teacher" and teacher.is_file()
  return {
    "train.teacher.resolved": storage.digest(teacher) if from_file else None,
    "space.cost.resolved": None
    if costs is None
    else hashlib.sha256(costs.tobytes()).hexdigest(),
    "pretrain.devices": [
      dataclasses.asdict(device) for device in settings.pretrain_devices(config)
    ],
    # The section is training's, but where the super-net is trained so too.
    "pretrain.hardware_aware": config.pretrain.faulty_widths
    and [config.hardware_aware.most_severity, config.hardware_aware.ramp],
    "train.devices": [
      dataclasses.asdict(device) for device in settings.train_devices(config)
    ],
    "search.effects": _taken_effects(config, "search"),
  }


def _resolved_chips(config):
  """Of what they are measured on."""
  sweeps = settings.sweeps(config)
  maps = {
    severity.fault_map for one in sweeps for severity in one.severities
  } - {""}
  technology = settings.hardware(config).technology
  return {
    "device.resolved": dataclasses.asdict(settings.device(config)),
    "space.technology.resolved": dataclasses.asdict(technology),
    "robustness.devices": [
      dataclasses.asdict(device) for device in settings.design_devices(config)
    ],
    "robustness.effects": _taken_effects(config, "robustness"),
    "robustness.fault_maps": {
      path: storage.digest(path) for path in sorted(maps)
    },
  }


def _taken_effects(config, section):
  """Those that scenarios take; None, as without the field, if none does."""
  takes = any(scenarios.DEVICE in one for one in config[section].scenarios)
  return settings.own_effects(config) if takes else None


def _as_read(values):
  """Values as they are read from a file again."""
  return json.loads(json.dumps(values))


def concerns(field: str, stage: str) -> bool:
  """Returns whether an artefact of a stage may depend on a field."""
  if field in fields.FIELDS and fields.FIELDS[field].is_free:
    return False
  section = field.split(".")[0].replace("hardware_aware", "train")
  return STAGES.index(stage) >= (
    STAGES.index(section) if section in STAGES else 0
  )


def holds_artefacts(folder: pathlib.Path) -> bool:
  """Returns whether a stage has made anything in a folder."""
  # It writes what it will be made from before anything else.
  return any(path.name != INPUTS for path in storage.contents(folder))


def _matters(field, workdir):
  return any(
    concerns(field, stage) and holds_artefacts(workdir / stage)
    for stage in STAGES
  )
