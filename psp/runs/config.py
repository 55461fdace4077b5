"""What one training run is: a frozen `RunConfig`, checked in full before any work begins."""

import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from psp.data.images import SIDE
from psp.data.sets import TREES, check_dataset
from psp.errors import ConfigError
from psp.method.attach import PLACES, check_place
from psp.method.baselines import check_share, check_sparsity
from psp.method.methods import METHODS, PRESCRIBED, THRESHOLDED
from psp.method.parameterize import INIT, THRESHOLD, check_gradient, check_threshold
from psp.method.structures import check_structure
from psp.method.threshold import GRADIENTS
from psp.models import check_model

# Training crops grow by so many pixels at a time: few sizes, so that compiled code is used again.
SIDE_STEP = 16
CROP_AREA = 0.08
LARGEST_SEED = 2**63 - 1  # that torch takes
PACKAGE = Path(__file__).parents[1]

# The rooms, and what they share, that decide the numbers of a run. A checkpoint of other code is never resumed, and the
# training stages of dvc.yaml depend on just these (a test holds both lists, and the imports, together).
SOURCES = (".py", ".cpp", ".h")
DECIDING = ("native.py", "data", "method", "models", "runs", "training")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the numbers of one run, the machine aside.

    Attributes:
        dataset: "digits", "cifar10", "cifar100", or a tree: "ilsvrc2012", "imagenette", "drawings".
        model: a name that `psp.create_model` knows.
        method: one of `METHODS`.
        structure: granularity of pruning.
        skip: layer names or patterns that are never pruned.
        sparsity: share 0…1 of structures pruned in every layer; for the methods that prescribe it.
        structure_decay: regularization strength λ on α; "baseline" and "l1_norm" have no α and ignore it.
        threshold: ε, below which |α| prunes its structure.
        init: initial α.
        gradient, place: of α, see `psp.parameterize`.
        couple: whether channels that meet in a sum share one α; of the methods with a threshold.
        prune_at: share of the training steps, below 1, after which "l1_norm" prunes.
        epochs, batch_size, learning_rate, momentum: of SGD; the rate rises linearly for the first tenth of
            all steps and falls to zero along half a cosine.
        micro_batches: parts of a batch that are computed one after the other, or by as many processes; batch
            normalization has the statistics of each.
        sides: of a tree's square crops, in pixels: for training in the first and in the last epochs (see
            `train_side`), and for the test. Other sets have 32×32.
        crop_area: smallest share of an image's area that a tree's training crop has.
        weight_decay: decay λ_w on weights.
        holdout: training images held out for validation. The test set is read once, after the last epoch.
        seed: of initialization, data order and augmentation.
    """

    dataset: str = "digits"
    model: str = "resnet20"
    method: str = "psp_weight_decay"
    structure: str = "column"
    skip: tuple = ("conv1", "fc")
    sparsity: float | None = None
    structure_decay: float = 0.0
    threshold: float = THRESHOLD
    init: float = INIT
    gradient: str = GRADIENTS[0]
    place: str = PLACES[0]
    couple: bool = False
    prune_at: float = 0.5
    epochs: int = 2
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    micro_batches: int = 1
    sides: tuple = (SIDE, SIDE, SIDE)
    crop_area: float = CROP_AREA
    holdout: int = 0
    seed: int = 0

    def __post_init__(self):
        for name in ("skip", "sides"):
            if isinstance(getattr(self, name), list):  # as JSON, YAML and notebooks write it
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for field in fields(self):
            value = getattr(self, field.name)
            _check_type(field, value)
            if "float" in str(field.type) and value is not None:  # 1 and 1.0 are one setting, and one run
                try:
                    object.__setattr__(self, field.name, float(value))
                except OverflowError as error:
                    raise ConfigError(f"{field.name} must be a finite number, got more than a float holds") from error
        check_dataset(self.dataset)
        check_model(self.model)
        check_structure(self.structure)
        check_gradient(self.gradient)
        check_place(self.place)
        if self.method not in METHODS:
            raise ConfigError(f"unknown method {self.method!r}; choose one of {', '.join(METHODS)}")
        if (self.sparsity is not None) != (self.method in PRESCRIBED):
            wanted = "needs a sparsity in 0…1" if self.sparsity is None else "takes no sparsity: leave it out"
            raise ConfigError(f"method {self.method!r} {wanted}")
        if self.sparsity is not None:
            check_sparsity(self.sparsity)
            if self.method == "psp_fixed_sparsity":
                check_share(self.structure)
        if self.couple and self.method not in THRESHOLDED:
            raise ConfigError(f"couple is of {' and '.join(THRESHOLDED)}, not of {self.method!r}: leave it out")
        self._check_ranges()
        self._check_images()

    def _check_images(self):
        if self.batch_size % self.micro_batches:
            raise ConfigError(f"batch_size {self.batch_size} is no multiple of micro_batches {self.micro_batches}")
        if len(self.sides) != 3 or not all(isinstance(side, int) and side > 0 for side in self.sides):
            raise ConfigError(f"sides must be three whole numbers above 0, got {list(self.sides)}")
        if self.dataset not in TREES and set(self.sides) != {SIDE}:
            raise ConfigError(f"{self.dataset} has images of {SIDE}×{SIDE}: leave sides out, got {list(self.sides)}")
        if self.dataset not in TREES and self.crop_area != CROP_AREA:
            raise ConfigError(f"crop_area is of image folders, and {self.dataset} is none: leave it out")
        if not 0 < self.crop_area <= 1:
            raise ConfigError(f"crop_area must be above 0 and at most 1, got {self.crop_area}")

    def train_side(self, epoch):
        """Side of the training crops in an epoch (from 0): first and last and, 16 apart, some between, equally long."""
        first, last, _ = self.sides
        steps = min(math.ceil(abs(last - first) / SIDE_STEP), self.epochs - 1)
        step = epoch * (steps + 1) // self.epochs
        return last if step == steps else first + (SIDE_STEP if last > first else -SIDE_STEP) * step

    @property
    def test_side(self):
        return self.sides[2]

    def _check_ranges(self):
        positive = ("epochs", "batch_size", "learning_rate", "micro_batches")
        nonnegative = ("structure_decay", "threshold", "weight_decay", "holdout", "seed")
        for name in (*positive, *nonnegative, "init", "momentum"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name} must be a finite number, got {getattr(self, name)}")
        for name in positive:
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in nonnegative:
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("prune_at", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.seed > LARGEST_SEED:
            raise ConfigError(f"seed must be at most {LARGEST_SEED}, got {self.seed}")
        if self.method in THRESHOLDED:
            check_threshold(self.threshold, self.init)

    @classmethod
    def of(cls, settings):
        """A RunConfig from a mapping (or as it is); for an unknown name a ConfigError with the nearest known one."""
        if isinstance(settings, cls):
            return settings
        if not isinstance(settings, Mapping):
            raise ConfigError(f"the settings of a run are a mapping, as {{'dataset': 'cifar10'}}, got {settings!r:.60}")
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise ConfigError(f"unknown parameter {name!r}; {hint}")
        return cls(**settings)

    def as_dict(self):
        """The settings as plain JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def sources(rooms):
    """The source files in rooms of the package, and single files of it, in a fixed order."""
    paths = [PACKAGE / name for name in rooms]
    files = (f for path in paths for f in (sorted(path.rglob("*.*")) if path.is_dir() else [path]))
    return [f for f in files if f.suffix in SOURCES]


@cache
def code_sha256():
    """Fingerprint of the files that decide a run's numbers, as they were when this module was imported."""
    digest = hashlib.sha256()
    for path in sources(DECIDING):
        digest.update(path.read_bytes())
    return digest.hexdigest()


code_sha256()  # now: what is edited later is not the code that runs


def run_key(config, data_sha256):
    """Name under which the checkpoint of a run is kept: the same settings, data and code give the same key."""
    identity = json.dumps([config.as_dict(), data_sha256, code_sha256()], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _check_type(field, value):
    kinds = {"int": int, "float": (int, float), "float | None": (int, float, type(None)), "bool": bool}
    kinds |= {"str": str, "tuple": tuple}
    kind = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    if not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "bool"):
        hint = " (in YAML write 0.001 or 1.0e-3, not 1e-3)" if isinstance(value, str) and "float" in kind else ""
        raise ConfigError(f"{field.name} must be {kind}, got {value!r}{hint}")
