"""A Slurm of one node on this machine, for tests: python -m tests.slurm_cluster up | down | env

Needs root and Debian's packages: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge. Everything lives
in one folder under /tmp and nothing in /etc is touched; the daemons listen on 127.0.0.1. `env` prints what a shell needs to
reach it: eval "$(python -m tests.slurm_cluster env)".
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HOME = Path(tempfile.gettempdir()) / "stint-slurm"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
CPUS, MEMORY_MB, PORT = 8, 16000, 17817
PACKAGES = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"

# Requeue and preemption as on a real cluster; no accounting, no cgroups.
CONFIGURATION = """ClusterName=stint
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge/socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=5
MinJobAge=3600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
AccountingStorageType=accounting_storage/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
# submitit asks sacct whether a job still lives; without accounting, squeue knows the same.
SACCT = """#!/bin/sh
echo 'JobID|State|NodeList'
squeue --all --states=all --array --noheader --format='%i|%T|%N'
"""


def missing() -> list[str]:
    """Programs that a cluster needs and this machine has not."""
    return [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None]


def environment() -> dict[str, str]:
    """What a process needs to use the cluster."""
    return {"SLURM_CONF": str(HOME / "slurm.conf"), "PATH": f"{HOME / 'bin'}:{os.environ['PATH']}:/usr/sbin"}


def run(*command: str, timeout: float = 30.0) -> str:
    """Standard output of a client of the cluster; clients hang when the controller is gone, hence the limit."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment()}, check=True
    )
    return done.stdout


def up() -> None:
    """Start the cluster and wait until its node is idle. Raises SystemExit with what is missing."""
    if absent := missing():
        sys.exit(f"error: no {', '.join(absent)} here; {PACKAGES}")
    if os.getuid():
        sys.exit("error: the daemons run as root here; start this as root")
    for name in ("munge", "state", "spool", "bin"):
        (HOME / name).mkdir(parents=True, exist_ok=True)
    HOME.chmod(0o755)
    key = HOME / "munge" / "key"
    if not key.exists():
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
    host = socket.gethostname().split(".")[0]
    values = {"home": HOME, "host": host, "port": PORT, "node_port": PORT + 1, "cpus": CPUS, "memory": MEMORY_MB}
    (HOME / "slurm.conf").write_text(CONFIGURATION.format(**values))
    (HOME / "cgroup.conf").write_text("CgroupAutomount=no\n")
    sacct = HOME / "bin" / "sacct"
    sacct.write_text(SACCT)
    sacct.chmod(0o755)
    munge = [f"--{name}-file={HOME}/munge/{name}" for name in ("pid", "log", "seed")]
    run("munged", "--force", f"--key-file={key}", f"--socket={HOME}/munge/socket", *munge)
    run("slurmctld")
    run("slurmd", "-N", "n1")
    for _ in range(100):
        if "idle" in run("sinfo", "--noheader", "--format=%T"):
            return
        time.sleep(0.1)
    down()
    sys.exit(f"error: Slurm did not come up; see {HOME}/slurmctld.log and slurmd.log")


def alive(process: int) -> bool:
    """Whether it runs; one that nobody has waited for yet does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def down() -> None:
    """Stop the daemons, the node's first."""
    for name in ("slurmd.pid", "slurmctld.pid", "munge/pid"):
        path = HOME / name
        if not path.exists() or not path.read_text().strip():
            continue
        process = int(path.read_text())
        for number in (signal.SIGTERM, signal.SIGKILL):
            if alive(process):
                os.kill(process, number)
            for _ in range(50):
                if not alive(process):
                    break
                time.sleep(0.1)
        path.unlink(missing_ok=True)


def main() -> None:
    commands = {"up": up, "down": down, "env": show_environment}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]]()


def show_environment() -> None:
    print(f"export SLURM_CONF={HOME}/slurm.conf PATH={HOME}/bin:$PATH:/usr/sbin")


if __name__ == "__main__":
    main()
