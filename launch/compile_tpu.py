"""Compiles the pipeline for TPUs, with no TPU and no data at hand.

launch/compile_tpu.py --topology v5e:16x16 \
  --config configs/imagenet_resnet18.py:hawis_b [--stages=pretrain,search] \
  [--config.<field>=<value> ...]

Needs the extra `tpu`. The programs are those that the stages run, with their
shardings. For each: bytes of arguments, outputs (without those in the place of
donated arguments) and temporaries, and their sum as a share of the device's
memory; operations of its products and its collectives (number, bytes), a step
and device. Exit status 1 where a stage does not fit, 2 for a mistake.
"""

import os
import re
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"  # or jax would look for a TPU

from absl import app
from absl import flags

from hawis_jax import backend

backend.configure()

# ruff: noqa: E402
import jax

from hawis_jax import ahead
from hawis_jax import command_line
from hawis_jax import compiled
from hawis_jax import errors
from hawis_jax import tpu

_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x4", "E.g. v5e:16x16.")
_STAGES = flags.DEFINE_list(
  "stages", ["all"], f"all, or some of {', '.join(ahead.STAGES)}."
)
_ROW = "{:44} {:>9} {:>8} {:>9} {:>6} {:>9}  {}"


def main(argv: list[str]) -> int:
  """Prints the table; returns the exit status."""
  del argv
  stages = _stages()
  devices, chip = tpu.topology(_TOPOLOGY.value)
  print(
    f"jax {jax.__version__}, {_TOPOLOGY.value}: {len(devices)} devices of "
    f"{chip.memory / 1e9:.1f} GB"
  )
  fits = True
  with backend.compiling_for("tpu"):
    experiment = ahead.prepare(command_line.CONFIG.value, len(devices), stages)
    if {"init", "pretrain"} & set(stages):
      state = ahead.state_bytes(experiment, devices)
      print(f"training state of a device: {state / 1e9:.3f} GB", flush=True)
    print(
      _ROW.format(
        "stage", "arguments", "outputs", "temporary", "memory", "TFLOP", ""
      )
      + "collectives"
    )
    for stage in stages:
      start = time.monotonic()
      try:
        for name, needs in ahead.programs(
          stage, experiment, devices, chip.memory
        ):
          fits &= needs.memory <= chip.memory
          print(_row(name, needs, chip), flush=True)
      except (errors.InputError, jax.errors.JaxRuntimeError) as error:
        print(f"{stage}: does not fit: {_too_large(error)}", flush=True)
        fits = False
      seconds = time.monotonic() - start
      print(f"  compiled in {seconds:.0f} s", file=sys.stderr)
  return 0 if fits else 1


def _stages():
  names = _STAGES.value
  unknown = [name for name in names if name not in ("all", *ahead.STAGES)]
  if unknown or not names:
    raise errors.InputError(
      f"--stages: got {','.join(names)!r}, allowed are all, "
      f"{', '.join(ahead.STAGES)}"
    )
  return [s for s in ahead.STAGES if s in names or "all" in names]


def _row(name: str, needs: compiled.Needs, chip: tpu.Chip) -> str:
  sizes = (needs.arguments, needs.outputs, needs.temporary)
  moved = ", ".join(
    f"{count} {kind} {size / 1e6:.1f} MB"
    for kind, (count, size) in needs.collectives.items()
  )
  return _ROW.format(
    name,
    *(f"{size / 1e9:.3f} GB" for size in sizes),
    f"{100 * needs.memory / chip.memory:.0f} %",
    f"{needs.flops / 1e12:.4g}",
    moved or "none",
  )


def _too_large(error: Exception) -> str:
  """One line of a compiler's error; any other error is raised again."""
  if isinstance(error, errors.InputError):
    return str(error)
  if "RESOURCE_EXHAUSTED" not in str(error):
    raise error
  needed = re.search(
    r"Used \S+ of \S+ hbm|total memory required .*? exceeds .*?\)", str(error)
  )
  return needed[0] if needed else str(error).splitlines()[0]


if __name__ == "__main__":
  app.define_help_flags()
  sys.exit(command_line.run(main, sys.argv))
