"""Checkpoints from which a killed run goes on to the same numbers, bit for bit on one device."""

import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from psp.errors import CheckpointError, ConfigError
from psp.runs.config import code_sha256, run_key
from psp.runs.record import read_record


class Checkpoint:
    """One run's folder `<root>/<key>/`: `last.pt` with all state, and the finished run's weights and record."""

    def __init__(self, root, config, data_sha256):
        self.identity = {"config": config.as_dict(), "data": data_sha256, "code": code_sha256()}
        self.folder = Path(root) / run_key(config, data_sha256)
        self.path = self.folder / "last.pt"
        self.weights = self.folder / "weights.safetensors"
        self.record = self.folder / "record.json"

    def save(self, state):
        """Write model, optimizer, random generators and progress: to the side first, then in place at once."""
        _write_atomically(self.path, lambda path: torch.save({"identity": self.identity, **snapshot(state)}, path))

    def save_weights(self, model):
        """Write the model's state, α among it, as safetensors."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        _write_atomically(self.weights, lambda path: save_file(tensors, path))

    def finished_record(self):
        """The record of a run that ended here before; None if there is none that this code can read."""
        try:
            return read_record(self.record)
        except ConfigError:
            return None

    def restore(self, state):
        """Bring `state` to the last checkpoint, if there is one; returns whether there was.

        Raises CheckpointError for a damaged file, or one of another config, data set or version of the code.
        """
        if not self.path.exists():
            return False
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            different = _differences(saved["identity"], self.identity)
        except Exception as error:
            raise CheckpointError(f"{self.path} cannot be read ({error}); delete it to start the run anew") from error
        if different:
            raise CheckpointError(
                f"{self.path} belongs to another run, which differs in {different}; move it away to go on"
            )
        state.model.load_state_dict(saved["model"])
        state.optimizer.load_state_dict(saved["optimizer"])
        state.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["torch_rng"])
        if torch.cuda.is_available() and saved["cuda_rng"] is not None:
            torch.cuda.set_rng_state(saved["cuda_rng"])
        state.choice = saved["choice"]
        state.epoch, state.curve, state.seconds = saved["epoch"], saved["curve"], saved["seconds"]
        return True


def snapshot(state):
    """All that decides how a run goes on after a completed epoch."""
    return {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "generator": state.generator.get_state(),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "choice": state.choice,
        "epoch": state.epoch,
        "curve": state.curve,
        "seconds": state.seconds,
    }


def _differences(saved, wanted):
    config = [k for k in wanted["config"] if saved["config"].get(k) != wanted["config"][k]]
    return ", ".join(config + [k for k in ("data", "code") if saved[k] != wanted[k]])


def _write_atomically(path, write):
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    write(aside)
    with open(aside, "rb") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)
