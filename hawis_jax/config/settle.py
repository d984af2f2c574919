"""What a run keeps of its configuration: <workdir>/config.json."""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

import ml_collections

from hawis_jax import errors
from hawis_jax import files
from hawis_jax.config import config as config_lib
from hawis_jax.config import fields

# Stages with artefacts of their own in <workdir>/<stage>, in order.
_STAGES = ("pretrain", "search", "train", "robustness")


def settle(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  data: Mapping[str, Any] | None = None,
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

  Raises:
    InputError: lists the differences; or the folder can't be written.
  """
  path = workdir / "config.json"
  now = _plain(config_lib.flatten(config) | _resolved(config))
  if data is not None:
    now["data.resolved"] = _plain(dict(data))
  before = now
  if path.exists():
    before = files.read_record(path)
    before = _plain(config_lib.flatten(config_lib.default())) | before
  changed = [
    f"config.{field} was {before.get(field)!r}, is {now.get(field)!r}"
    for field in sorted(before.keys() | now.keys())
    if before.get(field) != now.get(field) and _matters(field, workdir)
  ]
  if changed:
    raise errors.InputError(
      f"{workdir} holds a run with another configuration: {'; '.join(changed)}."
      " Take another --workdir, or the old values"
    )
  files.write_record(path, now)


def _resolved(config):
  """What may change under the same name: a preset, a file."""
  sweeps = config_lib.sweeps(config)
  maps = {level.fault_map for one in sweeps for level in one.levels} - {""}
  technology = config_lib.hardware(config).technology
  return {
    "device.resolved": dataclasses.asdict(config_lib.device(config)),
    "space.technology.resolved": dataclasses.asdict(technology),
    "pretrain.devices": [
      dataclasses.asdict(device)
      for device in config_lib.pretrain_devices(config)
    ],
    "robustness.fault_maps": {
      path: files.digest(path) for path in sorted(maps)
    },
  }


def _plain(values):
  """Values as they are read from a file again."""
  return json.loads(json.dumps(values))


def _matters(field, workdir):
  if field in fields.FIELDS and fields.FIELDS[field].is_free:
    return False
  section = field.split(".")[0]
  first = _STAGES.index(section) if section in _STAGES else 0
  folders = (workdir / stage for stage in _STAGES[first:])
  return any(files.contents(folder) for folder in folders)
