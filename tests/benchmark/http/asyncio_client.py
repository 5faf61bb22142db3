#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""The load of the benchmark over HTTP in asyncio, written the obvious way: a session, a semaphore, a coroutine for each
query, gather.

Prints what load.hpp says, as JSON, and the versions.
"""

import argparse
import asyncio
import json
import platform
import re
import resource
import time

SYSTEM_MESSAGE = "You answer in one short paragraph."


def question(number: int) -> str:
    return f"Question {number}: how does the limit of an endpoint protect the provider behind it?"


class AiohttpSession:
    def __init__(self, options: argparse.Namespace, headers: dict[str, str]):
        import aiohttp

        self.session = aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=options.slots))
        self.version = f"aiohttp {aiohttp.__version__}"

    async def post(self, url: str, body: dict) -> dict:
        async with self.session.post(url, json=body) as response:
            response.raise_for_status()
            return await response.json()

    async def close(self) -> None:
        await self.session.close()


class HttpxSession:
    def __init__(self, options: argparse.Namespace, headers: dict[str, str]):
        import httpx

        limits = httpx.Limits(max_connections=options.slots, max_keepalive_connections=options.slots)
        self.session = httpx.AsyncClient(headers=headers, limits=limits)
        self.version = f"httpx {httpx.__version__}"

    async def post(self, url: str, body: dict) -> dict:
        response = await self.session.post(url, json=body)
        response.raise_for_status()
        return response.json()

    async def close(self) -> None:
        await self.session.aclose()


def cpu_time() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_kilobytes() -> int:
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read())[1])


async def measure(options: argparse.Namespace) -> dict:
    session_class = {"aiohttp": AiohttpSession, "httpx": HttpxSession}[options.client]
    session = session_class(options, {"Authorization": "Bearer benchmark"})
    semaphore = asyncio.Semaphore(options.slots)
    url = f"{options.url}/chat/completions"
    calls: list[float] = []

    async def ask(number: int) -> str:
        body = {
            "model": "stub",
            "messages": [
                {"role": "system", "content": SYSTEM_MESSAGE},
                {"role": "user", "content": question(number)},
            ],
            "max_tokens": 128,
        }
        async with semaphore:
            begun = time.perf_counter()
            answer = await session.post(url, body)
            text = answer["choices"][0]["message"]["content"]
            calls.append(time.perf_counter() - begun)
        return text

    started, cpu_started = time.perf_counter(), cpu_time()
    answers = await asyncio.gather(*(ask(number) for number in range(options.queries)))
    seconds, cpu_seconds = time.perf_counter() - started, cpu_time() - cpu_started
    await session.close()
    calls.sort()
    return {
        "queries": len(answers),
        "characters": sum(map(len, answers)),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "p50_ms": 1e3 * calls[len(calls) // 2],
        "p99_ms": 1e3 * calls[len(calls) * 99 // 100],
        "peak_kb": peak_kilobytes(),
        "versions": f"Python {platform.python_version()}, {session.version}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--slots", type=int, default=200)
    parser.add_argument("--client", choices=["aiohttp", "httpx"], default="aiohttp")
    parser.add_argument("--uvloop", action="store_true", help="the event loop of uvloop")
    options = parser.parse_args()
    version = ""
    if options.uvloop:
        import uvloop

        uvloop.install()
        version = f", uvloop {uvloop.__version__}"
    result = asyncio.run(measure(options))
    result["versions"] += version
    print(json.dumps(result))


if __name__ == "__main__":
    main()
