r"""ImageNet, ResNet-18: one published net by the published recipe, 75 epochs.

"hawis_a" (7x7 stem; the default) or "1x" (7x7), or "hawis_b" (3x3 stem):
python -m hawis_jax.main --config configs/imagenet_resnet18.py:hawis_a \
  --config.train.teacher=resnet50.pth

Its weights are trained; with --config.train.nets="('found',)" widths are first
searched in quarters of the preset's. What a step of each stage takes on TPUs:
launch/compile_tpu.py --topology=v5e:16x16 --config=<the same>.

The teacher is a file of torchvision's ResNet-50. The data set is TFDS's
imagenet2012 (python -m hawis_jax.data prepare imagenet2012), or a folder:
  --config.data.name=image_folder --config.data.data_dir=<folder>

Published: 67.13 % top-1 of HAWIS-A (best epoch of its log, on the validation
images). Not measured here: it takes an accelerator.
"""

from hawis_jax.config import settings
from hawis_jax.networks import width_vectors

_IMAGES = 1_281_167
_EPOCHS = 75


def get_config(preset: str = "hawis_a"):
  """Returns the configuration; `preset` names a published width vector."""
  c = settings.default()
  c.data.name = "imagenet2012"
  c.data.augment = "imagenet"
  c.data.image_size = 224
  c.data.resize = 256
  c.data.validation_images = 10_000
  c.data.read_threads = 16
  c.network.family = "imagenet"
  c.network.depth = 18
  c.network.base_widths = (64, 128, 256, 512)
  c.network.stem = "3x3" if preset == "hawis_b" else "7x7"
  c.network.compute = "bfloat16"
  net = f"resnet18_{preset}"
  widest = width_vectors.PRESETS.get(net, ())
  c.space.choices = tuple((w // 4, w // 2, 3 * w // 4, w) for w in widest)
  c.train.nets = (net,)
  c.train.batch_size = 64
  c.train.steps = _EPOCHS * _IMAGES // c.train.batch_size
  c.train.use_validation = True
  c.train.loss = "teacher"
  c.train.teacher = "resnet50.pth"
  c.train.weight_penalty = 1e-4
  c.train.optimizer.name = "sgd"
  c.train.optimizer.learning_rate = 0.05
  c.train.optimizer.schedule = "multistep"
  c.train.optimizer.milestones = (30 / 75, 50 / 75, 65 / 75)
  c.train.optimizer.momentum = 0.9
  c.robustness.images = 5_000
  return c
