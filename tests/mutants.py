#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Breaks the library in one place at a time and expects the tests to notice.

    tests/mutants.py            every mutant
    tests/mutants.py NAME...    those whose name contains one of NAME

Each mutant is a copy of include/ with one change; the test files named with it are built against the copy and run. A
mutant is killed if they fail, do not end, or do not compile. Exit status 1 if one survives, 2 if one could not be made.
"""
import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = ["-std=c++20", "-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
LIBRARIES = ["-lCatch2Main", "-lCatch2"]
SECONDS = 300

# name, header, what stands there, what the mutant has instead, the tests that must notice
MUTANTS = [
    ("hand-over by dispatch", "detail/wait_queue.hpp",
     ["boost::asio::post(*executor_, [self", "#include <boost/asio/post.hpp>"],
     ["boost::asio::dispatch(*executor_, [self", "#include <boost/asio/dispatch.hpp>"], "stage_semaphore_test"),
    ("a granted waiter that is cancelled keeps its slot", "stage_semaphore.hpp",
     "} else if (waiter.outcome == Outcome::granted) {\n            waiter.outcome = Outcome::aborted;",
     "} else if (false) {\n            waiter.outcome = Outcome::aborted;", "stage_semaphore_test"),
    ("a cancelled waiter wakes its successor", "stage_semaphore.hpp",
     "            wake(waiter, Outcome::aborted);\n",
     "            wake(waiter, Outcome::aborted);\n"
     "            if (waiting() != 0) { ++active_; wake(longest_waiting(), Outcome::granted); }\n", "stage_semaphore_test"),
    ("a cancelled arrival still counts", "barrier.hpp", "            ++missing_;\n", "", "barrier_test"),
    ("a slot kept during backoff", "stage.hpp", "                slot.release();\n", "", "stage_test"),
    ("try_acquire overtakes", "stage_semaphore.hpp",
     "        BOOST_ASSERT(active_ >= limit_ || waiting() == 0);\n        if (closed_ || active_ >= limit_) {",
     "        if (closed_ || (active_ >= limit_ && waiting() == 0)) {", "stage_semaphore_test"),
    ("a task group forgets one sibling", "detail/task_group_state.hpp",
     ["        IntrusiveList<Child> untold;\n", "            if (child.started) {"],
     ["        IntrusiveList<Child> untold;\n        bool first = true;\n",
      "            if (child.started && !std::exchange(first, false)) {"], "task_group_test"),
    ("a batch mixes up two results", "inference_pipeline.hpp",
     "results[index] = std::move(result);",
     "results[index < 2 && results.size() > 1 ? 1 - index : index] = std::move(result);", "inference_pipeline_test"),

    ("last come, first served", "detail/wait_queue.hpp",
     "Waiter& longest_waiting() noexcept { return waiting_.front(); }",
     "Waiter& longest_waiting() noexcept {\n"
     "        Waiter* last = nullptr;\n"
     "        waiting_.for_each([&](Waiter& waiter) { last = &waiter; });\n"
     "        return *last;\n    }", "stage_semaphore_test"),
    ("raising the limit wakes nobody", "stage_semaphore.hpp",
     "        limit_ = checked(limit);\n        hand_over();", "        limit_ = checked(limit);", "stage_semaphore_test"),
    ("closing leaves the waiters", "stage_semaphore.hpp",
     "        closed_ = true;\n        wake_all(Outcome::aborted);", "        closed_ = true;", "stage_semaphore_test"),
    ("an exception from a resumed coroutine loses the others", "detail/wait_queue.hpp",
     "                if (queue.ready_count_ != 0) {", "                if (false) {", "stage_semaphore_test"),
    ("waiters outlive their context", "detail/wait_queue.hpp",
     "        dropped.splice_back(waiting_);\n", "", "stage_semaphore_test"),
    ("a phase completes before its last arrival", "barrier.hpp",
     "return --missing_ == 0;", "return --missing_ <= 1;", "barrier_test"),
    ("the others do not learn that the completion function threw", "barrier.hpp",
     "        missing_ = parties_;  // who arrives", "        make_ready(released);\n        missing_ = parties_;  // who arrives",
     "barrier_test"),
    ("a completion that throws leaves the barrier whole", "barrier.hpp",
     "                abort();\n", "", "barrier_test"),
    ("dropping is for one phase only", "barrier.hpp", "        --parties_;\n", "", "barrier_test"),
    ("the last failure wins", "detail/task_group_state.hpp", "if (error && !failure_ && ", "if (error && ", "task_group_test"),
    ("cancellation noise is a failure", "detail/task_group_state.hpp",
     "!(cancelled_ && is_cancellation(error))", "true", "task_group_test"),
    ("a failure cancels nobody", "detail/task_group_state.hpp",
     "            failure_ = error;\n            cancel();", "            failure_ = error;", "task_group_test"),
    ("a child begins inside spawn", "detail/task_group_state.hpp", "            co_await group.yield(start);\n", "", "task_group_test"),
    ("a child is cancelled before it has begun", "detail/task_group_state.hpp",
     "            if (child.started) {", "            if (true) {", "task_group_test"),
    ("one retry too many", "retry.hpp", "attempts <= max_retries_", "attempts <= max_retries_ + 1", "retry_test stage_test"),
    ("the cap does not hold", "retry.hpp", "std::fmin(full, cap)", "full", "retry_test"),
    ("a cancelled query is a dead letter", "stage.hpp",
     "            throw_if_cancelled(co_await boost::asio::this_coro::cancellation_state);\n", "", "stage_test"),
    ("an attempt begins after the cancellation", "stage.hpp",
     "            throw_if_cancelled(co_await boost::asio::this_coro::cancellation_state);  // too late for the backoff\n", "",
     "stage_test"),
    ("a cancelled run does not finish", "stage.hpp",
     "observer->on_finished(result, Observer::Outcome::cancelled, last);", "", "observer_test"),
    ("a run that fails for good finishes as if it had waited", "stage.hpp",
     "last = Observer::Event::attempt_failed;", "last = Observer::Event::queued;", "observer_test"),
    ("a timeout that cancels nothing", "timeout.hpp",
     "            co_await timer.async_wait(boost::asio::deferred);\n            group.cancel();",
     "            co_await timer.async_wait(boost::asio::deferred);", "timeout_test"),
    ("a failed query goes on to the next stage", "inference_pipeline.hpp",
     "if (keep(result, classified, result.intent)) {", "if (keep(result, classified, result.intent) || (result.intent.emplace(), true)) {",
     "inference_pipeline_test"),
    ("a dead letter is put twice", "inference_pipeline.hpp",
     "                sink.put(result.query, reason);\n",
     "                sink.put(result.query, reason);\n                sink.put(result.query, reason);\n", "inference_pipeline_test"),
    ("one query more than the window", "inference_pipeline.hpp",
     "if (workers < state.window) {", "if (workers <= state.window) {", "inference_pipeline_test"),
    ("a place in the window is free before its result is taken", "detail/stream_state.hpp",
     "Completed{Item(index, std::move(result)), std::move(place)}", "Completed{Item(index, std::move(result)), Slot()}",
     "result_stream_test"),
    ("a stream that nobody reads goes on", "detail/stream_state.hpp",
     "        if (group_) {\n            group_->cancel();\n        }\n", "", "result_stream_test"),
]


def listed(one_or_more):
    return [one_or_more] if isinstance(one_or_more, str) else one_or_more


def try_mutant(mutant):
    name, header, old, new, tests = mutant
    with tempfile.TemporaryDirectory() as scratch:
        include = pathlib.Path(scratch) / "include"
        shutil.copytree(ROOT / "include", include)
        path = include / "sluice" / header
        text = path.read_text()
        for place, change in zip(listed(old), listed(new), strict=True):
            if text.count(place) != 1:
                return name, f"cannot be made: its place stands in {header} {text.count(place)} times"
            text = text.replace(place, change)
        path.write_text(text)
        program = pathlib.Path(scratch) / "tests"
        sources = [str(ROOT / "tests" / f"{test}.cpp") for test in tests.split()]
        build = subprocess.run(
            ["g++", *FLAGS, f"-I{include}", f"-I{ROOT / 'tests'}", *sources, "-o", str(program), *LIBRARIES],
            capture_output=True, text=True)
        if build.returncode != 0:
            return name, "does not compile"
        try:
            run = subprocess.run([str(program), "--abort"], capture_output=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return name, "killed (the tests do not end)"
        return name, "killed" if run.returncode != 0 else "SURVIVED"


def main():
    wanted = sys.argv[1:]
    chosen = [m for m in MUTANTS if not wanted or any(w in m[0] for w in wanted)]
    counts = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, outcome in pool.map(try_mutant, chosen):
            print(f"{outcome:12}  {name}", flush=True)
            kind = "killed" if outcome.startswith("killed") else outcome.split()[0]
            counts[kind] = counts.get(kind, 0) + 1
    print(f"{counts.get('killed', 0)} of {len(chosen)} mutants killed")
    if counts.get("cannot") or counts.get("does"):
        return 2
    return 1 if counts.get("SURVIVED") else 0


if __name__ == "__main__":
    sys.exit(main())
