"""What `cli.doctor` looks at: one small function each. Nothing here needs a network, and only the standard library is
imported at the top, so that a half-made installation can be looked at as well."""

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

OK, NOTE, PROBLEM = "ok", "note", "problem"  # a problem stops `make train`
ROOT = Path(__file__).parents[1]
GB = 1e9
# What `make train` takes at its smallest: weights, moments and two checkpoints of five million parameters; two processes
# with torch while the plan is measured.
LEAST_DISK, LITTLE_DISK = 0.3 * GB, 5 * GB
LEAST_MEMORY, LITTLE_MEMORY = 1 * GB, 3 * GB
SLOW_DISK = 50e6  # bytes a second: a checkpoint of a 100M-parameter model then takes half a minute
DISK_BYTES, DISK_SECONDS = 64 << 20, 1.0  # what is written to find out
WATCHED_S = 0.5  # how long other processes are watched
WORTH_A_WORD = 0.3  # share of the cores that others may take before it is said
LOW_PEAK = 0.5  # of the table's peak; a healthy GPU reaches 0.7 to 0.9 in one large product
OPTIONAL = {"nvidia-ml-py", "wandb", "datasets"}  # packages that a run does without
FEWEST_SOURCES = 100  # files; CPython's standard library has over 600


@dataclass(frozen=True)
class Finding:
    """What a check found, and what mends it (empty where nothing needs mending). `status`: OK, NOTE or PROBLEM."""

    status: str
    found: str
    mend: str = ""


def python(place: Path) -> Finding:
    version, where = platform.python_version(), f"{platform.python_implementation()} in {sys.prefix}"
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding(PROBLEM, f"{version}, {where}", "make clean train PYTHON=python3.12 (3.11, 3.12 or 3.13)")
    return Finding(OK, f"{version}, {where}")


def packages(place: Path) -> Finding:
    """The installed versions against the lock."""
    locked = dict(line.split("==") for line in _requirements("requirements.lock"))
    installed = {name: _version(name) for name in locked}
    missing = [name for name, version in installed.items() if version is None]
    other = [
        f"{name} {installed[name]} (lock: {locked[name]})"
        for name in locked
        if installed[name] not in (None, locked[name])
    ]
    mend = f"{sys.executable} -m pip install -r {ROOT / 'requirements.lock'}"
    if missing:
        status = NOTE if OPTIONAL.issuperset(missing) else PROBLEM
        return Finding(status, f"missing: {', '.join(missing)}", mend)
    if other:
        return Finding(NOTE, f"other than the lock's: {', '.join(other)}", mend)
    return Finding(OK, f"{len(locked)} as in the lock, torch {installed['torch']}, numpy {installed['numpy']}")


def _requirements(file: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return [line for line in lines if line]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def cores(place: Path) -> Finding:
    """Cores, a container's quota, and who else is using them."""
    usable, total = usable_cores(), os.cpu_count() or 1
    quota = _cpu_quota()
    before = take_snapshot(None)
    threading.Event().wait(WATCHED_S)
    stretch = diff(before, take_snapshot(None))
    taken = sum(stretch.others.values())
    load = "" if stretch.load is None else f", load average {stretch.load:.1f}"
    found = f"{usable} of {total}{'' if quota is None else f', quota {quota:g}'}{load}, others take {taken:.1f}"
    if quota is not None and quota < usable:
        threads = max(1, int(quota))
        return Finding(NOTE, found, f"device.threads={threads}: more threads than the quota stop each other")
    if taken > WORTH_A_WORD * usable:
        busiest = max(stretch.others, key=lambda name: stretch.others[name])
        return Finding(
            NOTE, f"{found}, most of all {busiest}", "stop it, or wait: a busy machine trains less and plans worse"
        )
    return Finding(OK, found)


def _cpu_quota() -> float | None:
    """Cores that the container may use, None without a limit (cgroup v2, then v1)."""
    try:
        most, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            folder = Path("/sys/fs/cgroup/cpu")
            most, period = ((folder / f"cpu.cfs_{what}_us").read_text().strip() for what in ("quota", "period"))
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
    found = f"{free / GB:.1f} GB may be taken"
    if free < LEAST_MEMORY:
        return Finding(PROBLEM, found, f"free some, or raise the container's limit: {LEAST_MEMORY / GB:g} GB at least")
    mend = "small models only: the plan looks for what fits" if free < LITTLE_MEMORY else ""
    return Finding(NOTE if mend else OK, found, mend)


def device(place: Path) -> Finding:
    """What device=auto means here, and a GPU that is there but of no use to torch."""
    import torch

    from device.device import best_precision, find_device, gpu_uuid
    from device.specs import by_cuda_name

    found = find_device("auto")
    if found.type != "cuda":
        text = f"{platform.machine()} {found.type}, {best_precision(found)}"
        if not _has_nvidia():
            return Finding(OK, text)
        wrong = "this torch is a build without CUDA" if torch.version.cuda is None else "torch cannot use its driver"
        mend = "install torch from https://pytorch.org for this CUDA, or a newer driver; see nvidia-smi"
        return Finding(NOTE, f"{text}; there is an NVIDIA GPU, but {wrong}", mend)
    name = torch.cuda.get_device_name(found)
    known = by_cuda_name(name)
    free, total = torch.cuda.mem_get_info(found)
    text = (
        f"{name} ({known.name if known else 'not in the table: its peak is measured'}), {best_precision(found)},"
        f" {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, {torch.cuda.device_count()} in all"
    )
    if (gpu := take_snapshot(gpu_uuid(found)).gpu) is not None:
        text += f", {gpu.celsius:.0f} °C, {gpu.mhz:.0f} MHz"
        if gpu.slowed_by:
            return Finding(
                NOTE, f"{text}, slowed down by {', '.join(gpu.slowed_by)}", "cool it, or raise its power limit"
            )
    if free < 0.9 * total:
        return Finding(NOTE, text, "somebody else is on it: nvidia-smi shows who; device=cuda:1 takes another")
    return Finding(OK, text)


def _has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or any(Path("/dev").glob("nvidia[0-9]*"))


def peak(place: Path) -> Finding:
    """One large matrix product, against the table."""
    import torch

    from device.device import best_precision, find_device, set_up, synchronize
    from device.peak_flops import measure_peak
    from device.specs import by_cuda_name

    found = find_device("auto")
    set_up(found, usable_cores())
    precision = best_precision(found)
    measured = measure_peak(found, getattr(torch, precision), lambda: synchronize(found))
    text = f"{measured:.3g} FLOP/s in {precision}, measured"
    known = by_cuda_name(torch.cuda.get_device_name(found)) if found.type == "cuda" else None
    table = known.peak_in(precision) if known else None
    if table is None:
        return Finding(OK, text)
    text += f", {measured / table:.0%} of the table's {table:.3g}"
    if measured < LOW_PEAK * table:
        return Finding(NOTE, text, "hot, capped or shared: nvidia-smi -q -d PERFORMANCE,POWER,CLOCK")
    return Finding(OK, text)


def compiling(place: Path) -> Finding:
    """What torch.compile needs besides torch, and that its cache is this user's own: what lies there is executed."""
    import torch

    compiler = next((path for name in ("CXX", "CC") if (path := os.environ.get(name))), None)
    compiler = compiler or next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    lacking = [] if compiler else ["a C++ compiler"]
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        lacking.append("Python.h")
    if torch.version.cuda and importlib.util.find_spec("triton") is None:
        lacking.append("triton")
    user = os.environ.get("USER") or str(os.getuid())
    cache = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or Path(tempfile.gettempdir()) / f"torchinductor_{user}")
    wrong = _not_own(cache)
    if lacking:
        packages = "apt-get install g++ python3-dev"
        return Finding(
            NOTE, f"no {', no '.join(lacking)}: models are not compiled", f"{packages}, or device.compile=off"
        )
    if wrong:
        mend = f"export TORCHINDUCTOR_CACHE_DIR={Path.home() / '.cache' / 'torchinductor'}"
        return Finding(NOTE, f"{cache}, whose content is executed, {wrong}", mend)
    return Finding(OK, f"{compiler}, cache in {cache}")


def _not_own(folder: Path) -> str:
    """Why a folder's content is not only this user's doing, or cannot be executed; empty where all is well."""
    if not folder.exists():
        return ""
    about = folder.stat()
    if about.st_uid != os.getuid():
        return "belongs to another user"
    if about.st_mode & 0o022:
        return "may be written by other users"
    return "is on a disk mounted noexec" if os.statvfs(folder).f_flag & os.ST_NOEXEC else ""


def disk(place: Path) -> Finding:
    """The disk of runs: room, and the speed of a checkpoint."""
    folder = _existing(place / "outputs")
    found = f"{folder}: {_free(folder) / GB:.0f} GB free, {_kind(folder)}"
    try:
        written = _write_speed(folder)
    except OSError as error:
        return Finding(PROBLEM, f"{found}, cannot be written ({error.strerror})", "output_dir=FOLDER on another disk")
    found += f", {written / 1e6:.0f} MB/s written and synced"
    if _free(folder) < LEAST_DISK:
        return Finding(PROBLEM, found, f"free {LEAST_DISK / GB:g} GB, or output_dir=FOLDER on another disk")
    if _free(folder) < LITTLE_DISK:
        return Finding(NOTE, found, "a run needs 48 bytes a parameter for its checkpoints; it asks before it begins")
    if written < SLOW_DISK:
        return Finding(NOTE, found, "output_dir=FOLDER on a local disk: slow checkpoints are rare checkpoints")
    if _kind(folder) == "tmpfs":
        return Finding(NOTE, found, "its content ends with the machine: output_dir=FOLDER on a real disk")
    return Finding(OK, found)


def corpora(place: Path) -> Finding:
    """Where prepared corpora go, what is there, and the embedded one."""
    from data.sources import stdlib

    folder = place / "prepared"
    done = sum(1 for _ in folder.glob("*/manifest.json"))
    home = _existing(folder)
    sources = len(stdlib.source_files())
    found = f"{home}: {done} prepared, {_free(home) / GB:.0f} GB free; {sources} files in Python's standard library"
    if sources < FEWEST_SOURCES:
        mend = "data=text data.path=FOLDER, or a Python that has its sources with it"
        return Finding(PROBLEM, found, mend)
    if not os.access(home, os.W_OK):
        return Finding(PROBLEM, f"{found}, not writable", "data.cache_dir=FOLDER of yours")
    if _free(home) < LITTLE_DISK:
        return Finding(NOTE, found, "SlimPajama-6B takes 14 GB prepared: data.cache_dir=FOLDER, or data.max_bytes")
    return Finding(OK, found)


def locks(place: Path) -> Finding:
    """Two runs in one folder are kept apart by a lock."""
    folder = _existing(place / "outputs")
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            with waiting_lock(Path(file.name), lambda holder: None):
                pass
        except OSError as error:
            return Finding(PROBLEM, f"{folder} knows no locks ({error.strerror})", "output_dir=FOLDER on a local disk")
    return Finding(OK, f"file locks work in {folder}")


def limits(place: Path) -> Finding:
    """Limits of this shell that end a run half-way."""
    wanted = {
        "RLIMIT_FSIZE": ("file size", 4 * GB),
        "RLIMIT_AS": ("address space", 64 * GB),
        "RLIMIT_NOFILE": ("open files", 512),
    }
    low = []
    for name, (what, least) in wanted.items():
        soft = resource.getrlimit(getattr(resource, name))[0]
        if soft != resource.RLIM_INFINITY and soft < least:
            low.append(f"{what} {soft:,}")
    if low:
        return Finding(NOTE, f"limited: {', '.join(low)}", "ulimit -f unlimited; ulimit -v unlimited; ulimit -n 4096")
    return Finding(OK, "file size, memory and open files are not limited")


def caches(place: Path) -> Finding:
    """Where libraries keep what they fetch."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub_home = Path(os.environ.get("HF_HOME") or home / "huggingface")
    free = _free(_existing(hub_home))
    found = f"Hub {hub_home} ({free / GB:.0f} GB free), temporary files {tempfile.gettempdir()}"
    if not os.access(_existing(hub_home), os.W_OK):
        return Finding(NOTE, f"{found}, not writable", "export HF_HOME=FOLDER of yours")
    if free < 1 * GB:
        return Finding(NOTE, found, "export HF_HOME=FOLDER on a disk with room")
    return Finding(OK, found)


def wandb(place: Path) -> Finding:
    from urllib.parse import urlsplit

    from run.tracking.logger import key_at_hand, netrc_path

    url = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    host = urlsplit(url).hostname or ""
    has_key = key_at_hand(host)
    found = f"{_version('wandb')}, key for {host} {'set' if has_key else 'not set'}"
    if netrc_path().is_file() and netrc_path().stat().st_mode & 0o077:
        return Finding(NOTE, f"{found}; others may read {netrc_path()}", f"chmod 600 {netrc_path()}")
    if not has_key:
        return Finding(NOTE, found, "`wandb login` for wandb.mode=online; offline needs none")
    return Finding(OK, found)


def hub(place: Path) -> Finding:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    token = os.environ.get("HF_TOKEN") or Path(os.environ.get("HF_TOKEN_PATH") or home / "token").exists()
    found = f"datasets {_version('datasets')}, token {'set' if token else 'not set (none is needed for SlimPajama)'}"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return Finding(
            NOTE, f"{found}, HF_HUB_OFFLINE is set", "unset it to fetch data=slimpajama, or data.path=FOLDER"
        )
    return Finding(OK, f"{found}; not asked, as that needs a network")


def tiktoken(place: Path) -> Finding:
    from data.tokenizer import cache_folder, cached_names

    names, folder = cached_names(), cache_folder()
    found = f"{_version('tiktoken')}, at hand: {', '.join(names) or 'none'} in {folder}"
    if "gpt2" in names:
        return Finding(OK, found)
    mend = "data=slimpajama fetches gpt2 once; without a network set TIKTOKEN_CACHE_DIR, or data.tokenizer=bpe-4096"
    return Finding(NOTE, found, mend)


def slurm(place: Path) -> Finding:
    if job := os.environ.get("SLURM_JOB_ID"):
        parts = {"CPUs": "SLURM_CPUS_ON_NODE", "GPUs": "SLURM_JOB_GPUS", "partition": "SLURM_JOB_PARTITION"}
        about = ", ".join(f"{what} {os.environ[name]}" for what, name in parts.items() if name in os.environ)
        return Finding(OK, f"in job {job}{f' ({about})' if about else ''}")
    return Finding(OK, "sbatch is there, no job" if shutil.which("sbatch") else "none here")


def _existing(folder: Path) -> Path:
    """The folder, or what there is of its path."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _free(folder: Path) -> float:
    return float(shutil.disk_usage(folder).free)


def _kind(folder: Path) -> str:
    """The file system that a folder is on."""
    import psutil

    mounts = psutil.disk_partitions(all=True)
    above = [mount for mount in mounts if folder.resolve().is_relative_to(mount.mountpoint)]
    return max(above, key=lambda mount: len(mount.mountpoint)).fstype if above else "file system unknown"


def _write_speed(folder: Path) -> float:
    """Bytes a second of writing and syncing a file, at most DISK_BYTES or about DISK_SECONDS of it."""
    block, written = os.urandom(8 << 20), 0
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        began = now()
        while written < min(DISK_BYTES, _free(folder) / 2) and now() - began < DISK_SECONDS:
            written += file.write(block)
            os.fsync(file.fileno())
        return written / max(now() - began, 1e-9)


Check = Callable[[Path], Finding]

# (name, seconds it may take, check), in the order in which they are shown
CHECKS: tuple[tuple[str, float, Check], ...] = (
    ("python", 2, python),
    ("packages", 4, packages),
    ("torch", 12, torch_itself),
    ("cores", 3, cores),
    ("memory", 2, memory),
    ("device", 6, device),
    ("peak", 6, peak),
    ("compile", 4, compiling),
    ("disk", 5, disk),
    ("corpora", 4, corpora),
    ("locks", 3, locks),
    ("limits", 2, limits),
    ("caches", 2, caches),
    ("wandb", 3, wandb),
    ("hub", 3, hub),
    ("tiktoken", 4, tiktoken),
    ("slurm", 2, slurm),
)
