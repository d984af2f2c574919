"""Cost of the published width vectors, in Markdown.

python benchmarks/published_costs.py

For each technology and two devices, of which only conductances, voltage and
tile count: energy of an image, and what share of it the arrays take; time of an
image; images a second where all layers work at once; area. All rows driven, one
copy of each layer's arrays. Then the shares of the components of one net.
"""

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


def _geometry(family, hardware):
  if family == "cifar":
    return cost.cifar_geometry(20, (32, 32, 3), 32, 10, hardware)
  return cost.imagenet_geometry(family, 224, 32, 1000, hardware)


def _three(x):
  """Three digits, without an exponent."""
  return f"{float(f'{x:.3g}'):,.10g}"


def _table():
  print(
    "| technology | device | net | µJ | of it arrays | ms | images/s | mm² |\n"
    "|---|---|---|---|---|---|---|---|"
  )
  for name, tech in cost.TECHNOLOGIES.items():
    for device in _DEVICES:
      hardware = cost.hardware(crossbar.preset(device), tech)
      for net, family in _NETS.items():
        geometry = _geometry(family, hardware)
        vector = np.array(width_vectors.PRESETS[net])
        total = cost.network_cost(vector, geometry)
        array = cost.components(vector, geometry)["array"].energy_joule
        energy = _three(1e6 * total.energy_joule)
        print(
          f"| `{name}` | `{device}` | {net} | {energy} "
          f"| {array / total.energy_joule:.1%} "
          f"| {1e3 * total.latency_second:.2f} "
          f"| {1 / total.interval_second:,.0f} | {1e6 * total.area_m2:.3g} |"
        )


def _shares():
  print("\n| component | " + " | ".join(cost.TECHNOLOGIES) + " |")
  print("|---" * (1 + len(cost.TECHNOLOGIES)) + "|")
  columns = []
  for tech in cost.TECHNOLOGIES.values():
    hardware = cost.hardware(crossbar.preset("reram_wan2022"), tech)
    geometry = _geometry("cifar", hardware)
    vector = np.array(width_vectors.PRESETS[_SHOWN])
    total = cost.network_cost(vector, geometry)
    columns.append(
      {
        name: f"{part.energy_joule / total.energy_joule:.1%} / "
        f"{part.area_m2 / total.area_m2:.1%}"
        for name, part in cost.components(vector, geometry).items()
      }
    )
  for name in cost.COMPONENTS:
    print(
      f"| {name} | " + " | ".join(column[name] for column in columns) + " |"
    )


if __name__ == "__main__":
  _table()
  _shares()
