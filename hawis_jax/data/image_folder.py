"""Image folders: train/<class>/<image> and test/ or val/<class>/<image>."""

from collections.abc import Mapping, Sequence
from typing import Any

from hawis_jax import errors
from hawis_jax.data import sources
from hawis_jax.runtime import storage

NAME = "image_folder"

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".webp")


class _Files:
  """Records of encoded images in files; `paths` are relative to `root`."""

  def __init__(self, root, paths, labels):
    self._root, self._paths, self._labels = root, paths, labels

  def __len__(self):
    return len(self._paths)

  def __getitems__(self, numbers: Sequence[int]) -> list[Mapping[str, Any]]:
    return [
      {
        "image": (self._root / self._paths[number]).read_bytes(),
        "label": self._labels[number],
        "file_name": self._paths[number],
      }
      for number in numbers
    ]


def open_folder(data_dir: str) -> sources.Stored:
  """Finds the images of `train` and `test`, or `val` if that has no classes.

  Classes are the sorted folder names of `train`. Images become RGB. Hidden
  files and folders, whose names begin with a dot, are ignored.

  Raises:
    InputError: a folder is missing, unreadable or has no images, or the two
      splits differ in their classes.
  """
  root = storage.expanded(data_dir, "config.data.data_dir")
  place = f"image folder '{data_dir}'"
  try:
    found = {name: _folders(root / name) for name in ("train", "test", "val")}
    test = "test" if found["test"] else "val"
    if not data_dir or not found["train"] or not found[test]:
      raise errors.InputError(
        f"{place}: got folders {', '.join(_folders(root)) or 'none'}, allowed"
        " are 'train' and 'test' (or 'val'), with a folder for each class"
      )
    if differ := set(found["train"]) ^ set(found[test]):
      raise errors.InputError(
        f"{place}: got class '{min(differ)}' in only one of train and {test},"
        " allowed are the same classes in both"
      )
    classes = found["train"]
    train, test = (_find(root, split, classes) for split in ("train", test))
  except OSError as error:
    raise sources.unreadable(root, error) from error
  height, width = sources.Images(train, root, (0, 0, 3)).stored_size()
  shape = (height, width, 3)
  return sources.Stored(root, "", train, test, shape, len(classes))


def _folders(path):
  if not path.is_dir():
    return []
  found = (p.name for p in path.iterdir() if p.is_dir())
  return sorted(name for name in found if not name.startswith("."))


def _find(root, split, classes):
  """Returns the records of a split: class by class, each by file name."""
  paths, labels = [], []
  for label, name in enumerate(classes):
    folder = root / split / name
    # By their names alone: asking a million files what they are takes long.
    names = (path.name for path in folder.iterdir())
    names = sorted(
      name
      for name in names
      if name.lower().endswith(_SUFFIXES) and not name.startswith(".")
    )
    if not names:
      allowed = f"images {', '.join(_SUFFIXES)}"
      raise sources.unfit(folder, "no images", allowed)
    paths += [f"{split}/{name}/{file}" for file in names]
    labels += [label] * len(names)
  return _Files(root, paths, labels)
