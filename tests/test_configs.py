"""The shipped configurations are valid, preset by preset."""

import importlib.util
import pathlib

import pytest

from hawis_jax import errors
from hawis_jax.config import settings
from hawis_jax.networks import net_names
from hawis_jax.networks import width_vectors

_FOLDER = pathlib.Path(__file__).parents[1] / "configs"


def _config(name, *preset):
  spec = importlib.util.spec_from_file_location(name, _FOLDER / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*preset)


@pytest.mark.parametrize(
  "name",
  [
    "digits",
    "search_benchmark",
    "cifar10_resnet20",
    "cifar10_resnet32",
    "tolerance_resnet20",
  ],
)
def test_the_whole_way(name):
  config = _config(name)
  settings.validate(config)
  assert settings.searches(config)


@pytest.mark.parametrize("preset", width_vectors.PRESETS)
def test_every_published_vector_has_a_recipe(preset, tmp_path):
  network, vector = preset.split("_", 1)
  family = "imagenet" if network == "resnet18" else "cifar10"
  config = _config(f"{family}_{network}", vector)
  if family == "imagenet":
    with pytest.raises(errors.InputError, match="config.train.teacher: got"):
      settings.validate(config)
    config.train.teacher = str(tmp_path / "teacher.npz")
    (tmp_path / "teacher.npz").touch()
  settings.validate(config)
  assert config.train.nets == (preset,)
  assert not settings.searches(config)
  assert len(width_vectors.PRESETS[preset]) == config.network.depth - 1
  assert preset in net_names.vector_names(config.network.depth)


def test_the_tolerance_test_sweeps_what_was_published():
  config = _config("tolerance_resnet20", "hawis_a")
  settings.validate(config)
  assert config.train.nets[0] == "resnet20_hawis_a"
  sweeps = {s.key: s.severities for s in settings.sweeps(config)}
  for effect, most in (("stuck_on", 0.02), ("stuck_off", 0.1)):
    values = [level.value for level in sweeps[effect]]
    assert values[0] == 0 and values[-1] == most
  assert sweeps["variation"][-1].device.variation == 1.1
  wires = sweeps["IR drop, loads of 4 ohm: wire_resistance"]
  assert wires[-1].device.wire_resistance == 28.0
  assert not any(level.is_random for level in wires)


def test_an_unknown_preset_is_named():
  with pytest.raises(errors.InputError, match="resnet20_hawis_z"):
    settings.validate(_config("cifar10_resnet20", "hawis_z"))
