"""The checks of `cli.doctor`, one function each.

No check uses the network. Third-party packages are imported inside the checks, so that an incomplete installation can be
checked as well.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.cpu import usable_cores
from common.file_lock import waiting_lock
from common.monotonic import now
from device.host_monitor import diff, take_snapshot

OK, NOTE, PROBLEM = "ok", "note", "problem"  # with a problem, `make train` does not work
ROOT = Path(__file__).parents[1]
GB = 1e9
# The least that `make train` needs: weights, moments and two checkpoints of a model of five million parameters on disk, two
# processes with torch in memory while the plan is measured.
LEAST_DISK, LITTLE_DISK = 0.3 * GB, 5 * GB
LEAST_MEMORY, LITTLE_MEMORY = 1 * GB, 3 * GB
SLOW_DISK = 50e6  # bytes/s: a checkpoint of a model of 100M parameters then takes half a minute
DISK_BYTES, DISK_SECONDS = 64 << 20, 1.0  # limits of the write test
WATCHED_S = 0.5  # seconds for measuring the load of other processes
BUSY = 0.3  # share of the cores used by other processes from which the check gives a note
LOW_PEAK = 0.5  # share of the table's peak; one large matrix product reaches 0.7 to 0.9 on a healthy GPU
OPTIONAL = {"nvidia-ml-py", "wandb", "datasets"}  # packages that a run does not need
FEWEST_SOURCES = 100  # source files; CPython's standard library has over 600


@dataclass(frozen=True)
class Finding:
    """The result of a check: status (OK, NOTE or PROBLEM), the finding in words, and how to fix it (empty if all is well)."""

    status: str
    found: str
    hint: str = ""


def python(place: Path) -> Finding:
    version, where = platform.python_version(), f"{platform.python_implementation()} in {sys.prefix}"
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding(PROBLEM, f"{version}, {where}", "make clean train PYTHON=python3.12 (3.11, 3.12 or 3.13)")
    return Finding(OK, f"{version}, {where}")


def packages(place: Path) -> Finding:
    """Compare the installed versions with requirements.lock."""
    locked = dict(line.split("==") for line in _requirements("requirements.lock"))
    installed = {name: _version(name) for name in locked}
    missing = [name for name, version in installed.items() if version is None]
    other = [
        f"{name} {have} (lock: {locked[name]})" for name, have in installed.items() if have not in (None, locked[name])
    ]
    hint = f"{sys.executable} -m pip install -r {ROOT / 'requirements.lock'}"
    if missing:
        status = NOTE if OPTIONAL.issuperset(missing) else PROBLEM
        return Finding(status, f"missing: {', '.join(missing)}", hint)
    if other:
        return Finding(NOTE, f"versions differ from requirements.lock: {', '.join(other)}", hint)
    return Finding(OK, f"{len(locked)} as in requirements.lock, torch {installed['torch']}, numpy {installed['numpy']}")


def _requirements(file: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return [line for line in lines if line]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def cores(place: Path) -> Finding:
    """Usable cores, the quota of a container, and the load of other processes."""
    usable, total = usable_cores(), os.cpu_count() or 1
    quota = _cpu_quota()
    before = take_snapshot(None)
    threading.Event().wait(WATCHED_S)
    host = diff(before, take_snapshot(None))
    used = sum(host.others.values())
    load = "" if host.load is None else f", load average {host.load:.1f}"
    found = f"{usable} of {total}{'' if quota is None else f', quota {quota:g}'}{load}, other processes use {used:.1f}"
    if quota is not None and quota < usable:
        threads = max(1, int(quota))
        return Finding(NOTE, found, f"set device.threads={threads}; more threads than the quota slow each other down")
    if used > BUSY * usable:
        hint = "stop it or wait; on a busy machine, runs are slower and plans less accurate"
        return Finding(NOTE, f"{found}, mostly {max(host.others, key=host.others.__getitem__)}", hint)
    return Finding(OK, found)


def _cpu_quota() -> float | None:
    """Cores that the container may use (cgroup v2, else v1); None without a limit."""
    try:
        most, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            folder = Path("/sys/fs/cgroup/cpu")
            most, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    return None if most in ("max", "-1") else int(most) / int(period)


def torch_itself(place: Path) -> Finding:
    began = now()
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
    return Finding(OK, f"{torch.__version__}, {build}, loaded in {now() - began:.1f} s")


def memory(place: Path) -> Finding:
    from device.device import available_memory

    free = available_memory()
    found = f"{free / GB:.1f} GB available"
    if free < LEAST_MEMORY:
        hint = f"free some memory or raise the container's limit; at least {LEAST_MEMORY / GB:g} GB is needed"
        return Finding(PROBLEM, found, hint)
    hint = "enough for small models only; the plan chooses one that fits" if free < LITTLE_MEMORY else ""
    return Finding(NOTE if hint else OK, found, hint)


def device(place: Path) -> Finding:
    """The device that device=auto selects, and whether there is a GPU that torch cannot use."""
    import torch

    from device.device import best_precision, find_device, gpu_uuid
    from device.specs import by_cuda_name

    found = find_device("auto")
    if found.type != "cuda":
        text = f"{platform.machine()} {found.type}, {best_precision(found)}"
        if not _has_nvidia():
            return Finding(OK, text)
        reason = "this build of torch has no CUDA" if torch.version.cuda is None else "torch cannot use its driver"
        hint = "install torch for this CUDA version from https://pytorch.org, or a newer driver; see nvidia-smi"
        return Finding(NOTE, f"{text}; there is an NVIDIA GPU, but {reason}", hint)
    name = torch.cuda.get_device_name(found)
    known = by_cuda_name(name)
    free, total = torch.cuda.mem_get_info(found)
    text = (
        f"{name} ({known.name if known else 'not in the device table; its peak is measured'}), {best_precision(found)},"
        f" {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, {torch.cuda.device_count()} GPUs in all"
    )
    if (gpu := take_snapshot(gpu_uuid(found)).gpu) is not None:
        text += f", {gpu.celsius:.0f} °C, {gpu.mhz:.0f} MHz"
        if gpu.slowed_by:
            text += f", slowed down by {', '.join(gpu.slowed_by)}"
            return Finding(NOTE, text, "improve its cooling or raise its power limit")
    if free < 0.9 * total:
        hint = "another process uses it; nvidia-smi shows which; device.name=cuda:1 selects another GPU"
        return Finding(NOTE, text, hint)
    return Finding(OK, text)


def _has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or any(Path("/dev").glob("nvidia[0-9]*"))


def peak(place: Path) -> Finding:
    """Time one large matrix product and compare it with the peak in the device table."""
    import torch

    from device.device import best_precision, find_device, set_up, synchronize
    from device.peak_flops import measure_peak
    from device.specs import by_cuda_name

    found = find_device("auto")
    set_up(found, usable_cores())
    precision = best_precision(found)
    measured = measure_peak(found, getattr(torch, precision), lambda: synchronize(found))
    text = f"{measured:.3g} FLOP/s measured in {precision}"
    known = by_cuda_name(torch.cuda.get_device_name(found)) if found.type == "cuda" else None
    table = known.peak_in(precision) if known else None
    if table is None:
        return Finding(OK, text)
    text += f", {measured / table:.0%} of the {table:.3g} in the device table"
    if measured < LOW_PEAK * table:
        return Finding(NOTE, text, "too hot, power-capped or shared; see nvidia-smi -q -d PERFORMANCE,POWER,CLOCK")
    return Finding(OK, text)


def compiling(place: Path) -> Finding:
    """What torch.compile needs besides torch, and whether only this user can write to its cache, whose files are executed."""
    import torch

    compiler = os.environ.get("CXX") or os.environ.get("CC")
    compiler = compiler or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    missing = [] if compiler else ["a C++ compiler"]
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        missing.append("Python.h")
    if torch.version.cuda and importlib.util.find_spec("triton") is None:
        missing.append("triton")
    user = os.environ.get("USER") or str(os.getuid())
    cache = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or Path(tempfile.gettempdir()) / f"torchinductor_{user}")
    unsafe = _cache_problem(cache)
    if missing:
        hint = "apt-get install g++ python3-dev, or set device.compile=off"
        return Finding(NOTE, f"no {', no '.join(missing)}; models are not compiled", hint)
    if unsafe:
        hint = f"export TORCHINDUCTOR_CACHE_DIR={Path.home() / '.cache' / 'torchinductor'}"
        return Finding(NOTE, f"{cache}, whose files are executed, {unsafe}", hint)
    return Finding(OK, f"{compiler}, cache in {cache}")


def _cache_problem(folder: Path) -> str:
    """Why a cache of code is unsafe or cannot be executed; empty if all is well."""
    if not folder.exists():
        return ""
    about = folder.stat()
    if about.st_uid != os.getuid():
        return "belongs to another user"
    if about.st_mode & 0o022:
        return "can be written by other users"
    return "is on a disk mounted noexec" if os.statvfs(folder).f_flag & os.ST_NOEXEC else ""


def disk(place: Path) -> Finding:
    """Free space and write speed of the disk for runs, and whether it has the locks that keep two runs out of one folder."""
    folder = _existing(place / "outputs")
    kind = _kind(folder)
    found = f"{folder}: {_free(folder) / GB:.0f} GB free, {kind}"
    try:
        written = _write_speed(folder)
        with tempfile.NamedTemporaryFile(dir=folder) as file, waiting_lock(Path(file.name), lambda holder: None):
            pass
    except OSError as error:
        found += f", cannot be written and locked ({error.strerror})"
        return Finding(PROBLEM, found, "set output_dir=FOLDER on another disk")
    found += f", {written / 1e6:.0f} MB/s written and synced, file locks work"
    if _free(folder) < LEAST_DISK:
        return Finding(PROBLEM, found, f"free {LEAST_DISK / GB:g} GB, or set output_dir=FOLDER on another disk")
    hint = ""
    if _free(folder) < LITTLE_DISK:
        hint = "a run needs 48 bytes per parameter for its checkpoints and checks that before it starts"
    elif written < SLOW_DISK:
        hint = "set output_dir=FOLDER on a local disk; a slow disk makes checkpoints rarer"
    elif kind == "tmpfs":
        hint = "a tmpfs is lost at reboot; set output_dir=FOLDER on a disk"
    return Finding(NOTE if hint else OK, found, hint)


def corpora(place: Path) -> Finding:
    """Prepared corpora and their disk, and whether Python's standard library has its source files (data=stdlib)."""
    from data.sources import stdlib

    folder = place / "prepared"
    done = sum(1 for _ in folder.glob("*/manifest.json"))
    home = _existing(folder)
    sources = len(stdlib.source_files())
    found = f"{home}: {done} prepared, {_free(home) / GB:.0f} GB free; {sources} files in Python's standard library"
    if sources < FEWEST_SOURCES:
        hint = "use data=text data.path=FOLDER, or a Python installed with its source files"
        return Finding(PROBLEM, found, hint)
    if not os.access(home, os.W_OK):
        return Finding(PROBLEM, f"{found}, not writable", "set data.cache_dir=FOLDER to a folder of yours")
    if _free(home) < LITTLE_DISK:
        hint = "SlimPajama-6B needs 14 GB once prepared; set data.cache_dir=FOLDER or data.max_bytes"
        return Finding(NOTE, found, hint)
    return Finding(OK, found)


def limits(place: Path) -> Finding:
    """Resource limits of this shell that could end a run."""
    wanted = (
        (resource.RLIMIT_FSIZE, "file size", 4 * GB),
        (resource.RLIMIT_AS, "address space", 64 * GB),
        (resource.RLIMIT_NOFILE, "open files", 512),
    )
    soft = [(label, resource.getrlimit(kind)[0], least) for kind, label, least in wanted]
    low = [f"{label} {limit:,}" for label, limit, least in soft if limit != resource.RLIM_INFINITY and limit < least]
    if low:
        hint = "ulimit -f unlimited; ulimit -v unlimited; ulimit -n 4096"
        return Finding(NOTE, f"low limits: {', '.join(low)}", hint)
    return Finding(OK, "no low limits on file size, address space or open files")


def wandb(place: Path) -> Finding:
    from urllib.parse import urlsplit

    from run.tracking.logger import key_at_hand, netrc_path

    url = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    host = urlsplit(url).hostname or ""
    has_key = key_at_hand(host)
    found = f"{_version('wandb')}, key for {host} {'set' if has_key else 'not set'}"
    if netrc_path().is_file() and netrc_path().stat().st_mode & 0o077:
        return Finding(NOTE, f"{found}; other users can read {netrc_path()}", f"chmod 600 {netrc_path()}")
    if not has_key:
        return Finding(NOTE, found, "run `wandb login` before wandb.mode=online; offline needs no key")
    return Finding(OK, found)


def hub(place: Path) -> Finding:
    """The download cache of the Hugging Face Hub and its settings, for data=slimpajama."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or home / "huggingface")
    token = os.environ.get("HF_TOKEN") or Path(os.environ.get("HF_TOKEN_PATH") or home / "token").exists()
    free = _free(_existing(home))
    found = f"datasets {_version('datasets')}, token {'set' if token else 'not set (SlimPajama needs none)'}"
    found += f", cache {home} ({free / GB:.0f} GB free)"
    if not os.access(_existing(home), os.W_OK):
        return Finding(NOTE, f"{found}, not writable", "export HF_HOME=FOLDER, a folder of yours")
    if free < 1 * GB:
        return Finding(NOTE, found, "export HF_HOME=FOLDER on a disk with more space")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        hint = "unset it to download data=slimpajama, or set data.path=FOLDER"
        return Finding(NOTE, f"{found}, HF_HUB_OFFLINE is set", hint)
    return Finding(OK, f"{found}; the Hub itself was not contacted")


def tiktoken(place: Path) -> Finding:
    from data.tokenizers.tokenizer import cache_folder, cached_names

    names, folder = cached_names(), cache_folder()
    found = f"{_version('tiktoken')}, cached: {', '.join(names) or 'none'} in {folder}"
    if "gpt2" in names:
        return Finding(OK, found)
    hint = "data=slimpajama downloads gpt2 once; without a network, set TIKTOKEN_CACHE_DIR or data.tokenizer=bpe-4096"
    return Finding(NOTE, found, hint)


def _existing(folder: Path) -> Path:
    """`folder`, or the closest parent of it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _free(folder: Path) -> float:
    return float(shutil.disk_usage(folder).free)


def _kind(folder: Path) -> str:
    """The type of the file system that holds `folder`."""
    import psutil

    mounts = psutil.disk_partitions(all=True)
    parents = [mount for mount in mounts if folder.resolve().is_relative_to(mount.mountpoint)]
    return max(parents, key=lambda mount: len(mount.mountpoint)).fstype if parents else "unknown file system"


def _write_speed(folder: Path) -> float:
    """Bytes/s of writing and syncing a file of at most DISK_BYTES, for about DISK_SECONDS."""
    block, written = os.urandom(8 << 20), 0
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        began = now()
        while written < min(DISK_BYTES, _free(folder) / 2) and now() - began < DISK_SECONDS:
            written += file.write(block)
            os.fsync(file.fileno())
        return written / max(now() - began, 1e-9)


Check = Callable[[Path], Finding]

# (name, time limit in seconds, check), in the order of the output
CHECKS: tuple[tuple[str, float, Check], ...] = (
    ("python", 2, python),
    ("packages", 4, packages),
    ("torch", 12, torch_itself),
    ("cores", 3, cores),
    ("memory", 2, memory),
    ("device", 6, device),
    ("peak", 6, peak),
    ("compile", 4, compiling),
    ("disk", 6, disk),
    ("corpora", 4, corpora),
    ("limits", 2, limits),
    ("wandb", 3, wandb),
    ("hub", 3, hub),
    ("tiktoken", 4, tiktoken),
)
