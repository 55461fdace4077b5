"""Profiles: the same pipeline on several budgets. A profile is one YAML file and nothing else.

`params.yaml` is the default profile, `demo`; the others are `profiles/<name>/params.yaml`. A file names the
profile, the settings that all its runs share (`defaults`), the runs, each setting once with its `seeds`, and what is
timed, if anything is. The setting `l1_norm-70` with seeds [0, 1] makes the runs `l1_norm-70-s0` and `l1_norm-70-s1`.
A file's sections `cifar` and `ilsvrc` are profiles of their own with the same entries, called `<name>/cifar` and
`<name>/ilsvrc`, whose results lie in folders of their own.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace

import yaml

from psp.errors import ConfigError
from psp.files import ROOT
from psp.runs.config import RunConfig
from psp.timing.settings import TimingConfig

SECTIONS = ("cifar", "ilsvrc")
DATA_TITLES = {
    "imagenette": "Imagenette (10 of 1,000 ILSVRC classes)",
    "drawings": "JPEGs drawn for this purpose",
    "ilsvrc2012": "ILSVRC2012",
}
CHECKPOINTS = ROOT / "checkpoints"
# What a file says of a profile, and of itself.
ENTRIES = ("defaults", "runs", "timing")
OF_THE_FILE = ("profile", "root", "params_file")
NAME = re.compile(r"[\w-]+")  # of a run: its name is that of a stage of DVC and of a file


class Once(yaml.SafeLoader):
    """YAML in which a name that stands twice is an error: the first of the two would be lost."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        names = Counter(key.value for key, _ in node.value if key.tag == "tag:yaml.org,2002:str")
        if twice := [name for name, count in names.items() if count > 1]:
            raise yaml.composer.ComposerError(None, None, f"{', '.join(twice)} stands twice", node.start_mark)
        return node


@dataclass(frozen=True)
class Profile:
    """A named set of runs, what of them is timed, and where the results lie; `planned` counts the runs of all of it."""

    name: str
    runs: dict
    timing: TimingConfig | None = None
    planned: int | None = None

    @property
    def results(self):
        return ROOT / "results" / self.name

    def record_path(self, run):
        return self.results / "runs" / f"{run}.json"

    def timing_path(self, device_type):
        return self.results / "timing" / f"{device_type}.json"

    def other_machines(self):
        """Timing records of CPUs other than that of `timing_path("cpu")`."""
        return sorted((self.results / "timing" / "machines").glob("cpu-*.json"))

    def data_path(self, dataset):
        """Where it is written what a data set is: once for a profile and its sections."""
        return ROOT / "results" / file_of(self.name) / "data" / f"{dataset}.json"

    def notebook_path(self, name):
        """Where an executed notebook goes; nothing reads it but people."""
        return self.results / "executed" / f"{name}.ipynb"

    @property
    def complete(self):
        """Whether these are all runs of the profile."""
        return self.planned in (None, len(self.runs))

    def only(self, **settings):
        """The profile with just those runs whose settings are these: only(structure="column", seed=0)."""
        return replace(
            self, runs={n: c for n, c in self.runs.items() if all(getattr(c, k) == v for k, v in settings.items())}
        )

    def so_far(self):
        """The profile with just those runs that have a record. Raises ConfigError where none has."""
        runs = {run: config for run, config in self.runs.items() if self.record_path(run).is_file()}
        if not runs:
            train = f"python -m psp.pipeline train {self.name}"
            raise ConfigError(f"no run of profile {self.name!r} has a record yet; `{train}` trains them")
        return replace(self, runs=runs, planned=len(self.runs))

    def config(self, run):
        """The RunConfig of a run. Raises ConfigError, naming the known runs, for an unknown one."""
        if run not in self.runs:
            raise ConfigError(f"profile {self.name!r} has no run {run!r}; its runs are {', '.join(self.runs)}")
        return self.runs[run]

    def title(self):
        """What every figure and table says on its face: profile, network, data, schedule, seeds.

        "up to" so many seeds, where not all settings have as many; and how many of its runs there are, `so_far`.
        """
        shared = {key: sorted({getattr(c, key) for c in self.runs.values()}) for key in ("model", "dataset", "epochs")}
        shared["dataset"] = [DATA_TITLES.get(name, name) for name in shared["dataset"]]
        model, dataset, epochs = (" / ".join(map(str, values)) for values in shared.values())
        counts = Counter(replace(config, seed=0) for config in self.runs.values()).values()
        seeds = f"{'up to ' * (min(counts) < max(counts))}{max(counts)} seed{'s' * (max(counts) > 1)}"
        of_all = f", {len(self.runs)} of {self.planned} runs so far" * (self.planned is not None)
        return f"{self.name} profile: {model}, {dataset}, {epochs} epochs, {seeds}{of_all}"


def profile_path(name):
    """The YAML file of a profile. Raises ConfigError, naming the known ones, where there is none."""
    known = {"demo": ROOT / "params.yaml"} | {p.parent.name: p for p in sorted(ROOT.glob("profiles/*/params.yaml"))}
    if name not in known:
        raise ConfigError(f"unknown profile {name!r}; choose one of {', '.join(known)}")
    return known[name]


def file_of(name):
    """The profile in whose file a profile stands: of section "demo/cifar" it is "demo"."""
    return name.partition("/")[0]


def with_sections(name):
    """The names of a profile and of the sections in its file."""
    content = read_profile(name)
    return [name, *(f"{name}/{section}" for section in SECTIONS if section in content)]


def read_profile(name):
    """What the YAML file of a profile says. Raises ConfigError for one that is no mapping or calls itself otherwise."""
    path = profile_path(name)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Once)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.relative_to(ROOT)} is no YAML: {error}") from error
    if not isinstance(content, dict) or content.get("profile") != name:
        raise ConfigError(f"{path.relative_to(ROOT)} must have an entry `profile: {name}`")
    check_entries(content, (*OF_THE_FILE, *ENTRIES, *SECTIONS), path.relative_to(ROOT))
    return content


def check_entries(content, known, where):
    """Raise ConfigError for an entry that nothing reads."""
    if unknown := [name for name in content if name not in known]:
        raise ConfigError(f"{where}: nothing reads {unknown[0]!r}; known are {', '.join(known)}")


def entry(content, key, where):
    """The mapping under `key`. Raises ConfigError, naming `where` it is missing, or empty, or no mapping."""
    value = content.get(key)
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{where} needs `{key}:` with entries of its own, got {value!r}")
    return value


def in_table(profile):
    """The profiles whose networks the table of `profile` lists, in order.

    That of section `cifar` begins with the file's own: the paper's table has both, and so no run is trained twice.
    """
    return [load_profile(file_of(profile.name)), profile] if profile.name.endswith("/cifar") else [profile]


def content_of(name):
    """(what the file of a profile says of it, or of a section, where that is in words). Raises ConfigError."""
    file, _, section = name.partition("/")
    where = str(profile_path(file).relative_to(ROOT))
    content = read_profile(file)
    if section and section not in SECTIONS:
        raise ConfigError(f"unknown profile {name!r}; {file!r} has the sections {', '.join(SECTIONS)}")
    if not section:
        return content, where
    content, where = entry(content, section, where), f"{where}, section {section}"
    check_entries(content, ENTRIES, where)
    return content, where


def run_settings(content, where):
    """{run: its settings, `defaults` among them} of every setting and seed. Raises ConfigError where seeds are none."""
    defaults, runs = entry(content, "defaults", where), {}
    for name, own in entry(content, "runs", where).items():
        if not NAME.fullmatch(str(name)):
            raise ConfigError(f"{where}, runs: a name is of letters, digits, _ and -, got {name!r}")
        if not isinstance(own, dict | None):
            raise ConfigError(f"{where}, runs: {name!r} must have settings of its own, got {own!r}")
        settings = {**defaults, **(own or {})}
        seeds = settings.pop("seeds", None)
        if not isinstance(seeds, list) or not seeds or "seed" in settings:
            raise ConfigError(f"{where}, runs: {name!r} needs `seeds: [0, …]`, its own or of defaults, and no `seed`")
        if len(set(map(str, seeds))) < len(seeds):
            raise ConfigError(f"{where}, runs: {name!r} has a seed twice: {seeds}")
        runs |= {f"{name}-s{seed}": {**settings, "seed": seed} for seed in seeds}
    return runs


def load_profile(name):
    """The `Profile` called `name`, every run of it checked. Raises ConfigError that names file and run."""
    (content, where), runs = content_of(name), {}
    for run, settings in run_settings(content, where).items():
        try:
            runs[run] = RunConfig.of(settings)
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"{where}, run {run!r}: {error}") from error
    if "timing" not in content:
        return Profile(name, runs)
    try:
        timing = TimingConfig.of(entry(content, "timing", where), runs)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return Profile(name, runs, timing)
