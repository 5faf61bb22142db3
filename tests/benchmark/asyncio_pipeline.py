#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""The pipeline of the benchmark in asyncio, written the obvious way: a semaphore per stage, a coroutine per query, gather.

Prints the CPU time per query, in nanoseconds, as JSON.
"""

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Query:
    id: str
    text: str


@dataclass
class StageResult:
    query_id: str
    stage: str
    success: bool
    data: Any = None
    error: Exception | None = None
    queue_time: float = 0.0
    latency: float = 0.0


@dataclass
class PipelineResult:
    query: Query
    intent: int | None = None
    entities: int | None = None
    response: int | None = None
    stage_results: list[StageResult] = field(default_factory=list)
    completed: bool = False


class Models:
    """The model functions. They return at once, or after yielding once."""

    def __init__(self, yields: bool):
        self.yields = yields

    async def classify(self, text: str) -> int:
        if self.yields:
            await asyncio.sleep(0)
        return 1

    async def extract(self, text: str) -> int:
        if self.yields:
            await asyncio.sleep(0)
        return 2

    async def generate(self, intent: int, entities: int, text: str) -> int:
        if self.yields:
            await asyncio.sleep(0)
        return intent + entities


class Pipeline:
    def __init__(self, models: Models, limits: tuple[int, int, int]):
        self.models = models
        self.classify, self.extract, self.generate = (asyncio.Semaphore(limit) for limit in limits)
        self.dead_letters: list[tuple[Query, StageResult]] = []

    async def run_stage(self, stage: str, semaphore: asyncio.Semaphore, query: Query, function, *args) -> StageResult:
        queued = time.perf_counter()
        async with semaphore:
            started = time.perf_counter()
            try:
                data = await function(*args)
                success, error = True, None
            except Exception as exception:
                data, success, error = None, False, exception
            latency = time.perf_counter() - started
        return StageResult(query.id, stage, success, data, error, started - queued, latency)

    async def process(self, query: Query) -> PipelineResult:
        result = PipelineResult(query)
        stage = await self.run_stage("classify", self.classify, query, self.models.classify, query.text)
        result.stage_results.append(stage)
        result.intent = stage.data
        if stage.success:
            stage = await self.run_stage("extract", self.extract, query, self.models.extract, query.text)
            result.stage_results.append(stage)
            result.entities = stage.data
        if stage.success:
            stage = await self.run_stage(
                "generate", self.generate, query, self.models.generate, result.intent, result.entities, query.text
            )
            result.stage_results.append(stage)
            result.response = stage.data
            result.completed = stage.success
        if not stage.success:
            self.dead_letters.append((query, stage))
        return result

    async def process_batch(self, queries: list[Query]) -> list[PipelineResult]:
        return await asyncio.gather(*(self.process(query) for query in queries))


async def measure(queries: list[Query], yields: bool) -> float:
    pipeline = Pipeline(Models(yields), (20, 10, 5))
    started = time.thread_time_ns()
    results = await pipeline.process_batch(queries)
    elapsed = time.thread_time_ns() - started
    assert all(result.completed and result.response == 3 for result in results)
    return elapsed / len(queries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--yields", action="store_true", help="the model functions yield once")
    options = parser.parse_args()
    queries = [Query(f"q-{i}", str(i)) for i in range(options.queries)]
    print(json.dumps({"ns_per_query": asyncio.run(measure(queries, options.yields)), "queries": len(queries)}))


if __name__ == "__main__":
    main()
