"""Running notebooks by papermill, and their parameters, checked, so that a misspelt one cannot go unnoticed."""

import sys

from psp.errors import ConfigError, NotebookError
from psp.files import ROOT
from psp.pipeline.profiles import CHECKPOINTS
from psp.runs.config import RunConfig

# What IPython itself puts into a notebook's namespace.
IPYTHON_NAMES = {"In", "Out", "exit", "get_ipython", "open", "quit"}
PATHS = ("checkpoints", "record_path")
# What papermill injects for our parameters; results of later cells are of other types and are left alone.
PLAIN = (bool, int, float, str, list, tuple, type(None))


def run_settings(namespace):
    """(RunConfig, checkpoint folder, record path) from the parameters in a notebook's `globals()`.

    Raises ConfigError for a name that is not a field of RunConfig: papermill only warns of it and would train
    with the default instead.
    """
    settings = parameters(namespace)
    checkpoints, record_path = (settings.pop(name) for name in PATHS)
    return RunConfig.of(settings), checkpoints or CHECKPOINTS, record_path


def check_names(namespace, known):
    """Raise ConfigError if a notebook's `globals()` hold a parameter that is not in the set `known`."""
    for name in parameters(namespace):
        if name not in known:
            raise ConfigError(f"unknown parameter {name!r}; known are {', '.join(sorted(known))}")


def parameters(namespace):
    """The plain values in a notebook's `globals()`, IPython's own names aside."""
    return {
        name: value
        for name, value in namespace.items()
        if isinstance(value, PLAIN) and not name.startswith("_") and name not in IPYTHON_NAMES
    }


def execute(notebook, output, parameters):
    """Run notebooks/<notebook>.ipynb by papermill; the executed copy goes to `output`."""
    import papermill  # not needed by --no-notebook, which is for machines without it

    output.parent.mkdir(parents=True, exist_ok=True)
    source = ROOT / "notebooks" / f"{notebook}.ipynb"
    try:
        papermill.execute_notebook(source, output, parameters, progress_bar=False, stderr_file=sys.stderr)
    except papermill.PapermillExecutionError as error:
        raise NotebookError(f"{error.evalue} ({error.ename}; all of it is in {output.relative_to(ROOT)})") from error
