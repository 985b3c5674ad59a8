"""Runs an llm-baselines checkout's own src/main.py, unchanged, up to its first checkpoint:
python llm_baselines_train.py CHECKOUT [--KEY=VALUE ...]

The working folder holds src/data/datasets/slimpajama6B/train.bin and val.bin. A file of its own, started by path,
because the checkout has modules named `config` and `data` as well.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

import tiktoken

sys.path.insert(0, str(Path(sys.argv[1]).resolve() / "src"))
import optim.base

# Its corpora ask for GPT-2's tokenizer when they are imported, and its models when they are made: that would fetch it,
# and the tokens are there already.
tiktoken.get_encoding = lambda name: None
plain_save = optim.base.save_checkpoint


def save_and_end(model: Any, opt: Any, scheduler: Any, itr: int, ckpt_dir: Path) -> None:
    if itr:  # else nothing is trained yet
        plain_save(model, opt, scheduler, itr, ckpt_dir)
        sys.exit()


optim.base.save_checkpoint = save_and_end
optim.base.save_worker_state = lambda ckpt_dir: None  # needs CUDA, also on a CPU; nothing is resumed here
sys.argv = ["main.py", *sys.argv[2:]]
runpy.run_path(f"{sys.path[0]}/main.py", run_name="__main__")
