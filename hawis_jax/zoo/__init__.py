"""Trained nets to start from; docs/zoo.md has a card of each.

cards.json says of every net how it is built, what it was trained on and how,
what it reached with which interval, and the SHA-256 of its file. Weights of
1-bit nets take a bit each (`interop.load_packed`).
"""

import hashlib
import json
import pathlib
from typing import Any

from flax import linen as nn
from flax import traverse_util

from hawis_jax import errors
from hawis_jax import interop
from hawis_jax.networks import reference_resnet
from hawis_jax.networks import resnet

_FOLDER = pathlib.Path(__file__).parent


def cards() -> dict[str, dict[str, Any]]:
  """Returns what is known of every net, by name."""
  return json.loads((_FOLDER / "cards.json").read_text("utf-8"))


def pretrained(name: str) -> tuple[nn.Module, dict]:
  """Returns a trained net, (module, variables), as `hx.load_net` does.

  >>> import hawis_jax as hx
  >>> net, variables = hx.pretrained("digits_found")
  >>> net.num_classes
  10

  Args:
    name: of a card in docs/zoo.md, e.g. "digits_found".

  Raises:
    InputError: there is no such net; its file is not the one that was measured.
  """
  known = cards()
  if name not in known:
    raise errors.InputError(
      f"name: got {name!r}, allowed are {', '.join(known)}"
    )
  card, path = known[name], _FOLDER / f"{name}.npz"
  if hashlib.sha256(path.read_bytes()).hexdigest() != card["sha256"]:
    raise errors.InputError(
      f"{path}: got another content than was measured, needed is SHA-256 "
      f"{card['sha256']}; install hawis_jax anew"
    )
  build = card["network"]
  widths = tuple(build["widths"])
  if build["weight_bits"] == 1:
    net = resnet.cifar_resnet(
      build["depth"], widths, build["num_classes"], levels=build["levels"]
    )
    return net, interop.load_packed(path)
  net = reference_resnet.cifar_reference(
    build["depth"],
    widths,
    build["num_classes"],
    bits=build["weight_bits"],
    scales=build["scales"],
  )
  arrays = interop.load_state_dict(path)
  return net, traverse_util.unflatten_dict(arrays, sep="/")
