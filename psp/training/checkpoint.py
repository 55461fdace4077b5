"""Checkpoints from which a killed run goes on to the same numbers, bit for bit on one device.

On a CPU it goes on with as many threads as it began with, as sums in other shares are other numbers.

A checkpoint ends in the sha256 of all that stands before it: in the same file, so that no kill can part them. (PyTorch
looks at no checksum of its archives.) Of the final weights it stands in the record.
"""

import hashlib
import io
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from filelock import Timeout

from psp.errors import CheckpointError, ConfigError
from psp.files import locked, write_bytes, write_json
from psp.runs.config import code_sha256, run_key
from psp.runs.record import read_record

DIGEST_SIZE = hashlib.sha256().digest_size


class Checkpoint:
    """One run's folder `<root>/<key>/`: `last.pt` with all state, and the finished run's weights and record."""

    def __init__(self, root, config, data_sha256):
        self.identity = {"config": config.as_dict(), "data": data_sha256, "code": code_sha256()}
        self.folder = Path(root) / run_key(config, data_sha256)
        self.path = self.folder / "last.pt"
        self.weights = self.folder / "weights.safetensors"
        self.record = self.folder / "record.json"

    @contextmanager
    def alone(self):
        """While it lasts no other process trains this run. Raises CheckpointError where one does."""
        try:
            with locked(self.path, wait=False):
                yield
        except Timeout as error:
            raise CheckpointError(
                f"another process trains this run, and has the lock {error.lock_file}: wait for it, or end it"
            ) from error

    def save(self, state):
        """Write model, optimizer, random generators and progress, whole or not at all."""
        archive = io.BytesIO()
        torch.save({"identity": self.identity, **snapshot(state)}, archive)
        write_bytes(archive.getvalue() + hashlib.sha256(archive.getvalue()).digest(), self.path)

    def finish(self, weights, record):
        """Write the final weights, as `weights_file` gives them, and then the record that names their sha256."""
        write_bytes(weights, self.weights)
        write_json(record, self.record)

    def finished_record(self):
        """The record of a run that ended here before; None if there is none that this code can read.

        Raises CheckpointError if the weights beside it are not those that it names.
        """
        try:
            record = read_record(self.record)
        except ConfigError:
            return None
        if self.weights.is_file() and file_sha256(self.weights.read_bytes()) != record["weights_sha256"]:
            raise CheckpointError(
                f"{self.weights} is damaged: {self.record.name} beside it names another sha256; delete both, and the "
                f"run's last checkpoint gives them again"
            )
        return record

    def restore(self, state, step=None):
        """Bring `state` to the last checkpoint, if there is one; returns whether there was.

        Raises CheckpointError for a damaged file, one of another config, data set or version of the code, one of a
        GPU on a CPU and the other way round, or one of another "precision" or "kernels" than a `step` that is given.
        """
        if not self.path.exists():
            return False
        try:
            archive = io.BytesIO(_undamaged(self.path.read_bytes()))
            saved = torch.load(archive, map_location="cpu", weights_only=True)
            different = _differences(saved["identity"], self.identity)
        except Exception as error:
            raise CheckpointError(f"{self.path} cannot be read ({error}); delete it to start the run anew") from error
        if different:
            raise CheckpointError(
                f"{self.path} belongs to another run, which differs in {different}; move it away to go on"
            )
        if saved["device"] != state.device.type:
            raise CheckpointError(
                f"{self.path} was begun on {saved['device']}, not on {state.device.type}: go on there, or delete it "
                "to start the run anew"
            )
        begun = {name: saved["choice"][name] for name in step or ()}
        if step and begun != step:
            raise CheckpointError(
                f"{self.path} was begun by the step {begun}, not by {step}: leave `step` out, or delete the file to "
                "start anew"
            )
        torch.set_num_threads(saved["threads"])
        state.model.load_state_dict(saved["model"])
        state.optimizer.load_state_dict(saved["optimizer"])
        state.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["torch_rng"])
        if torch.cuda.is_available() and saved["cuda_rng"] is not None:
            torch.cuda.set_rng_state(saved["cuda_rng"])
        state.choice = saved["choice"]
        state.epoch, state.curve, state.seconds = saved["epoch"], saved["curve"], saved["seconds"]
        return True


def weights_file(model):
    """The content of a safetensors file: the model's state, α among it."""
    return safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()})


def file_sha256(content):
    """The sha256 of a file's content, as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def snapshot(state):
    """All that decides how a run goes on after a completed epoch."""
    return {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "generator": state.generator.get_state(),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "device": state.device.type,
        "threads": torch.get_num_threads(),
        "choice": state.choice,
        "epoch": state.epoch,
        "curve": state.curve,
        "seconds": state.seconds,
    }


def _differences(saved, wanted):
    config = [k for k in wanted["config"] if saved["config"].get(k) != wanted["config"][k]]
    return ", ".join(config + [k for k in ("data", "code") if saved[k] != wanted[k]])


def _undamaged(content):
    archive, digest = content[:-DIGEST_SIZE], content[-DIGEST_SIZE:]
    if hashlib.sha256(archive).digest() != digest:
        raise ValueError("it does not fit the sha256 at its end: it is damaged, or no checkpoint")
    return archive
