"""Run src/main.py of an llm-baselines checkout, unchanged, up to its first checkpoint.

python llm_baselines_train.py CHECKOUT [--KEY=VALUE ...]

The working folder has src/data/datasets/slimpajama6B/train.bin and val.bin. This file is started by its path, because the
checkout has modules with the names `config` and `data` as well.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

import tiktoken

sys.path.insert(0, str(Path(sys.argv[1]).resolve() / "src"))
import optim.base

# Its data modules load GPT-2's tokenizer on import, and its models on creation. That would download it, and the tokens are
# already there.
tiktoken.get_encoding = lambda name: None
plain_save = optim.base.save_checkpoint


def save_and_end(model: Any, opt: Any, scheduler: Any, itr: int, ckpt_dir: Path) -> None:
    if itr:  # at iteration 0 nothing is trained yet
        plain_save(model, opt, scheduler, itr, ckpt_dir)
        sys.exit()


optim.base.save_checkpoint = save_and_end
optim.base.save_worker_state = lambda ckpt_dir: None  # it needs CUDA even on a CPU, and nothing is resumed here
sys.argv = ["main.py", *sys.argv[2:]]
runpy.run_path(f"{sys.path[0]}/main.py", run_name="__main__")
