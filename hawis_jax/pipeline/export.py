"""What leaves a finished run for other programs.

  hawis-jax export weights runs/a found found.safetensors
  hawis-jax export chip runs/a found chip7.npz --chip 7
  hawis-jax export netlist runs/a found head.sp --chip 7 --layer head

Weights of 1-bit nets are packed, eight to a byte. Chip s is the chip s that the
run's nets were measured on, where its scenario has these effects; the device is
the run's, with its own random effects, or another one.
"""

import argparse
from collections.abc import Sequence
import pathlib
import sys

from hawis_jax import errors

_ARRAYS = ("positive", "negative")


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status, 2 after one of our errors."""
  given = _parser().parse_args(arguments)
  try:
    given.write(given)
  except errors.InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"{given.what}  {given.file}")
  return 0


def _parser():
  parser = argparse.ArgumentParser(
    "hawis-jax export",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(dest="what", required=True)

  def command(name, write, files, help_text):
    made = commands.add_parser(name, help=help_text, description=help_text)
    made.set_defaults(write=write)
    made.add_argument("run", help="work directory whose training has finished")
    made.add_argument("net", help="as in config.train.nets, e.g. found")
    made.add_argument("file", help=files)
    return made

  weights = command(
    "weights",
    _weights,
    ".safetensors or .npz",
    "A net's weights, signs packed, beside its other variables.",
  )
  weights.add_argument(
    "--published",
    action="store_true",
    help="float weights under the names of the published PyTorch code",
  )
  chip = command(
    "chip", _chip, ".npz, .h5 or .hdf5", "Conductances of all cells of a chip."
  )
  netlist = command(
    "netlist",
    _netlist,
    "of SPICE",
    "One array of a chip with its wires, all rows driven.",
  )
  for made in (chip, netlist):
    made.add_argument("--chip", type=int, default=0, help="from 0; default 0")
    made.add_argument(
      "--device", default="", help="preset or JSON file; default: the run's"
    )
  netlist.add_argument(
    "--layer", required=True, help="e.g. head; of another name all are told"
  )
  for name in ("slice", "row_tile", "column_tile"):
    netlist.add_argument(f"--{name}", type=int, default=0, help="default 0")
  netlist.add_argument(
    "--array", choices=_ARRAYS, default=_ARRAYS[0], help="default positive"
  )
  netlist.add_argument(
    "--dialect", default="ngspice", help="ngspice, the default, or hspice"
  )
  return parser


def _opened(given):
  """(experiment, module, variables) of the run's net."""
  folder, file = pathlib.Path(given.run), pathlib.Path(given.file)
  if not (folder / "config.json").is_file():
    raise errors.InputError(
      f"run: got {folder}, which has no config.json, needed is the folder of a "
      "run"
    )
  if file.exists():
    raise errors.InputError(
      f"file: got {file}, which exists, needed is a new name"
    )
  from hawis_jax.pipeline import results  # seconds of imports

  experiment = results.open_run(given.run)
  errors.check_fields([given.net], experiment.config.train.nets, "net")
  trained = results.load_net(given.net, experiment, folder)
  return experiment, *trained


def _weights(given):
  _, module, variables = _opened(given)
  from hawis_jax import interop

  if given.published:
    interop.export_weights(given.file, variables)
  else:
    interop.export_packed(given.file, module, variables)


def _on_chip(given):
  """(module, variables, device, key of the chip)."""
  if not 0 <= given.chip < 2**32:  # folded into a key as 32 bits
    raise errors.InputError(
      f"--chip: got {given.chip}, allowed are 0 to {2**32 - 1}"
    )
  experiment, module, variables = _opened(given)
  import jax

  from hawis_jax.config import settings
  from hawis_jax.pipeline import results

  config = experiment.config.copy_and_resolve_references()
  if not given.device:
    results.check_device(config, pathlib.Path(given.run))
  else:
    config.device = settings.default().device
    config.device.preset = given.device
  key = jax.random.fold_in(experiment.key("robustness"), given.chip)
  return module, variables, settings.own_device(config), key


def _chip(given):
  module, variables, device, key = _on_chip(given)
  from hawis_jax import interop
  from hawis_jax.networks import net_variables

  interop.export_chip(
    given.file,
    key,
    variables,
    device,
    bits=net_variables.crossbar_bits(module),
    scales=getattr(module, "weight_scales", None),
  )


def _netlist(given):
  module, variables, device, key = _on_chip(given)
  import numpy as np

  from hawis_jax import interop
  from hawis_jax.crossbar import cells
  from hawis_jax.crossbar import wires
  from hawis_jax.networks import net_variables
  from hawis_jax.runtime import storage

  if device.mapping != "differential":
    raise errors.InputError(
      f"mapping: got {device.mapping!r}, allowed is 'differential': the "
      "netlist is of one array of a pair"
    )
  layers = cells.chip_cells(
    key,
    {"params": variables["params"]},
    device,
    bits=net_variables.crossbar_bits(module),
    scales=getattr(module, "weight_scales", None),
  )
  errors.check_fields([given.layer], [*layers], "--layer")
  g = np.asarray(layers[given.layer].conductances)
  place = (given.slice, given.row_tile, given.column_tile)
  if not all(0 <= n < size for n, size in zip(place, g.shape, strict=False)):
    raise errors.InputError(
      f"--slice, --row_tile, --column_tile: got {place}, allowed are below "
      f"{g.shape[:3]}"
    )
  wire, load = wires.resistances(device)
  text = interop.spice_netlist(
    g[*place, _ARRAYS.index(given.array)],
    np.full(g.shape[-2], device.read_voltage),
    wire_resistance=wire,
    load_resistance=load,
    dialect=given.dialect,
    source_side=device.source_side,
    sense_side=device.sense_side,
    gated=device.gated,
    nonlinearity=device.nonlinearity,
    read_voltage=device.read_voltage,
  )
  # The first line of a netlist is its title.
  title = (
    f"* net {given.net} of {given.run}, chip {given.chip}, layer {given.layer},"
    f" slice, row tile and column tile {place}, {given.array} array, device "
    f"{given.device or 'of the run'}"
  )
  text = f"{errors.printable(title)}\n{text}"
  storage.write_bytes(given.file, text.encode())
