"""A spare process has torch as a training needs it: whole."""

from __future__ import annotations

import subprocess
import sys

#: Prints the modules of torch that a first step imports after the process has warmed up.
SCRIPT = """
import sys

import trainer_service.child.training_process
from trainer_service.child.warming import warm_up

import torch

torch.manual_seed(7)
drawn = torch.get_rng_state()
warm_up()
assert torch.equal(torch.get_rng_state(), drawn)
before = set(sys.modules)
model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten())
optimizer = torch.optim.AdamW(model.parameters())
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
model(torch.ones(2, 1, 8, 8)).sum().backward()
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
scheduler.step()
print(*sorted(name for name in set(sys.modules) - before if name.startswith("torch")))
"""


def test_the_first_step_imports_nothing_of_torch() -> None:
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True
    )
    assert told.stdout.split() == []
