"""What the stages of dvc.yaml go over: every run and every timing of a profile's file, one by one.

A profile says a setting once, with its seeds; DVC wants a list with an entry for each stage. `stages.yaml`, beside the
profile's params.yaml, is that list. It is written from params.yaml by `make repro` and by the first stage of dvc.yaml,
and committed, so that a plain `dvc repro` works in a fresh clone.
"""

import yaml

from psp.errors import StagesChangedError
from psp.files import ROOT
from psp.pipeline.profiles import content_of, file_of, load_profile, profile_path, run_settings, with_sections

HEAD = "# Written from params.yaml, a stage of dvc.yaml for each entry. To change them, change params.yaml.\n"


class Plain(yaml.SafeDumper):
    """Writes what stands in several places in each of them, without YAML's references."""

    def ignore_aliases(self, data):
        return True


def stages(name):
    """The lists that dvc.yaml goes over, of a profile and its sections: data sets, runs and timings.

    Raises ConfigError for a profile that cannot be run.
    """
    lists = {"train": {}, "timing": {}}
    for part in with_sections(name):
        profile, (content, where) = load_profile(part), content_of(part)
        for run, settings in run_settings(content, where).items():
            about = {"profile": part, "run": run, "dataset": profile.config(run).dataset}
            lists["train"][stage_of(part, run)] = {**about, "settings": settings}
        if profile.timing:
            section = part.partition("/")[2] or "main"
            lists["timing"][section] = {"profile": part, "settings": content["timing"]}
    return {"data": sorted({about["dataset"] for about in lists["train"].values()}), **lists}


def stage_of(profile, run):
    """The name, after `train@`, of a run's stage in dvc.yaml."""
    section = profile.partition("/")[2]
    return f"{section}-{run}" if section else run


def stages_path(name):
    """The stages.yaml beside a profile's params.yaml."""
    return profile_path(name).with_name("stages.yaml")


def write_stages(name):
    """Write the stages.yaml of a profile's file; returns whether it said something else before.

    A profile without a dvc.yaml, whose runs are trained by name, has none.
    """
    name = file_of(name)
    path = stages_path(name)
    if not path.with_name("dvc.yaml").is_file():
        return False
    lists = stages(name)
    content = {"stages_file": str(path.relative_to(ROOT)), "stages": lists}
    text = HEAD + yaml.dump(
        content, Dumper=Plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
    )
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.write_text(text, encoding="utf-8")
    return True


def check_stages(name):
    """Bring stages.yaml up to date; raises StagesChangedError if it was not, since DVC has read the old one."""
    if write_stages(name):
        raise StagesChangedError(
            f"{profile_path(file_of(name)).relative_to(ROOT)} was changed, and the list of stages follows it now: "
            "run this again"
        )
