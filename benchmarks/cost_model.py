"""What `lc.plan` estimates of a command against what it takes, and what commands of large pairs would take.

    python benchmarks/cost_model.py [--models smollm2-135m-instruct,FOLDER,...] [--saved FOLDER] [--out FILE.json]

Every command runs as a process of its own, of one model with itself, the built-in one in float32 and others in
bfloat16. Its matrix products are counted as torch dispatches them, and with each the bytes of the weights among its
factors; its peak memory is the high-water mark of Linux less that of a process that only imports what it needs. With
`--saved` what a process measured is written there and not measured again. The large pairs are known by their
configurations alone.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import latentcomm as lc
from latentcomm._core.files import write_json
from latentcomm.experiments import folder as folders
from latentcomm.experiments.diagnosis import run as diagnosis
from latentcomm.experiments.settings import Settings
from latentcomm.reporting.publish import machine

BUILT_IN = "smollm2-135m-instruct"
COMMANDS: Mapping[str, Settings] = {
    "sweep": lc.SweepSettings(n_tune=4, n_test=8, read_layers=(4, 10, 16, 22)),
    "compare": lc.CompareSettings(
        channels=("silent", "skyline", "text", "replace", "kv"), read_layer=20, write_layer=18, n_test=8
    ),
    "diagnose": lc.DiagnoseSettings(documents=24, tokens=32, prompts=4, layers=4),
    "cascade": lc.CascadeSettings(data="sample", n=(0, 8), n_items=4, reply_tokens=16, controls=("shuffled",)),
}
"""Small enough for a model of 1.5 G parameters on one core."""
QUANTITIES = ("flops", "weights_read", "disk", "memory")

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip
QWEN = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_hidden_layers": 64, "hidden_size": 5120,
    "num_attention_heads": 40, "num_key_value_heads": 8, "intermediate_size": 27648, "vocab_size": 152064,
    "max_position_embeddings": 32768, "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS = {"8B": LLAMA, "32B": QWEN}
"""Of Llama-3.1-8B and Qwen2.5-32B."""
PAIRS = (("8B", "8B"), ("32B", "8B"), ("32B", "32B"))
"""Sender and receiver; of one size a model with itself."""
QUESTIONS = 2638
"""Items of which the half that is reported is as large as GSM8K's test set."""
CHARACTERS = 240
"""Of a question, as in GSM8K."""
PLANNED: Mapping[str, Settings] = {
    "sweep": lc.SweepSettings(),
    "compare": lc.CompareSettings(),
    "diagnose": lc.DiagnoseSettings(),
    "compare, gsm8k": lc.CompareSettings(task="gsm8k", read_layer=20, write_layer=20, n_test=0),
    "cascade, gsm8k": lc.CascadeSettings(n_items=1319),
}
"""The defaults; on GSM8K a reply has 256 tokens."""
FLOPS, BANDWIDTH = 0.4 * 790e12, 0.7 * 4.8e12
"""A device of 790 TFLOP/s in bfloat16 and 4.8 TB/s, at the share of both that models reach."""


DECOMPOSITIONS = {
    torch.ops.aten._linalg_svd: lambda rows, width: 6 * rows * width**2 + 20 * width**3,
    torch.ops.aten._linalg_eigh: lambda _, width: 9 * width**3,
}
"""Operations of what torch does not count, by Golub and Van Loan."""


class Counted(TorchDispatchMode):
    """Counts operations of matrix products, and the bytes of the weights among their factors."""

    def __init__(self, model: lc.Model) -> None:
        super().__init__()
        self.flops = self.weights_read = 0
        self.weights = {each.untyped_storage().data_ptr() for each in model.hooked.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        found = func(*args, **(kwargs or {}))
        if (decomposed := DECOMPOSITIONS.get(func._overloadpacket)) is not None:
            self.flops += math.prod(args[0].shape[:-2]) * decomposed(*sorted(args[0].shape[-2:], reverse=True))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=found)
            factors = [each for each in args if isinstance(each, torch.Tensor) and each.ndim > 1]
            self.weights_read += sum(
                each.nbytes for each in factors if each.untyped_storage().data_ptr() in self.weights
            )
        return found


def settings_of(command: str, model: str, dtype: str) -> Settings:
    """The settings of a command for a model with itself."""
    receiver = {"receiver": model} if command == "cascade" else {}
    return replace(COMMANDS[command], sender=model, dtype=dtype, **receiver)


def measure(command: str, model: str, dtype: str) -> dict[str, int]:
    """What a command takes, or, for "import", the peak memory of the imports alone."""
    from transformer_lens.model_bridge import TransformerBridge  # noqa: F401 (imported here, it is no part of a run)

    from latentcomm.experiments._prepared import EXPERIMENTS

    for each in EXPERIMENTS.values():
        _ = each.check, each.function
    if command == "import":
        return {"memory": peak()}
    with tempfile.TemporaryDirectory() as folder:
        loaded = lc.load_model(model, dtype=dtype)
        forget, before = folders.forget, []

        def weighed(large: Any) -> None:  # what is large is deleted at the end
            before.append(size_of(Path(folder)))
            forget(large)

        folders.forget = diagnosis.forget = weighed
        with Counted(loaded) as counted:
            lc.run(settings_of(command, model, dtype), loaded, loaded, out=folder)
        disk = max(size_of(Path(folder)), *before)
    return {"flops": counted.flops, "weights_read": counted.weights_read, "disk": disk, "memory": peak()}


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def peak() -> int:
    """Bytes of this process that were in memory at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_a_process(command: str, model: str, dtype: str, saved: Path | None) -> dict[str, int]:
    """`measure` in a process of its own.

    Raises:
        RuntimeError: the command failed.
    """
    file = None if saved is None else saved / f"{command}-{Path(model).name}.json"
    if file is not None and file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    done = subprocess.run(
        [sys.executable, __file__, "--measure", command, "--models", model, "--dtype", dtype],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command} of {model} failed: {done.stderr[-500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if file is not None:
        write_json(file, found)
    return found


def compared(command: str, model: str, dtype: str, saved: Path | None) -> list[dict[str, Any]]:
    """A row for each quantity: the estimate, what was measured, and their ratio."""
    measured = in_a_process(command, model, dtype, saved)
    measured["memory"] -= in_a_process("import", BUILT_IN, "float32", saved)["memory"]
    with tempfile.TemporaryDirectory() as folder:
        found = lc.plan(settings_of(command, model, dtype), out=Path(folder) / "out")
    estimates = {name: getattr(found, name) for name in QUANTITIES}
    estimates["flops"] += found.statistics
    rows = []
    for name in QUANTITIES:
        row = {"model": Path(model).name, "dtype": dtype, "command": command, "quantity": name}
        row |= {"estimate": round(estimates[name]), "measured": measured[name]}
        rows.append(row | {"ratio": round(estimates[name] / measured[name], 3)})
        print(rows[-1], flush=True)
    return rows


def planned() -> list[dict[str, Any]]:
    """A row for each command of each large pair."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, config in CONFIGS.items():
            write_json(Path(folder) / f"{name}.json", config)
        texts = [f"How many are {number} and 1?".ljust(CHARACTERS, ".") for number in range(QUESTIONS)]
        lines = [{"question": text, "answer": f"They are #### {n + 1}"} for n, text in enumerate(texts)]
        data = Path(folder) / "questions.jsonl"
        data.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
        for sender, receiver in PAIRS:
            for command, settings in PLANNED.items():
                names = {"sender": f"{folder}/{sender}.json", "receiver": f"{folder}/{receiver}.json"}
                more = {"data": str(data)} if "gsm8k" in command else {}
                given = replace(settings, **names, **more, dtype="bfloat16", device="cuda")
                found = lc.plan(given, out=Path(folder) / "out", flops=FLOPS, bandwidth=BANDWIDTH)
                found.check()
                rows.append({
                    "sender": sender, "receiver": receiver, "command": command, "flops": found.flops,
                    "statistics": found.statistics, "passes": found.passes, "weights_read": found.weights_read,
                    "memory": found.memory, "host_memory": found.host_memory, "disk": found.disk,
                    "hours": (found.seconds or 0) / 3600,
                })  # fmt: skip
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, plan and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=BUILT_IN)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    parser.add_argument("--saved", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.models, options.dtype)))
        return
    if options.saved is not None:
        options.saved.mkdir(parents=True, exist_ok=True)
    checked = []
    for model in options.models.split(","):
        for command in options.commands.split(","):
            checked += compared(command, model, "float32" if model == BUILT_IN else "bfloat16", options.saved)
    speed = {"flops": FLOPS, "bandwidth": BANDWIDTH}
    write_json(options.out, {"checked": checked, "planned": planned(), "speed": speed, "machine": machine()})


if __name__ == "__main__":
    main()
