"""What a training writes: checkpoints on the way, and the weights at its end."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentcomm._core.files import expanded, read_tensors, write_tensors
from latentcomm._core.records import read_whole

CHECKPOINT = "latentcomm checkpoint 1"
WEIGHTS = "latentcomm weights 1"


def save_weights(
    path: str | os.PathLike[str], weights: Mapping[str, Tensor], *, kind: str, configuration: Mapping[str, Any]
) -> None:
    """Write trained tensors and their configuration as safetensors, atomically."""
    manifest = {"format": WEIGHTS, "kind": kind, "configuration": dict(configuration)}
    write_tensors(path, weights, {"manifest": json.dumps(manifest)})


def check_weights(weights: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], *, of: str, shape: Any) -> None:
    """Refuse tensors whose names or shapes differ from the wanted ones; `of` and `shape` name the part in the error.

    Raises:
        ValueError: with the first name that is missing, unexpected, or of another shape.
    """
    for name in sorted(wanted.keys() | weights.keys()):
        found = tuple(weights[name].shape) if name in weights else None
        if found != wanted.get(name):
            raise ValueError(f"the {of}'s {name} is {found}, but {shape} needs {wanted.get(name)}")


def load_weights(path: str | os.PathLike[str], *, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors that `save_weights` wrote, bit for bit, and their configuration.

    Raises:
        ValueError: the file is missing, was not written by `save_weights`, or holds another kind.
    """
    manifest, tensors = _read(expanded(path))
    if manifest.get("format") != WEIGHTS or manifest.get("kind") != kind:
        raise ValueError(f"{os.fspath(path)} holds {manifest.get('kind', manifest['format'])} and not {kind}")
    if not isinstance(manifest.get("configuration"), dict):
        raise ValueError(f"{os.fspath(path)} holds {kind} without its configuration; train it again")
    return tensors, manifest["configuration"]


def write_checkpoint(
    path: Path,
    parameters: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    configuration: Mapping[str, Any],
    losses: Sequence[float],
    held: Sequence[tuple[int, float]],
    seconds: float,
) -> None:
    """Write the parameters, the optimiser and the losses, atomically, with the configuration that they belong to."""
    tensors = {"losses": torch.tensor(losses, dtype=torch.float64)}
    tensors["held_out"] = torch.tensor(held, dtype=torch.float64).view(-1, 2)
    for name, parameter in parameters.items():
        tensors[f"parameters/{name}"] = parameter
        tensors |= {f"{kind}/{name}": value for kind, value in optimiser.state.get(parameter, {}).items()}
    manifest = {"format": CHECKPOINT, "asked": configuration, "seconds": seconds}
    write_tensors(path, tensors, {"manifest": json.dumps(manifest)})


def resume(
    path: Path, parameters: Mapping[str, Tensor], optimiser: torch.optim.Optimizer, configuration: Mapping[str, Any]
) -> tuple[list[float], list[tuple[int, float]], float]:
    """Load the checkpoint, if there is one, into the parameters and the optimiser; its losses and seconds."""
    found = read_whole(path, _read)
    if found is None:
        return [], [], 0.0
    manifest, tensors = found[0]
    if manifest.get("format") != CHECKPOINT:
        raise ValueError(f"{path} is no checkpoint of a training; give another path")
    saved, requested = _flat(manifest["asked"]), _flat(json.loads(json.dumps(configuration)))
    for key in sorted(saved.keys() | requested.keys()):
        if saved.get(key) != requested.get(key):
            raise ValueError(
                f"the checkpoint {path} is of another training: its {key} is {saved.get(key)} and not "
                f"{requested.get(key)}; give another path, or the same options"
            )
    stored = {name.partition("/")[2]: value for name, value in tensors.items() if name.startswith("parameters/")}
    for name in sorted(stored.keys() | parameters.keys()):
        shapes = [list(each[name].shape) if name in each else None for each in (stored, parameters)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the checkpoint {path} is of another shape: its {name} is {shapes[0]}, not {shapes[1]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])
            optimiser.state[parameter] = {
                kind: tensors[f"{kind}/{name}"].to(parameter.device if kind != "step" else "cpu")
                for kind in ("step", "exp_avg", "exp_avg_sq")
                if f"{kind}/{name}" in tensors
            }
    held = [(int(n_done), loss) for n_done, loss in tensors.get("held_out", torch.zeros(0, 2)).tolist()]
    return tensors["losses"].tolist(), held, float(manifest["seconds"])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        facts, tensors = read_tensors(path)
        manifest = json.loads(facts.get("manifest", "{}"))
    except (OSError, ValueError, RecursionError) as error:  # also a number or nesting beyond what JSON is read to
        raise ValueError(f"{path} cannot be read as a file of this package ({error})") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), str):
        raise ValueError(f"{path} holds nothing of this package")
    return manifest, tensors


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return out
