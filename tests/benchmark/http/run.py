#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Measures the clients against one stub server in interleaved rounds, and prints one table.

A CPU time is of the client's process alone, user and system, without its start; the least of the rounds. Queries a
second, p50 and p99 are medians of the rounds, and the memory is the most of them. A client that has not done its work,
or exceeded the limit as the stub counts, ends the run with an error.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Stub:
    """The server, which ends with this process since it reads from it."""

    def __init__(self, program: Path):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.root = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        self.url = f"{self.root}/v1"
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answer_characters(self) -> int:
        """Returns the length of the text that it answers each query with."""
        with self.opener.open(f"{self.url}/chat/completions", data=b"{}") as answer:
            return len(json.load(answer)["choices"][0]["message"]["content"])

    def counts(self) -> dict:
        """Returns what it has counted since the last call."""
        with self.opener.open(f"{self.root}/counts") as answer:
            counts = json.load(answer)
        counts["connections"] -= 1  # this one
        return counts

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def is_installed(python: str, module: str) -> bool:
    command = [python, "-c", f"import {module}"]
    installed = subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    if not installed:
        print(f"{python} has no {module}", file=sys.stderr)
    return installed


def find_clients(options: argparse.Namespace) -> dict[str, list]:
    python = [options.python, HERE / "asyncio_client.py"]
    clients: dict[str, list] = {
        "sluice": [options.programs / "http_sluice_client"],
        "floor": [options.programs / "http_floor_client"],
    }
    if is_installed(options.python, "aiohttp"):
        clients["asyncio, aiohttp"] = python
        if is_installed(options.python, "uvloop"):
            clients["uvloop, aiohttp"] = [*python, "--uvloop"]
    if is_installed(options.python, "httpx"):
        clients["asyncio, httpx"] = [*python, "--client", "httpx"]
    return clients


def run_client(name: str, command: list, stub: Stub, options: argparse.Namespace) -> dict:
    load = ["--url", stub.url, "--queries", str(options.queries), "--slots", str(options.slots)]
    stub.counts()
    run = subprocess.run([*command, *load], stdout=subprocess.PIPE, text=True, check=False)
    counts = stub.counts()
    if run.returncode != 0:
        sys.exit(f"{name} did not succeed")
    result = json.loads(run.stdout)
    if result["queries"] != options.queries or counts["requests"] != options.queries or counts["refused"]:
        sys.exit(f"{name}: {options.queries} queries, but {result['queries']} ended, and the stub counted {counts}")
    characters = 0 if name == "floor" else options.queries * stub.answer_characters()
    if result["characters"] != characters:
        sys.exit(f"{name}: the answers have {result['characters']} characters, not {characters}")
    if counts["most_at_once"] > options.slots:
        sys.exit(f"{name}: {options.slots} slots, but {counts['most_at_once']} requests at once")
    return result | counts | {"cpu_us": 1e6 * result["cpu_seconds"] / options.queries}


def summary(rounds: list[dict]) -> dict:
    return {
        "cpu_us": min(result["cpu_us"] for result in rounds),
        "most_cpu_us": max(result["cpu_us"] for result in rounds),
        "rate": statistics.median(result["queries"] / result["seconds"] for result in rounds),
        "p50_ms": statistics.median(result["p50_ms"] for result in rounds),
        "p99_ms": statistics.median(result["p99_ms"] for result in rounds),
        "peak_mb": max(result["peak_kb"] for result in rounds) / 1024,
        "connections": max(result["connections"] for result in rounds),
        "most_at_once": max(result["most_at_once"] for result in rounds),
    }


def ratios(rounds: list[dict], own: list[dict]) -> str:
    values = [theirs["cpu_us"] / ours["cpu_us"] for theirs, ours in zip(rounds, own, strict=True)]
    return f"{statistics.median(values):.1f}x ({min(values):.1f} to {max(values):.1f})"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return "unknown processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=Path, required=True, help="the folder of the stub and the clients in C++")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has aiohttp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=200)
    parser.add_argument("--check", type=float, metavar="RATIO",
                        help="exit with status 1 if asyncio with aiohttp takes less than RATIO times sluice's CPU time")
    options = parser.parse_args()
    options.programs = options.programs.resolve()

    clients = find_clients(options)
    results: dict[str, list[dict]] = {name: [] for name in clients}
    stub = Stub(options.programs / "http_stub_server")
    try:
        for number in range(options.rounds):
            for name, command in clients.items():
                results[name].append(run_client(name, command, stub, options))
            print(f"round {number + 1} of {options.rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    finally:
        stub.close()

    print(f"{options.queries} queries, {options.slots} slots, {options.rounds} rounds; {processor()}")
    for name, rounds in results.items():
        if "versions" in rounds[0]:
            print(f"{name}: {rounds[0]['versions']}")
    print("\n| | CPU a query, us | beside sluice, median (range) | queries/s | p50, ms | p99, ms | memory, MB |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, rounds in results.items():
        row = summary(rounds)
        print(f"| {name} | {row['cpu_us']:.1f} to {row['most_cpu_us']:.1f} | {ratios(rounds, results['sluice'])} "
              f"| {row['rate']:,.0f} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | {row['peak_mb']:.1f} |")
        if row["connections"] > options.slots:
            print(f"{name} has opened {row['connections']} connections", file=sys.stderr)
    if options.check:
        if "asyncio, aiohttp" not in results:
            sys.exit("--check needs aiohttp")
        ratio = summary(results["asyncio, aiohttp"])["cpu_us"] / summary(results["sluice"])["cpu_us"]
        if ratio < options.check:
            sys.exit(f"asyncio takes {ratio:.1f} times the CPU time of sluice, less than {options.check}")


if __name__ == "__main__":
    main()
