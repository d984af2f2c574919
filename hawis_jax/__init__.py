"""Width search for binary neural networks on defective ReRAM crossbars.

The names below are public, with the modules they come from; they are imported
when they are first used.
"""

import functools
import importlib
import importlib.metadata

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
  "program": "crossbar",
  "wire_transfer": "crossbar",
  "cifar_geometry": "cost",
  "cost_tables": "cost:tables",
  "imagenet_geometry": "cost",
  "network_cost": "cost",
  "evaluate_chips": "robustness.evaluation",
  "summarize": "robustness.statistics",
  "feasible_set": "search.own_score",
  "search_widths": "search.own_score",
  "from_torch_state_dict": "interop",
  "InputError": "errors",
}
# {public name: the search method it chooses}.
_METHODS = {
  "evolution": "evolution",
  "local_search": "local",
  "per_stage": "per_stage",
  "policy": "ppo",
  "ppo": "ppo",
  "predictor": "predictor",
  "random_search": "random",
  "reinforce": "reinforce",
}

__all__ = ["__version__", *_METHODS, *_PUBLIC]  # noqa: PLE0604
__version__ = importlib.metadata.version("hawis_jax")


def __getattr__(name):
  if name in _METHODS:
    module = importlib.import_module("hawis_jax.search.own_score")
    value = functools.partial(module.choose_method, _METHODS[name])
  elif name in _PUBLIC:
    module, _, attribute = _PUBLIC[name].partition(":")
    module = importlib.import_module(f"hawis_jax.{module}")
    value = getattr(module, attribute or name)
  else:
    raise AttributeError(f"module 'hawis_jax' has no attribute {name!r}")
  globals()[name] = value
  return value


def __dir__():
  return sorted(__all__)
