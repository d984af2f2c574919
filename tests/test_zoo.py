"""Trained nets that come with the package: each is the one of its card."""

import pathlib
import shutil

import jax
import numpy as np
import pytest

import hawis_jax as hx
from hawis_jax import data
from hawis_jax import errors
from hawis_jax import zoo

_CARDS = zoo.cards()
_SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"
_PAGE = pathlib.Path(__file__).parents[1] / "docs" / "zoo.md"


def _accuracy(name, data_dir):
  """Share of the card's test images that a net classifies correctly."""
  card = _CARDS[name]
  size = card["image_shape"][0]
  splits = data.load(
    data.Settings(
      card["data"].split()[0],
      str(data_dir),
      image_size=0 if size == 8 else size,
      resize=size,
    )
  )
  net, variables = hx.pretrained(name)
  images = splits.test.read(np.arange(card["test_images"]))
  logits = jax.jit(lambda x: net.apply(variables, net.encode(x), train=False))(
    images["image"]
  )
  return np.mean(np.argmax(logits, -1) == images["label"])


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=() if name == "digits_found" else pytest.mark.slow)
    for name in _CARDS
  ],
)
def test_a_net_is_as_accurate_as_its_card_says(name, data_dir):
  card = _CARDS[name]
  if card["data"].startswith("cifar10"):
    if not _SHARED.is_dir():
      pytest.skip("CIFAR-10 is not beside the project")
    data_dir = _SHARED
  found = _accuracy(name, data_dir)
  # A scale that is rounded otherwise may turn an image on the edge.
  assert abs(found - card["clean"]) <= 1.5 / card["test_images"]
  low, high = card["clean_ci95"]
  assert low < card["clean"] < high


def test_every_net_stands_on_the_page_with_its_accuracy():
  text = _PAGE.read_text()
  for name, card in _CARDS.items():
    (line,) = [x for x in text.splitlines() if x.startswith(f"| `{name}` ")]
    low, high = (100 * end for end in card["clean_ci95"])
    assert f"{100 * card['clean']:.1f} ({low:.1f}, {high:.1f})" in line
    assert card["revision"] in line


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
  with pytest.raises(errors.InputError, match="name: got 'mine', allowed are"):
    hx.pretrained("mine")
  shutil.copytree(pathlib.Path(zoo.__file__).parent, tmp_path / "zoo")
  path = tmp_path / "zoo" / "digits_found.npz"
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  monkeypatch.setattr(zoo, "_FOLDER", tmp_path / "zoo")
  with pytest.raises(errors.InputError, match="needed is SHA-256"):
    hx.pretrained("digits_found")
