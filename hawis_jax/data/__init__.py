"""Data without TensorFlow or a network: prepared sets, image folders, batches.

`python -m hawis_jax.data prepare` makes the sets.
"""

from hawis_jax.data.batches import AUGMENTATIONS
from hawis_jax.data.batches import evaluation_batches
from hawis_jax.data.batches import evaluation_stream
from hawis_jax.data.batches import train_batches
from hawis_jax.data.sources import Images
from hawis_jax.data.sources import Source
from hawis_jax.data.splits import load
from hawis_jax.data.splits import Settings
from hawis_jax.data.splits import Splits

__all__ = (
  "AUGMENTATIONS",
  "Images",
  "Settings",
  "Source",
  "Splits",
  "evaluation_batches",
  "evaluation_stream",
  "load",
  "train_batches",
)
