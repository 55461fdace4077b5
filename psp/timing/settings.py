"""What a profile times: the `timing` section of its YAML file, checked in full before any work begins."""

from dataclasses import asdict, dataclass, fields

from psp.errors import ConfigError
from psp.method.baselines import check_sparsity
from psp.method.structures import check_structure
from psp.models import check_model

BACKENDS = ("eager", "compile", "onnxruntime", "openvino", "lanes", "cuda_graph")
PRECISIONS = ("float32", "bfloat16")
NO_GPU = "no GPU here"


@dataclass(frozen=True)
class TimingConfig:
    """Everything that decides what is timed.

    Attributes:
        batches: batch sizes.
        backends: of `BACKENDS`.
        precisions: of `PRECISIONS`, of weights and activations.
        runs: names of runs of the profile, whose masks are timed.
        model, skip: a network and its layers that stay whole, for random masks.
        structures, sparsities: its random masks, one network for each pair.
        random_batch: the batch size at which these are timed, and at which tables compare all networks.
    """

    batches: tuple
    backends: tuple
    precisions: tuple
    runs: tuple
    model: str
    skip: tuple
    structures: tuple
    sparsities: tuple
    random_batch: int

    def __post_init__(self):
        for batch in (*self.batches, self.random_batch):
            if not isinstance(batch, int) or batch < 1:
                raise ConfigError(f"timing.batches and random_batch are whole numbers of at least 1, got {batch!r}")
        if self.runs and self.random_batch not in self.batches:
            raise ConfigError(
                f"timing.random_batch {self.random_batch} must be one of timing.batches "
                f"{', '.join(map(str, self.batches))}: tables compare all networks at it"
            )
        for name, known in (("backends", BACKENDS), ("precisions", PRECISIONS)):
            for value in getattr(self, name):
                if value not in known:
                    raise ConfigError(f"timing.{name}: unknown {value!r}; choose of {', '.join(known)}")
        check_model(self.model)
        for structure in self.structures:
            check_structure(structure)
        for sparsity in self.sparsities:
            check_sparsity(sparsity)

    @classmethod
    def of(cls, settings, runs):
        """From a mapping and the names of the profile's runs. Raises ConfigError for what is missing or unknown."""
        names = [field.name for field in fields(cls)]
        if sorted(settings) != sorted(names):
            raise ConfigError(f"timing must set {', '.join(names)}; it sets {', '.join(settings) or 'nothing'}")
        for name in names:
            wanted = {"model": str, "random_batch": int}.get(name, list)
            if not isinstance(settings[name], wanted):
                raise ConfigError(f"timing.{name} must be {wanted.__name__}, got {settings[name]!r}")
        for run in settings["runs"]:
            if run not in runs:
                raise ConfigError(f"timing.runs: the profile has no run {run!r}; its runs are {', '.join(runs)}")
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()})

    @property
    def count(self):
        """How many networks are timed."""
        return len(self.runs) + len(self.structures) * len(self.sparsities)

    def as_dict(self):
        """The settings as plain JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
