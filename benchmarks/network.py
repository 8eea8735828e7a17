"""What the network costs: a round's fixed cost, a large payload's time and memory, beside the same in one process.

Run as: python benchmarks/network.py        # real engine on loopback with certificates, three clients; about two minutes

An exchange is one request to every client and their answers, through `h2tune.transport.network` and NVFlare's processes;
clients answer at once with as many bytes as they got. The plain copy sends the same bytes through one loopback socket.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from common import write

from h2tune.config import parse_config
from h2tune.deployment.kits import Kit
from h2tune.deployment.provision import provision
from h2tune.transport.client_loop import ClientLoop
from h2tune.transport.inprocess import InProcess
from h2tune.transport.network import Network
from h2tune.transport.nvflare.flare import Flare

CLIENTS = ("a", "b", "c")
SMALL, LARGE = 100_000, 100_000_000


class Echo:
    def handle(self, data: bytes) -> bytes:
        return data


def client(folder: str) -> None:
    """A client's process: answers with what it got."""
    kit = Kit(folder)
    channel = Flare(kit.engine, "client", kit.about.name)
    ClientLoop(channel, kit.about.federation).run(lambda data: data)
    channel.close()


def exchange(transport: Any, size: int, repeats: int) -> list[float]:
    data, times = os.urandom(size), []
    for _ in range(repeats):
        begin = time.perf_counter()
        answers = dict(transport.exchange(dict.fromkeys(CLIENTS, data), fresh=not times))
        times.append(time.perf_counter() - begin)
        assert all(answer == data for answer in answers.values()) and len(answers) == len(CLIENTS)
    return times


def copy(size: int) -> float:
    """Seconds for so many bytes through one plain loopback connection, there and back."""
    door = socket.create_server(("127.0.0.1", 0))

    def back() -> None:
        end, _ = door.accept()
        with end:
            while data := end.recv(1 << 20):
                end.sendall(data)

    threading.Thread(target=back, daemon=True).start()
    data, got, begin = os.urandom(size), 0, time.perf_counter()
    with socket.create_connection(door.getsockname()) as near:
        writer = threading.Thread(target=near.sendall, args=(data,))
        writer.start()
        while got < size:
            got += len(near.recv(1 << 20))
        writer.join()
    return time.perf_counter() - begin


class Memory:
    """Peak base memory of processes above what they had, looked at often."""

    def __init__(self, processes: dict[str, psutil.Process]) -> None:
        self.processes, self.over = processes, threading.Event()
        self.before = {n: p.memory_info().rss for n, p in processes.items()}
        self.peak = dict(self.before)
        self.thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self.over.wait(0.01):
            for name, process in self.processes.items():
                self.peak[name] = max(self.peak[name], process.memory_info().rss)

    def __enter__(self) -> Memory:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()

    def growth(self) -> dict[str, float]:
        return {name: (self.peak[name] - self.before[name]) / LARGE for name in self.processes}


def main() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rows = [{"name": n, "model": "-", "task": "demo-fill", "train": "-", "test": "-"} for n in CLIENTS]
    experiment = parse_config({"name": "bench", "clients": rows, "network": {"port": port, "limit": "200MB"}})
    with tempfile.TemporaryDirectory() as folder:
        kits = Path(folder)
        provision(experiment, kits)
        server = Kit(kits / "server")
        channel = Flare(server.engine, "server", "server")
        begin = time.perf_counter()
        processes = [subprocess.Popen([sys.executable, __file__, str(kits / name)]) for name in CLIENTS]
        network = Network(channel, CLIENTS, server.about.federation, experiment.network, lambda *a, **k: None)
        assert network.wait(CLIENTS, len(CLIENTS), first=True)
        start = time.perf_counter() - begin
        small, inside = (
            exchange(network, SMALL, 21)[1:],
            exchange(InProcess(dict.fromkeys(CLIENTS, Echo())), SMALL, 21)[1:],
        )
        watched = {"server": psutil.Process(), "server's engine": psutil.Process(channel.pid),
                   "a client": psutil.Process(processes[0].pid),
                   "a client's engine": psutil.Process(processes[0].pid).children()[0]}  # fmt: skip
        with Memory(watched) as memory:
            large = exchange(network, LARGE, 3)
        network.stop("done", finished=True)
        for process in processes:
            process.wait(20)
        channel.close()
    plain = [copy(LARGE) for _ in range(3)]
    result = {
        "seconds_until_all_are_here": start,
        "exchange_100_kB": {"median_seconds": statistics.median(small), "slowest": max(small),
                            "in_process_seconds": statistics.median(inside)},
        "exchange_100_MB": {"clients": len(CLIENTS), "median_seconds": statistics.median(large),
                            "plain_copy_of_one_seconds": statistics.median(plain),
                            "times_three_plain_copies": statistics.median(large) / statistics.median(plain) / 3,
                            "memory_growth_in_payloads": memory.growth()},
    }  # fmt: skip
    for name, found in result.items():
        print(f"{name:<28} {found}")
    write("network", result)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        client(sys.argv[1])
    else:
        main()
