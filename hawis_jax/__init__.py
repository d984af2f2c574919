"""Width search for binary neural networks on defective ReRAM crossbars.

The names below are public, with the modules they come from; they are imported
when they are first used. All but two have docstrings; these are tables:

>>> import hawis_jax as hx
>>> hx.PRESETS["pcm"].g_on  # devices by name; the conductance of one [S]
2.5e-05
>>> hx.WIDTHS["resnet20_hawis_a"][:3]  # published width vectors [channels]
(64, 80, 80)
"""

import importlib

# {public name: module that defines it, with the name there if it is another}.
_PUBLIC = {
  "WIDTHS": "networks.width_vectors:PRESETS",
  "cifar_resnet": "networks.resnet",
  "imagenet_resnet18": "networks.resnet",
  "init_variables": "networks.net_variables:init",
  "thermometer_code": "arithmetic.binary",
  "width_space": "networks.width_vectors",
  "Device": "crossbar",
  "PRESETS": "crossbar",
  "conductances": "crossbar",
  "effective_weights": "crossbar",
  "Placing": "crossbar",
  "place": "crossbar",
  "placing_overhead": "crossbar:overhead",
  "program": "crossbar",
  "wire_transfer": "crossbar",
  "cifar_geometry": "cost",
  "cost_tables": "cost:tables",
  "own_costs": "cost:own_tables",
  "imagenet_geometry": "cost",
  "network_cost": "cost",
  "any_flax": "networks.any_flax",
  "evaluate_chips": "robustness.evaluation",
  "train_on_chips": "training.hardware_aware",
  "retrain_for_chip": "training.hardware_aware",
  "summarize": "robustness.statistics",
  "feasible_set": "search.own_score",
  "search_widths": "search.own_score",
  "evolution": "search.methods",
  "local_search": "search.methods",
  "per_stage": "search.methods",
  "policy": "search.methods",
  "ppo": "search.methods",
  "predictor": "search.methods",
  "random_search": "search.methods",
  "reinforce": "search.methods",
  "load_device": "crossbar",
  "fit_device": "interop",
  "from_torch_state_dict": "interop",
  "arrays": "data.arrays",
  "load_net": "pipeline.results:load_net_of_run",
  "pretrained": "zoo",
  "InputError": "errors",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604


def __getattr__(name):
  if name == "__version__":  # which takes longer to find than all else here
    from importlib import metadata

    globals()[name] = metadata.version("hawis_jax")
    return globals()[name]
  if name not in _PUBLIC:
    raise AttributeError(f"module 'hawis_jax' has no attribute {name!r}")
  module, _, attribute = _PUBLIC[name].partition(":")
  module = importlib.import_module(f"hawis_jax.{module}")
  # The next use finds it without asking here.
  value = globals()[name] = getattr(module, attribute or name)
  return value


def __dir__():
  return sorted(__all__)
