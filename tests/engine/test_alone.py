"""rem.py, etd.py, expand.py and engine/ by themselves, in a folder of somebody else's project (R13).

That they import torch alone, and in no circle, so that any may be the first, is in test_imports.py.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import rem

ROOT = Path(rem.__file__).parent
CORE = ("rem.py", "etd.py", "expand.py")
FOREIGN = ("data.py", "train.py", "settings.py", "metrics.py", "baselines.py", "models.py", "tasks.py", "experiment.py")

SNIPPET = """\
import torch
from torch.utils.data import DataLoader, Subset
from rem import Settings, rem

class Mine:  # D_tr: any Dataset that gives (x, y), labels as they are
    def __init__(self, dataset): self.dataset = dataset
    def __len__(self): return len(self.dataset)
    def batches(self, index=None, size=512, generator=None, augment=False, dtype=torch.float32):
        index = torch.arange(len(self)) if index is None else index
        rows = index if generator is None else index[torch.randperm(len(index), generator=generator)]
        loader = DataLoader(Subset(self.dataset, rows.tolist()), batch_size=size)
        for part, (x, y) in zip(rows.split(size), loader):
            yield part, x.to(dtype), y

unlearned = rem(model, Mine(dataset), forget, Settings(unlearn_epochs=2), torch.Generator().manual_seed(0))
"""

BEFORE = """\
import torch
from torch import nn
from torch.utils.data import TensorDataset
torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
dataset = TensorDataset(torch.randn(21, 1, 6, 6, generator=g), torch.randint(0, 3, (21,), generator=g))
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
                      nn.Linear(4, 3))
forget = torch.tensor([3, 8, 11])
"""

AFTER = """
import sys, types
assert [k for k in unlearned.state_dict()] == [k for k in model.state_dict()]
assert not torch.equal(unlearned[0].weight, model[0].weight)
again = rem(model, Mine(dataset), forget, types.SimpleNamespace(unlearn_epochs=2), torch.Generator().manual_seed(0))
assert all(torch.equal(a, b) for a, b in zip(unlearned.state_dict().values(), again.state_dict().values()))
from engine.modes import copy_of
from etd import drop, mask_table, train_etd
from expand import expand
assert drop(expand(copy_of(model), torch.zeros(2, 1, 6, 6)))[0].weight.equal(model[0].weight)
local = {name.partition(".")[0] for name, module in sys.modules.items()
         if (getattr(module, "__file__", None) or "").startswith(FOLDER)}
assert local - {"__main__", "__mp_main__"} == {"rem", "etd", "expand", "engine"}, local
"""


def test_the_core_in_a_project_of_ones_own(tmp_path):
    """R13, A11, A18: beside somebody else's data.py and train.py the core unlearns from a user's class around a
    DataLoader with a Settings or any object with some of its attributes, ETD's parts are there, and nothing else is
    imported."""
    for name in CORE:
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "engine", tmp_path / "engine", ignore=shutil.ignore_patterns("__pycache__"))
    for name in FOREIGN:
        (tmp_path / name).write_text("raise ImportError('this is somebody else\\'s')\n")
    (tmp_path / "mine.py").write_text(BEFORE + SNIPPET + f"FOLDER = {str(tmp_path)!r}\n" + AFTER)
    command = [sys.executable, "-B", "-W", "error::UserWarning:rem", "-W", "ignore:Acc", "mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
