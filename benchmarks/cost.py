"""Cost of the published width vectors, in Markdown; vectors costed a second.

python benchmarks/cost.py
python benchmarks/cost.py --speed 1000000

For each technology and two devices, of which only conductances, voltage and
tile count: energy of an image, and what share of it the arrays take; time of an
image; images a second where all layers work at once; area. All rows driven, one
copy of each layer's arrays. Then the shares of the components of one net.

--speed: all costs (arrays, MACs, energy, latency, interval, area) of so many
random width vectors of ResNet-20, compiled and vectorised against plain NumPy.
"""

import jax
import jax.numpy as jnp
import measure
import numpy as np

from hawis_jax import cost
from hawis_jax import crossbar
from hawis_jax.networks import width_vectors

_DEVICES = ("hawis_published", "reram_wan2022")
_NETS = {
  "resnet20_1x": "cifar",
  "resnet20_4x": "cifar",
  "resnet20_hawis_a": "cifar",
  "resnet20_hawis_b": "cifar",
  "resnet18_hawis_a": "7x7",
  "resnet18_hawis_b": "3x3",
}
_SHOWN = "resnet20_hawis_a"
_ROUNDS = 7


def _geometry(family, hardware):
  if family == "cifar":
    return cost.cifar_geometry(20, (32, 32, 3), 32, 10, hardware)
  return cost.imagenet_geometry(family, 224, 32, 1000, hardware)


def _costs(net, device, technology):
  """(Cost of a net, {component: its part})."""
  hardware = cost.hardware(crossbar.preset(device), technology)
  geometry = _geometry(_NETS[net], hardware)
  vector = np.array(width_vectors.PRESETS[net])
  return cost.network_cost(vector, geometry), cost.components(vector, geometry)


def _three(x):
  """Three digits, without an exponent."""
  return f"{float(f'{x:.3g}'):,.10g}"


def tables() -> None:
  """Prints both tables."""
  print(
    "| technology | device | net | µJ | of it arrays | ms | images/s | mm² |\n"
    "|---|---|---|---|---|---|---|---|"
  )
  for name, technology in cost.TECHNOLOGIES.items():
    for device in _DEVICES:
      for net in _NETS:
        total, parts = _costs(net, device, technology)
        share = parts["array"].energy_joule / total.energy_joule
        energy = _three(1e6 * total.energy_joule)
        print(
          f"| `{name}` | `{device}` | {net} | {energy} "
          f"| {share:.1%} | {1e3 * total.latency_second:.2f} "
          f"| {1 / total.interval_second:,.0f} | {1e6 * total.area_m2:.3g} |"
        )
  print("\n| component | " + " | ".join(cost.TECHNOLOGIES) + " |")
  print("|---" * (1 + len(cost.TECHNOLOGIES)) + "|")
  of = [_costs(_SHOWN, _DEVICES[1], t) for t in cost.TECHNOLOGIES.values()]
  for name in cost.COMPONENTS:
    shares = [
      f"{parts[name].energy_joule / total.energy_joule:.1%} / "
      f"{parts[name].area_m2 / total.area_m2:.1%}"
      for total, parts in of
    ]
    print(f"| {name} | " + " | ".join(shares) + " |")


def speed(count: int) -> None:
  """Prints vectors costed a second."""
  geometry = _geometry("cifar", (64, 64))
  vectors = np.random.default_rng(0).integers(8, 257, (count, 19))
  inputs = jnp.asarray(vectors, jnp.int32)
  compiled = jax.jit(jax.vmap(lambda w: cost.network_cost(w, geometry)))
  fast = count / measure.least(lambda: compiled(inputs), _ROUNDS)
  plain = count / measure.least(lambda: cost.network_cost(vectors, geometry), 1)
  print(
    f"{measure.machine()}: {fast:.3g} vectors a second, {fast / plain:.0f} "
    f"times NumPy's {plain:.3g}"
  )


def main() -> None:
  parser = measure.parser(__doc__)
  parser.add_argument("--speed", type=int, metavar="VECTORS")
  options = parser.parse_args()
  if options.speed:
    speed(options.speed)
  else:
    tables()


if __name__ == "__main__":
  main()
