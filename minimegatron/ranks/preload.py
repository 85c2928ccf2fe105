"""What the forkserver imports once, so that no rank has to: torch, and what it loads late."""

import torch
import torch._dynamo  # the first optimizer would import it, for a second, in every rank
import torch.distributed.device_mesh
import torch.optim

import minimegatron.ranks.rank  # noqa: F401

# A fork copies no thread: torch's pool of them must not exist yet.
torch.set_num_threads(1)
