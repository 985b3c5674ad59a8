"""Run train.py of a nanoGPT checkout, unchanged, with another seed: python nanogpt_train.py CHECKOUT SEED [--KEY=VALUE ...]

The working folder has data/<dataset>/train.bin, val.bin and meta.pkl. This file is started by its path, because the checkout
has a module with the name `model` as well.
"""

import runpy
import shutil
import sys
from pathlib import Path

import torch

checkout, seed = Path(sys.argv[1]).resolve(), int(sys.argv[2])
plain_seed = torch.manual_seed
torch.manual_seed = lambda fixed: plain_seed(fixed + seed)  # nanoGPT has no option for the seed
if not Path("configurator.py").exists():  # nanoGPT reads it from the working folder
    shutil.copy(checkout / "configurator.py", ".")
sys.path.insert(0, str(checkout))
sys.argv = ["train.py", *sys.argv[3:]]
runpy.run_path(str(checkout / "train.py"), run_name="__main__")
