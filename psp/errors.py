"""The errors a user can meet. Each message names the thing at fault and the remedy."""

from contextlib import contextmanager


class ConfigError(ValueError):
    """A setting that no run can be made from: raised before any work begins."""


class DataError(RuntimeError):
    """A data set that is missing, damaged or not the one a run was promised."""


class CheckpointError(RuntimeError):
    """A checkpoint that is damaged or belongs to another run; nothing is overwritten."""


class DivergedError(RuntimeError):
    """The training loss became NaN or infinite; the last good checkpoint is kept."""


class RunsFailedError(RuntimeError):
    """Some of several training runs failed; the others have their records."""


class StagesChangedError(RuntimeError):
    """A profile was changed and DVC still goes by the old list of its stages; the list is mended."""


class NotebookError(RuntimeError):
    """A notebook that the pipeline ran stopped at an error; its executed copy shows where."""


class ExtractError(ValueError):
    """A network that cannot be made smaller with the same outputs, or an example that does not fit it."""


class KernelError(RuntimeError):
    """Kernels that cannot be built or used on this machine; training goes on without them and its record says why."""


class MissingPackageError(ImportError):
    """A package is not installed that only some uses of this one need."""


def in_short(error):
    """Type and first line of an error, for a record of what failed while the work went on."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


@contextmanager
def extra(name):
    """Around imports of what only the extra `name` of pyproject.toml brings: raises MissingPackageError without it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{error.name} is not installed; it comes with an extra of this package: pip install '.[{name}]' in its "
            "repository"
        ) from error
