"""Several processes of one command that talk through mlx.distributed's ring, as `mlx.launch -n 2` starts them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import mflux

PROGRAM = """
import sys
from mflux.cli.commands import BY_NAME
from mflux.cli.main import main
sys.exit(main(BY_NAME[sys.argv[1]], sys.argv[2:]))
"""


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start(folder, ranks, command, *flags):
    """The processes, their output in pipes."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(ranks)]))
    environment = os.environ | {"MLX_HOSTFILE": str(hosts), "PYTHONPATH": str(Path(mflux.__file__).parents[1])}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, command, *map(str, flags)],
            env=environment | {"MLX_RANK": str(rank)},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def finished(processes):
    return [process.communicate(timeout=600) for process in processes]
