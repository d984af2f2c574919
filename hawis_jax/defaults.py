"""The default of every field of the configuration, with its meaning and unit.

One function a section.
"""

import ml_collections
from ml_collections import config_dict


def default() -> ml_collections.ConfigDict:
  """Returns every field with its default, locked against new fields."""
  c = ml_collections.ConfigDict()
  c.seed = 0  # every random draw of a run derives from it
  c.log_every = 20  # optimiser steps between two lines of metrics
  c.checkpoint_seconds = 30.0  # at least this long between checkpoints [s]
  c.data = _data()
  c.network = _network()
  c.space = _space()
  c.device = _device()
  c.pretrain = _pretrain()
  c.search = _search()
  c.train = _train()
  c.robustness = _robustness()
  c.lock()
  return c


def _data():
  """Where images come from."""
  d = ml_collections.ConfigDict()
  # A TFDS data set name ("digits" is embedded), or "image_folder": data_dir
  # then has train/<class>/<image> and test/ or val/<class>/<image>.
  d.name = "digits"
  d.data_dir = ""  # where it is prepared; "" = $TFDS_DATA_DIR or TFDS's default
  d.validation_images = 256  # held out of `train` for pretraining and search
  d.levels = 32  # thermometer levels an input channel, divides 128
  # "none"; "flip_crop" (flip, 4-pixel pad and crop); "imagenet" (random resized
  # crop of 8 to 100 % of the area, flip, lighting).
  d.augment = "none"
  d.lighting = 0.1  # "imagenet": AlexNet's colour noise, its sigma; 0: none
  d.image_size = 0  # height = width to crop to [pixels]; 0: as stored
  d.resize = 256  # short side before the centre crop to image_size [pixels]
  # A damaged image of `train`: "stop" with its name, or "skip" it for the next
  # one. Of the other splits it always stops: figures would be of other images.
  d.damaged = "stop"
  d.read_threads = 2  # Grain reader threads
  return d


def _network():
  """The family and its optional parts."""
  n = ml_collections.ConfigDict()
  n.family = "cifar"  # "cifar" (3 stages) or "imagenet" (ResNet-18, 4 stages)
  n.depth = 20  # 6 n + 2; 18 of the ImageNet family
  n.base_widths = (16, 32, 64)  # 1x widths of the stages [channels]
  n.stem = "7x7"  # of the ImageNet family: "7x7" or "3x3"
  # Parts that the published network has not. Every product stays 1-bit.
  n.channel_scale = False  # a weight scale an output channel, not a layer
  n.rprelu = False  # PReLU with learnt shifts before activation binarisers
  n.learned_thresholds = False  # thermometer thresholds are learnt
  n.compute = "float32"  # of products: or "bfloat16" (sums stay exact integers)
  return n


def _space():
  """Width choices, and what they cost."""
  s = ml_collections.ConfigDict()
  # Width choices [channels], ascending: one tuple a stage, or one a layer.
  s.choices = (
    tuple(range(16, 97, 8)),
    tuple(range(32, 193, 16)),
    tuple(range(64, 385, 32)),
  )
  # What budgets count: "arrays", "macs"; "energy" [J], "latency" [s] of one
  # image, layer after layer; "area" [m^2].
  s.cost = "arrays"
  # Component numbers of energy, latency and area: a preset
  # (cost.TECHNOLOGIES), or a JSON file {"field": value} of a cost.Technology.
  s.technology = "neurosim_22nm"
  s.duplication = 1  # copies of every layer's arrays, at work side by side
  return s


def _device():
  """The device without random effects: scenarios say where they are."""
  v = ml_collections.ConfigDict()
  # A preset (crossbar.PRESETS), or a JSON file {"field": value} of a
  # crossbar.Device, which may start from a "preset".
  v.preset = "hawis_published"
  # What differs from that; None: nothing.
  v.g_on = config_dict.placeholder(float)  # low-resistance state [S]
  v.g_off = config_dict.placeholder(float)  # high-resistance state [S]
  v.tile_shape = config_dict.placeholder(tuple)  # (rows, columns) of an array
  v.read_voltage = config_dict.placeholder(float)  # of an input bit 1 [V]
  v.wire_resistance = config_dict.placeholder(float)  # from cell to cell [ohm]
  v.load_resistance = config_dict.placeholder(float)  # of driver, sense [ohm]
  v.adc_bits = config_dict.placeholder(int)  # of a column's converter; 0: ideal
  v.adc_range = config_dict.placeholder(str)  # "full_scale" or "calibrated"
  v.cell_bits = config_dict.placeholder(int)  # of 8-bit weights; 0: analog cell
  return v


def _pretrain():
  """The super-net."""
  p = ml_collections.ConfigDict()
  p.steps = 2000  # optimiser steps, warm-up included
  p.warmup_steps = 500  # first steps, on the maximum net alone
  p.batch_size = 256  # images
  p.random_widths = 2  # random width vectors a step, beside maximum and minimum
  # Of those so many are on a chip, a new one each step: with the defects of one
  # of search.scenarios, its levels times a factor drawn uniform in [0, 1).
  p.faulty_widths = 0
  p.cost_bins = 16  # random vectors are drawn uniform over this many cost bands
  p.distill = True  # the maximum net's softmax teaches the other branches
  p.optimizer = _optimizer("adam", 1e-3, "cosine")
  return p


def _search():
  """What is searched, how, and by which reward."""
  r = ml_collections.ConfigDict()
  r.budget = 0.0  # hard upper limit of `space.cost`; 0: see the next fields
  r.budget_of = ""  # width vector that costs it, e.g. "resnet20_hawis_a"
  r.budget_uniform = 2.0  # neither: what base_widths times this cost
  r.budget_slack = 0.05  # proposals cost within [1 - slack, 1] x budget
  # Further budgets, as shares of that one: one search serves all of them.
  r.front = ()
  # Hard upper limits of other costs, for all budgets: (("latency", 1e-4), ...),
  # or of what a named width vector has; beside the above "interval" [s] between
  # two images, layers working at the same time.
  r.limits = ()
  # Instead of a hard budget: what exceeding it by its own size takes off a
  # score, in the unit of `signal`; 0: hard.
  r.penalty = 0.0
  # The first finds the net; the others are compared with it at equal numbers of
  # evaluations, on the same chips: see hawis_jax/methods.
  r.methods = ("predictor", "random")
  r.updates = 100
  r.proposals = 64  # width vectors an update, method and budget
  r.updates_per_call = 1  # updates of one compiled call, a divisor of updates
  r.references = 4  # vectors a budget scored in every update, for comparison
  r.chips = 4  # chips a scenario and update, shared by all proposals
  # Scenario mix of the reward: fields of the device but for its wires; all
  # weigh the same. The search scores without IR drop.
  r.scenarios = (
    dict(stuck_on=0.0175, stuck_off=0.0904),
    dict(variation=0.5),
  )
  r.cvar_weight = 0.5  # b: reward = (1 - b) mean + b CVaR_25% over chips
  r.signal = "accuracy"  # learning signal: "accuracy" or "cross_entropy"
  r.images = 256  # validation images a score uses
  r.batch_size = 128  # images a forward pass, of each vector
  r.vectors_per_step = 16  # width vectors a forward pass, at most
  r.calibration_images = 256  # training images of the BN recalibration
  r.hidden = 64  # GRU units of the policy ("ppo", "reinforce")
  r.learning_rate = 1e-2  # Adam, of the policy
  r.epochs = 4  # PPO epochs an update
  r.clip = 0.2  # PPO ratio clip
  r.entropy = (0.05, 0.001)  # entropy bonus, first to last update (linear)
  # Of "evolution", for each budget; the first `population` scores are random.
  r.population = 64
  r.tournament = 16  # of "evolution"
  r.finalists = 16  # best of each method and budget, scored again at the end
  r.finalist_chips = 16  # chips a scenario for that final score
  return r


def _train():
  """Which nets are trained, and how."""
  t = ml_collections.ConfigDict()
  # Nets: "found", "uniform", "baseline_1x" or a published vector, e.g.
  # "resnet20_hawis_a"; with "_int8" or "_float" its 8-bit or float counterpart.
  # Without "found", "uniform" and loss "supernet" there is nothing to search.
  t.nets = ("found", "baseline_1x", "uniform")
  t.steps = 4000
  t.batch_size = 128
  t.microbatches = 1  # parts of a batch, one at a time, gradients summed
  # Loss of the binary nets: "labels"; "supernet" or "teacher": KL to the
  # softmax of the maximum super-net, or of `teacher`. The rest learn labels.
  t.loss = "labels"
  # A float net earlier in `nets`, or a file of PyTorch weights of a standard
  # float ResNet (.npz, .safetensors, .pth), of this depth and the same family.
  t.teacher = ""
  t.teacher_depth = 50
  t.label_smoothing = 0.0  # share of a label that goes to all classes
  t.weight_penalty = 0.0  # times the sum of (|w| - 0.01)^2 over binary weights
  t.ema = 0.0  # decay a step of averaged weights, used in their stead; 0: off
  t.use_validation = False  # train on the held-out images too
  t.validate_every = 0  # steps between measurements on `validation`; 0: never
  # The net of which step is used: "last", or "best" on `validation`.
  t.select = "last"
  t.optimizer = _optimizer("sgd", 0.1, "multistep")
  t.counterparts = _optimizer("sgd", 0.1, "cosine")  # their optimiser
  t.counterparts.weight_decay = 1e-4
  t.int8 = "trained"  # or "quantized": from the float net, earlier in `nets`
  return t


def _robustness():
  """What nets meet on chips, and how that is computed."""
  b = ml_collections.ConfigDict()
  b.chips = 64  # chips a level; with target_ci the first ones
  # Half-width of the mean's 95 % interval [share of images] down to which chips
  # are added, `max_chips` at most; 0: none are.
  b.target_ci = 0.0
  b.max_chips = 1024
  b.images = 0  # of the test images, the first; 0: all
  # BN statistics: "fixed" of the ideal net, or "chip": recalibrated on each
  # chip. The search always scores with "fixed".
  b.batch_norm = "fixed"
  # Training images of "chip"'s recalibration and of 8-bit ranges, in batches
  # whose moments are pooled; calibrated converters see the first batch.
  b.calibration_images = 256
  b.calibration_batch = 64
  # How it is computed; results are the same to the bit.
  b.batch_size = 1024  # images that are on the devices at a time, about
  b.chips_per_step = 0  # chips of a device at a time; 0: as many as is fast
  b.memory_gb = 0.0  # of a device's memory that may be used; 0: all
  # Sweeps: fields of the device (see crossbar.Device), levels in a tuple; each
  # may have a "name", and more than one field (see scenarios.py).
  b.scenarios = (
    dict(stuck_off=(0.0, 0.02, 0.04, 0.06, 0.08, 0.10)),  # share of cells
    dict(stuck_on=(0.0, 0.005, 0.01, 0.015, 0.02)),  # share of cells
    dict(variation=(0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.1)),  # lognormal sigma
  )
  return b


def _optimizer(name, learning_rate, schedule):
  o = ml_collections.ConfigDict()
  o.name = name  # "sgd" (momentum) or "adam"
  o.learning_rate = learning_rate
  o.schedule = schedule  # "cosine", "multistep" or "constant"
  o.milestones = (0.5, 0.65, 0.8)  # multistep: x0.1 at these shares of steps
  o.momentum = 0.9  # sgd
  o.weight_decay = 0.0  # L2, added to the gradient of what a step used
  return o
