#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Breaks the library in one place at a time and expects the tests to notice.

    tests/mutants.py            every mutant
    tests/mutants.py NAME...    those whose name contains one of NAME

Each mutant is a copy of include/ with one change; the test files named with it are built against the copy and run. A
mutant is killed if they fail or do not end. The same files are built and run with the unchanged library, and must pass.

Exit status 1 if a mutant survives, 2 if one could not be made, no name contains a NAME, or the tests fail with the
unchanged library.
"""
import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = ["-std=c++20", "-O0"]
# They triple the time, so only some mutants are built with them.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
LIBRARIES = ["-lCatch2Main", "-lCatch2"]
SECONDS = 300
KIBIBYTES = 4 << 20  # of memory, so that a mutant that never ends cannot exhaust it

# The flags of a test file beside FLAGS.
FLAGS_OF = {"sync/assertions_test": ["-DBOOST_ENABLE_ASSERT_HANDLER"],
            "memory_test": ["-DBOOST_ASIO_DISABLE_AWAITABLE_FRAME_RECYCLING"]}

# name, header, the original text, the text of the mutant, the tests that must notice, flags to build them with
MUTANTS = [
    ("a slot is handed over by dispatch", "sync/detail/bound_queue.hpp",
     ["boost::asio::post(*executor_, [self", "#include <boost/asio/post.hpp>"],
     ["boost::asio::dispatch(*executor_, [self", "#include <boost/asio/dispatch.hpp>"], "sync/stage_semaphore_test"),
    ("a granted waiter that is cancelled keeps its slot", "sync/detail/semaphore_state.hpp",
     "} else if (waiter.outcome == WaitOutcome::granted) {\n            waiter.outcome = WaitOutcome::aborted;",
     "} else if (false) {\n            waiter.outcome = WaitOutcome::aborted;",
     "sync/stage_semaphore_cancellation_test"),
    ("a cancelled waiter wakes its successor", "sync/detail/semaphore_state.hpp",
     "            wake(waiter, WaitOutcome::aborted);\n",
     "            wake(waiter, WaitOutcome::aborted);\n"
     "            if (waiting() != 0) { ++active_; wake(longest_waiting(), WaitOutcome::granted); }\n",
     "sync/stage_semaphore_cancellation_test"),
    ("a cancelled arrival still counts", "sync/detail/barrier_state.hpp", "            ++missing_;\n", "",
     "sync/barrier_cancellation_test"),
    ("a slot is kept during backoff", "stage/detail/stage_state.hpp",
     "        slot.release();\n    }\n\n    void finish_succeeded", "    }\n\n    void finish_succeeded",
     "stage/stage_test"),
    ("try_acquire overtakes waiters", "sync/detail/semaphore_state.hpp",
     "        BOOST_ASSERT(active_ >= limit_ || waiting() == 0);\n        if (closed_ || active_ >= limit_) {",
     "        if (closed_ || (active_ >= limit_ && waiting() == 0)) {", "sync/stage_semaphore_test"),
    ("a task group does not cancel one sibling", "sync/detail/task_group_state.hpp",
     ["        IntrusiveList<Child> uncancelled;\n", "            if (child.started) {"],
     ["        IntrusiveList<Child> uncancelled;\n        bool first = true;\n",
      "            if (child.started && !std::exchange(first, false)) {"], "sync/task_group_test"),
    ("a batch mixes up two results", "pipeline/detail/batch_results.hpp",
     "results_[index] = std::move(job.result);",
     "results_[index < 2 && results_.size() > 1 ? 1 - index : index] = std::move(job.result);",
     "pipeline/inference_pipeline_test"),

    ("last come, first served", "sync/detail/wait_queue.hpp",
     "Waiter& longest_waiting() noexcept { return waiting_.front(); }",
     "Waiter& longest_waiting() noexcept {\n"
     "        Waiter* last = nullptr;\n"
     "        waiting_.for_each([&](Waiter& waiter) { last = &waiter; });\n"
     "        return *last;\n    }", "sync/stage_semaphore_test"),
    ("raising the limit wakes no waiter", "sync/detail/semaphore_state.hpp",
     "        limit_ = checked(limit);\n        hand_over();", "        limit_ = checked(limit);",
     "sync/stage_semaphore_test"),
    ("closing does not end the waits", "sync/detail/semaphore_state.hpp",
     "        closed_ = true;\n        wake_all(WaitOutcome::closed);", "        closed_ = true;",
     "sync/stage_semaphore_test"),
    ("an exception from a resumed coroutine loses the other waiters", "sync/detail/wait_queue.hpp",
     "                waiters.splice_back(queue.ready_);\n",
     "                while (!waiters.empty()) { waiters.front().unlink(); }\n"
     "                waiters.splice_back(queue.ready_);\n", "sync/stage_semaphore_test"),
    ("waiters outlive their context", "sync/detail/wait_queue.hpp",
     "        dropped.splice_back(waiting_);\n", "", "sync/stage_semaphore_shutdown_test"),
    ("a granted slot is lost with the context of its waiter", "sync/detail/semaphore_state.hpp",
     "            --active_;\n        }\n    }\n\n    std::ptrdiff_t limit_;",
     "        }\n    }\n\n    std::ptrdiff_t limit_;",
     "sync/stage_semaphore_shutdown_test"),
    ("a cancellation reaches a waiter that is destroyed with its context", "sync/detail/wait_queue.hpp",
     "[this](Waiter& waiter) {\n            waiter.disconnect();\n", "[this](Waiter& waiter) {\n",
     "sync/stage_semaphore_shutdown_test"),
    ("a waiter that is woken during a drain is resumed by the same drain", "sync/detail/wait_queue.hpp",
     "            waiter.resume();\n", "            waiter.resume();\n            burst.waiters.splice_back(ready_);\n",
     "sync/stage_semaphore_test"),
    ("an acquire of a free slot never goes through the executor", "sync/detail/wait_queue.hpp",
     "++at_once_in_a_row_ <= 64", "true", "sync/stage_semaphore_test"),
    ("a row of acquires of free slots never ends", "sync/detail/wait_queue.hpp",
     "        at_once_in_a_row_ = 0;\n", "", "sync/stage_semaphore_test"),
    ("with another Boost, an acquire of a free slot never goes through the executor", "sync/detail/wait_operation.hpp",
     "InlineCompletion::depth < InlineCompletion::max_depth", "InlineCompletion::depth >= 0",
     "sync/stage_semaphore_test", "-DSLUICE_PORTABLE_AWAIT"),
    ("a closed semaphore grants its free slots", "sync/detail/semaphore_state.hpp",
     "if (closed_ || active_ >= limit_) {", "if (active_ >= limit_) {", "sync/stage_semaphore_test"),
    ("a slot above a lowered limit is handed on", "sync/detail/semaphore_state.hpp",
     "        if (waiting() != 0) {\n            hand_over();",
     "        if (waiting() != 0) {\n            ++active_;\n            wake(longest_waiting(), WaitOutcome::granted);",
     "sync/stage_semaphore_test"),
    ("a slot that is assigned to is lost", "sync/slot.hpp",
     "moved.semaphore_.swap(own());", "own() = std::move(moved.own());", "sync/stage_semaphore_test"),
    ("without a context, one of many waits in a row never ends", "sync/detail/wait_operation.hpp",
     "if (queue().context_gone()) {", "if (false) {", "sync/stage_semaphore_shutdown_test"),
    ("two frames share one block", "sync/detail/frame_pool.hpp",
     "                list.first = block->next;\n", "", "stage/stage_test"),
    ("a frame gets a block that is too small", "sync/detail/frame_pool.hpp",
     "lists_[(size - 1) / granule];\n            if (list.kept",
     "lists_[(size - 1) / granule / 2 * 2 + 1];\n            if (list.kept",
     "stage/stage_test", *SANITIZERS),
    ("the frame blocks that a thread keeps leak when it ends", "sync/detail/frame_pool.hpp",
     "                    open();\n", "", "sync/threads_test", *SANITIZERS),
    ("a frame that is freed after the pool of its thread leaks", "sync/detail/frame_pool.hpp",
     "                lists_[i].kept = most_kept;\n", "", "sync/threads_test", *SANITIZERS),
    ("a phase completes before its last arrival", "sync/detail/barrier_state.hpp",
     "--missing_ == 0 ? Arrived::last", "--missing_ <= 1 ? Arrived::last", "sync/barrier_test"),
    ("the other parties do not learn that the completion function threw", "sync/detail/barrier_state.hpp",
     "        missing_ = parties_;  // arrivals from",
     "        make_ready(released);\n        missing_ = parties_;  // arrivals from",
     "sync/barrier_test"),
    ("a completion function that throws does not break the barrier", "sync/detail/barrier_state.hpp",
     "                abort();\n", "", "sync/barrier_test"),
    ("a withdrawn arrival leaves its index unused", "sync/detail/barrier_state.hpp",
     "if (std::exchange(renumber_, false)) {", "if (false) {", "sync/barrier_cancellation_test"),
    ("an arrival is withdrawn from a completed phase", "sync/detail/barrier_state.hpp",
     "waiter.outcome == WaitOutcome::waiting && static_cast<BarrierWaiter&>(waiter).generation == generation_",
     "waiter.outcome == WaitOutcome::waiting", "sync/barrier_cancellation_test"),
    ("dropping out applies to one phase only", "sync/detail/barrier_state.hpp", "{ --parties_; }", "{}",
     "sync/barrier_test"),
    ("the last failure wins", "sync/detail/task_group_state.hpp", "if (error && !failure_ && ", "if (error && ",
     "sync/task_group_test"),
    ("operation_aborted from a cancelled child is a failure", "sync/detail/task_group_state.hpp",
     "!(cancelled_ && is_cancellation(error))", "true", "sync/task_group_test"),
    ("a failure cancels no sibling", "sync/detail/task_group_state.hpp",
     "            failure_ = error;\n            cancel();", "            failure_ = error;", "sync/task_group_test"),
    ("a child begins inside spawn", "sync/detail/task_group_state.hpp", "            co_await group.yield(start);\n", "",
     "sync/task_group_test"),
    ("a child is cancelled before it has begun", "sync/detail/task_group_state.hpp",
     "            if (child.started) {", "            if (true) {", "sync/task_group_cancellation_test",
     "-DSLUICE_PORTABLE_AWAIT"),
    ("children are cancelled more than once", "sync/detail/task_group_state.hpp",
     "if (std::exchange(cancelled_, true) || context_gone()) {", "cancelled_ = true;\n        if (context_gone()) {",
     "sync/task_group_cancellation_test"),
    ("a group does not wait for its children", "sync/detail/task_group_state.hpp",
     "if (running_ == 0 && waiting() != 0) {", "if (running_ <= 1 && waiting() != 0) {", "sync/task_group_test"),
    ("one retry too many", "stage/retry.hpp", "attempts <= max_retries &&", "attempts <= max_retries + 1 &&",
     "stage/retry_test"),
    ("the cap of the backoff is ignored", "stage/retry.hpp", "std::fmin(full, longest)", "full", "stage/retry_test"),
    ("a cancelled query becomes a dead letter", "stage/detail/stage_state.hpp",
     "if (cancelled || (!failure.attempted && !state_of(endpoint->line)->closed())) {", "if (false) {",
     "stage/stage_cancellation_test"),
    ("an attempt begins after the cancellation", "stage/detail/stage_state.hpp",
     "            if (!was_cancelled && is_cancelled(co_await boost::asio::this_coro::cancellation_state)) {\n"
     "                throw ", "            if (false) {\n                throw ", "stage/stage_cancellation_test"),
    ("a coroutine that was cancelled earlier cannot run a stage", "stage/detail/stage_coroutine.hpp",
     "const bool was_cancelled = is_cancelled(co_await boost::asio::this_coro::cancellation_state);",
     "const bool was_cancelled = false;", "stage/stage_cancellation_test"),
    ("a cancelled run is not reported as finished", "stage/detail/stage_state.hpp",
     "notify(query, &Observer::on_finished, result, Observer::Outcome::cancelled, last);", "static_cast<void>(last);",
     "stage/observer_test"),
    ("a failed run is reported as if it had only been queued", "stage/detail/stage_state.hpp",
     "Observer::Outcome::failed, Observer::Event::attempt_failed);",
     "Observer::Outcome::failed, Observer::Event::queued);", "stage/observer_test"),
    ("an attempt is reported with the number of the previous one", "stage/detail/stage_coroutine.hpp",
     "                    ++result.attempts;\n                    stage.notify(query, &Observer::on_started, result);\n",
     "                    stage.notify(query, &Observer::on_started, result);\n                    ++result.attempts;\n",
     "stage/observer_test"),
    ("the queue time counts only the last attempt", "stage/detail/stage_coroutine.hpp",
     "result.queue_time += started - queued;", "result.queue_time = started - queued;", "stage/stage_test"),
    ("queries that fail together retry together", "stage/detail/stage_coroutine.hpp", "stage.runs_++;", "stage.runs_;",
     "stage/stage_test"),
    ("a retry is not reported", "stage/detail/stage_state.hpp",
     "        stage.notify(query, &Observer::on_retry, result, retry->verdict, retry->delay);\n", "",
     "stage/observer_test"),
    ("a border of a histogram belongs to the bucket above", "metrics/histogram.hpp", "/ 1e7) - 1;", "/ 1e7);",
     "metrics/histogram_test"),
    ("the line time of a retry includes that of the attempt before", "metrics/metrics.hpp",
     "        retried_.keep(stage_run);\n", "", "metrics/metrics_test"),
    ("a stage run is taken for one that was destroyed at its address", "metrics/metrics.hpp",
     ["attempts > 0 ? retried_", "stage_run.attempts > 1 ? retried_"], ["true ? retried_", "true ? retried_"],
     "metrics/metrics_test"),
    ("an endpoint that is watched twice counts twice", "metrics/detail/watch_list.hpp",
     "is_new = is_new && known != endpoint;", "", "metrics/watch_test"),
    ("the queries of a pipeline that is gone are forgotten", "metrics/detail/watch_list.hpp",
     "                add_ends(destroyed_, *each.counts);\n", "", "metrics/watch_test"),
    ("a quote in a label is not escaped", "metrics/detail/prometheus_text.hpp", " || c == '\"'", "",
     "metrics/prometheus_test"),
    ("a query that was cancelled has no end", "pipeline/detail/query_window.hpp",
     "                window.state_.end_cancelled(window.drain_);\n",
     "                window.drain_.end_query(&QueryEnds::cancelled);\n", "metrics/watch_test"),
    ("time in an observer is not counted", "stage/detail/stage_state.hpp", "            query.expire_reading();\n", "",
     "stage/observer_test"),
    ("a failure has the reason of another", "stage/detail/stage_state.hpp", "failure.reason = Reason::timeout;", "",
     "stage/verdict_test"),
    ("a plain error is asked about although it is transient", "stage/detail/stage_state.hpp",
     "failure.is_plain && endpoint->verdict == &verdict_of", "failure.is_plain", "stage/verdict_test"),
    ("the time that the provider asks to wait is ignored", "stage/detail/retry_decision.hpp",
     "verdict.retry_after.value_or(std::chrono::nanoseconds(0))", "std::chrono::nanoseconds(0)", "stage/verdict_test"),
    ("what is invalid is retried", "stage/verdict.hpp", "return kind != invalid && kind != exhausted;", "return true;",
     "stage/verdict_test"),
    ("with_retry repeats a cancelled call", "stage/with_retry.hpp",
     "cancellation_state)) {\n                std::rethrow_exception(error);",
     "cancellation_state) && false) {\n                std::rethrow_exception(error);", "stage/verdict_test"),
    ("stages that share an endpoint do not share its limit", "stage/stage.hpp",
     "std::make_shared<State>(std::move(name), endpoint.state_,",
     "std::make_shared<State>(name, detail::EndpointState::make(\"Stage\", endpoint.get_executor(), name,"
     " endpoint.limit(), &verdict_of),", "stage/endpoint_test"),
    ("a query in backoff keeps its place", "stage/detail/window.hpp", "            give_back(place);\n", "",
     "pipeline/query_window_test"),
    ("a query that has no memory to leave its place has none", "stage/detail/window.hpp",
     "                place = places_.try_acquire();  // nobody has taken it\n", "", "memory_test"),
    ("any number of queries may be in backoff", "stage/detail/window.hpp", "backoffs_(executor, max_in_backoff)",
     "backoffs_(executor, max_in_backoff + 9999)", "pipeline/query_window_test"),
    ("a query runs on without a place after its backoff", "stage/detail/backoff_wait.hpp",
     "        if (place->has_left()) {\n", "        if (false) {\n", "pipeline/query_window_test"),
    ("a query that its route has cut short in a backoff ends without a place", "pipeline/detail/record_route.hpp",
     "            if (job.has_left()) {  // the", "            if (false) {  // the", "pipeline/pipeline_test"),
    ("the place that a backoff leaves is not used", "stage/detail/window.hpp",
     "        place.release();\n        admit();\n", "        place.release();\n",
     "pipeline/query_window_test"),
    ("a source that is owned is not closed", "pipeline/detail/query_window.hpp",
     "            co_await input_.template close<Executor>(error);\n", "", "pipeline/query_source_test"),
    ("a cancellation interrupts the closing of a source", "pipeline/detail/source_reader.hpp",
     "co_await spawn_uncancelled(executor, [&reader] { return reader.source_.close(); });",
     "co_await reader.source_.close();", "pipeline/query_source_test"),
    ("a timed attempt does not tell that it was cancelled", "stage/detail/stage_state.hpp",
     "            failure.cancelled = call.cancelled_from_outside();\n", "", "stage/stage_cancellation_test"),
    ("a retry begins after a late cancellation", "stage/with_retry.hpp",
     "                throw operation_aborted(\"with_retry\");\n", "", "stage/verdict_test"),
    ("several exceptions hide a verdict", "stage/detail/stage_coroutine.hpp", "!may_be_multiple_exceptions()", "true",
     "stage/verdict_test"),
    ("a stage whose context is gone never suspends", "stage/detail/stage_state.hpp",
     "        co_await boost::asio::post(co_await boost::asio::this_coro::executor, boost::asio::deferred);\n"
     "        stage.notify(query, &Observer::on_queued, result);\n",
     "        stage.notify(query, &Observer::on_queued, result);\n", "stage/endpoint_test"),
    ("the window does not follow the limits", "stage/detail/endpoint_state.hpp",
     "listener.on_limit_changed();", "static_cast<void>(listener);", "pipeline/query_window_test"),
    ("a raised limit is used only when a query ends", "stage/detail/window.hpp",
     "        places_.set_limit(size);\n        admit();\n", "        places_.set_limit(size);\n",
     "pipeline/query_window_test"),
    ("a source is asked by several workers", "pipeline/detail/query_window.hpp",
     "? !window.asking_ && window.has_free_place()", "? window.has_free_place()", "pipeline/query_source_test"),
    ("a source is asked without room", "pipeline/detail/query_window.hpp",
     "? !window.asking_ && window.has_free_place()", "? !window.asking_", "pipeline/query_source_test"),
    ("a source that has ended is asked again", "pipeline/detail/query_window.hpp",
     "                window.input_ended_ = true;\n", "", "pipeline/query_source_test"),
    ("a worker begins for each query that does not suspend", "pipeline/detail/query_window.hpp",
     "        admitting_ = true;\n", "", "pipeline/query_window_test"),
    ("a query without a place goes on", "stage/detail/stage_coroutine.hpp",
     "                if (query.place->has_left()) [[unlikely]] {", "                if (false) {", "pipeline/pipeline_test"),
    ("two saves of a query run at once", "pipeline/detail/record_saver.hpp",
     "        const Slot turn = co_await saver.turn_->acquire();\n", "", "pipeline/save_test"),
    ("what a save has seen is saved again", "pipeline/detail/record_saver.hpp",
     "        if (saver.saved_ < change) {", "        if (change != 0) {", "pipeline/save_test"),
    ("a save that failed counts as one", "pipeline/detail/record_saver.hpp",
     "            static_cast<void>(co_await saver.sink_.save(saver.result_.query, saver.result_.record));\n"
     "            saver.saved_ = seen;\n",
     "            saver.saved_ = seen;\n"
     "            static_cast<void>(co_await saver.sink_.save(saver.result_.query, saver.result_.record));\n",
     "pipeline/save_test"),
    ("a cancellation keeps what was paid for from being saved", "stage/detail/stage_coroutine.hpp",
     "                co_await boost::asio::this_coro::throw_if_cancelled(false);\n                co_await target.save();",
     "                co_await target.save();", "pipeline/save_test"),
    ("a drained stream leaves its queries to the report of its pipeline", "pipeline/detail/pipeline_stream.hpp",
     "(drain_.started() ? unfinished_ : state_->unfinished)", "(state_->unfinished)", "pipeline/drain_test"),
    ("a stream that has not begun is drained without its range", "pipeline/detail/pipeline_stream.hpp",
     "void on_drain() override { stream_.leave_rest(); }", "void on_drain() override {}", "pipeline/drain_test"),
    ("what a drained batch has is lost if it is cancelled", "pipeline/detail/pipeline_operations.hpp",
     "                    if (result.unfinished) {\n", "                    if (false) {\n", "pipeline/drain_test"),
    ("a route that drops a step when it is cancelled completes", "pipeline/detail/run_state.hpp",
     "return first_aborted != none_aborted || not_begun != 0;", "return first_aborted != none_aborted;", "pipeline/pipeline_test"),
    ("a step that the route itself cancels ends its batch", "pipeline/detail/record_route.hpp",
     "                (drained || is_cancelled(co_await boost::asio::this_coro::cancellation_state))) {",
     "                true) {", "pipeline/pipeline_test"),
    ("a frame stays in the scope of a drain that is gone", "stage/detail/drain_scope.hpp",
     "        while (!members_.empty()) {\n            members_.front().unlink();\n        }\n", "",
     "pipeline/drain_test", "-fsanitize=address,undefined"),
    ("an item that is an empty optional is left out", "pipeline/detail/query_job.hpp",
     "if constexpr (requires { job.take(std::forward<Item>(item)); }) {",
     "if constexpr (!is_optional<std::remove_cvref_t<Item>>) {", "pipeline/map_test"),
    ("a timeout cancels nothing", "sync/detail/timeouts.hpp", "                call.cancel();\n", "",
     "sync/timeout_test"),
    ("an error after the timeout is not a TimeoutError", "sync/timeout.hpp",
     "        if (call.expired()) {\n            std::throw_with_nested(",
     "        if (false) {\n            std::throw_with_nested(", "sync/timeout_test"),
    ("a cancellation from outside is taken for a timeout", "sync/timeout.hpp",
     "    if (call.cancelled_from_outside()) {", "    if (false) {", "sync/timeout_test"),
    ("a late model is not reported", "stage/detail/stage_state.hpp", "result.late = call.expired();", "", "stage/stage_test"),
    ("a body is cancelled as often as somebody cancels it", "sync/detail/canceller.hpp",
     "        if (cancellable()) {\n", "        {\n", "sync/cancelled_by_test"),
    ("a relay is told nothing of its signal's end", "sync/detail/canceller.hpp",
     "            relay_.slot_ = {};\n", "", "sync/cancelled_by_test", *SANITIZERS),
    ("a relay stays in the slot when its frame is destroyed", "sync/detail/canceller.hpp",
     "    ~CancellationRelay() { disconnect(); }\n", "", "sync/cancelled_by_test", *SANITIZERS),
    ("a body keeps the filter of the coroutine around it", "sync/detail/cancelled_by.hpp",
     "outside_ = access.exchange(inside);", "outside_ = access.exchange(inside);\n        access.exchange(outside_);",
     "sync/cancelled_by_test"),
    ("a body leaves its cancellation state behind", "sync/detail/cancelled_by.hpp",
     "        access.exchange(outside_);\n        if constexpr", "        if constexpr",
     "sync/cancelled_by_test"),
    ("a body leaves throw_if_cancelled behind", "sync/detail/cancelled_by.hpp",
     "std::exchange(entry_.throw_if_cancelled_, settings.throw_if_cancelled)", "entry_.throw_if_cancelled_",
     "sync/cancelled_by_test"),
    ("a body resets its cancellation state on the signal outside", "sync/detail/cancelled_by.hpp",
     "std::exchange(entry_.parent_cancellation_slot_, settings.parent)", "entry_.parent_cancellation_slot_",
     "sync/cancelled_by_test sync/timeout_test"),
    ("a coroutine goes back to a signal that has died", "sync/detail/cancelled_by.hpp",
     "if (relay_.signal_gone()) {", "if (false) {", "sync/cancelled_by_test", *SANITIZERS),
    ("a timer that fires too early is the last", "sync/detail/timeouts.hpp",
     "        pending_ = false;\n        if (!calls_.empty()) {", "        pending_ = false;\n        if (false) {",
     "sync/timeouts_test"),
    ("a timer fires too early and cancels", "sync/detail/timeouts.hpp",
     "        while (!calls_.empty() && left() <= Duration::zero()) {", "        while (!calls_.empty()) {",
     "sync/timeouts_test"),
    ("a timeout wins at a tie", "sync/detail/timeouts.hpp",
     "            timer_->post(*this, &Timeouts::expire);", "            expire();", "sync/timeouts_test"),
    ("an idle timer is not cancelled", "sync/detail/timeouts.hpp",
     "        check_posted_ = false;\n        if (calls_.empty()) {",
     "        check_posted_ = false;\n        if (false) {", "sync/timeouts_test"),
    ("a busy timer is cancelled", "sync/detail/timeouts.hpp",
     "        check_posted_ = false;\n        if (calls_.empty()) {",
     "        check_posted_ = false;\n        if (true) {", "sync/timeouts_test"),
    ("a check is posted for each call", "sync/detail/timeouts.hpp",
     "} else if (!std::exchange(check_posted_, true)) {", "} else {", "sync/timeouts_test"),
    ("an expired call is still in the list", "sync/detail/timeouts.hpp",
     "            call.unlink();\n            if (call.cancellable()) {",
     "            if (call.cancellable()) {", "sync/timeouts_test"),
    ("a call is used after it was cancelled", "sync/detail/timeouts.hpp",
     "                call.expired_ = true;\n                call.cancel();\n",
     "                call.cancel();\n                call.expired_ = true;\n", "sync/timeouts_test", *SANITIZERS),
    ("a timer outlives its context", "sync/detail/timeouts.hpp",
     "    void on_context_gone() noexcept override {\n        timer_.reset();\n",
     "    void on_context_gone() noexcept override {\n", "sync/timeouts_test", *SANITIZERS),
    ("timeouts hold on to a timer that went with its context", "sync/detail/timeouts.hpp",
     "        pending_ = check_posted_ = false;\n", "", "sync/timeouts_test"),
    ("retries without delay starve other handlers", "stage/detail/stage_state.hpp", "} else if (result.attempts % 64 == 0) {",
     "} else if (false) {",
     "stage/stage_test"),
    ("all stages have the same jitter", "stage/detail/stage_state.hpp",
     "std::hash<std::string>()(name.str()) : random_seed();", "std::hash<std::string>()(name.str()) : 0;",
     "stage/stage_test"),
    ("in virtual time the jitter differs from run to run", "stage/detail/stage_state.hpp", "HasNow<T> ? ", "false ? ",
     "stage/stage_test"),
    ("nested exceptions are ignored", "sync/detail/exceptions.hpp",
     "        error = nested_exception(first);\n", "        error = nullptr;\n", "stage/retry_test"),
    ("multiple exceptions are ignored", "sync/detail/exceptions.hpp",
     "            error = several.first_exception();\n", "            return error;\n", "values_test"),
    ("a waiter keeps the slot of a destroyed signal", "sync/detail/wait_queue.hpp",
     "        ~OnCancel() { waiter_.forget_slot(); }\n", "        ~OnCancel() = default;\n",
     "sync/teardown_test", *SANITIZERS),
    ("a timer keeps the slot of a destroyed signal", "testing/virtual_time.hpp",
     "        ~OnCancel() { wait_.slot = {}; }\n", "        ~OnCancel() = default;\n",
     "sync/teardown_test", *SANITIZERS),
    ("run() does not report coroutines that still wait", "testing/run.hpp",
     "    if (!context.stopped()) {", "    if (false) {", "testing/virtual_time_test"),
    ("an operation may be left unawaited", "sync/detail/wait_operation.hpp", "Derived::check_awaited(",
     "static_cast<void>(",
     "sync/assertions_test"),
    ("an operation that was moved from counts as forgotten", "sync/detail/wait_operation.hpp",
     "forgotten_ = other.forgotten_ = false;", "static_cast<void>(other);", "sync/assertions_test"),
    ("an operation that an exception prevented from being awaited counts as forgotten",
     "sync/detail/wait_operation.hpp",
     "!forgotten_ || std::uncaught_exceptions() != 0", "!forgotten_", "sync/assertions_test"),
    ("a primitive may be awaited in another context", "sync/detail/context_bound.hpp",
     "context_gone() || is_in_context(get_executor_of())", "true", "sync/assertions_test"),
    ("two threads may use one primitive at the same time", "sync/detail/sequence_checker.hpp",
     "outer_ == std::thread::id() || outer_ == std::this_thread::get_id()", "true", "sync/assertions_test"),
    ("one context may have two kinds of time", "sync/detail/clock.hpp", "HasNow<T> || !has_simulated_time(executor)",
     "true",
     "sync/assertions_test"),
    ("a failed query continues to the next stage", "pipeline/detail/inference_route.hpp",
     ["result.intent, text);\n            if (result.stage_results.back().success) {",
      "result.entities, text);\n                if (result.stage_results.back().success) {"],
     ["result.intent, text);\n            if (true) {",
      "result.entities, text);\n                if (result.stage_results.back().success && result.intent) {"],
     "pipeline/inference_pipeline_test"),
    ("a dead letter is put twice", "pipeline/detail/pipeline_state.hpp",
     "                put(sink, result, reason);\n",
     "                put(sink, result, reason); put(sink, result, reason);\n", "pipeline/inference_pipeline_test"),
    ("the dead letter of a query that is cancelled as it fails is lost", "pipeline/detail/inference_route.hpp",
     "            co_await boost::asio::this_coro::throw_if_cancelled(false);\n", "", "stage/observer_test"),
    ("a dead letter is cancelled with its query", "sync/detail/spawn_uncancelled.hpp",
     "boost::asio::bind_cancellation_slot(boost::asio::cancellation_slot(), boost::asio::deferred)",
     "boost::asio::deferred", "pipeline/inference_pipeline_cancellation_test"),
    ("a cancelled batch begins its remaining queries", "pipeline/detail/query_window.hpp",
     "while (!group.cancelled() && !window.input_ended_) {", "while (!window.input_ended_) {",
     "pipeline/inference_pipeline_cancellation_test"),
    ("a range is read again after its end", "pipeline/detail/query_reader.hpp",
     "        ended_ = true;  // unless everything below succeeds\n", "", "pipeline/drain_test", *SANITIZERS),
    ("an input is asked again after it has thrown", "pipeline/detail/query_window.hpp",
     "        input_ended_ = input_failed_ = true;\n", "        input_failed_ = true;\n",
     "pipeline/query_source_test"),
    ("a range is read one query ahead", "pipeline/detail/query_reader.hpp",
     ["                ++*at_;\n", "        ended_ = false;\n        return true;"],
     ["", "        ended_ = false;\n        ++*at_;\n        return true;"], "pipeline/inference_pipeline_test"),
    ("a batch runs one query more than the window", "pipeline/detail/query_window.hpp",
     "Window(executor, state.window(),", "Window(executor, state.window() + 1,", "pipeline/inference_pipeline_test"),
    ("a place in the window is free before its result is consumed", "pipeline/detail/stream_state.hpp",
     "            if (progress_->waiting() != 0) {", "            if (true) {", "pipeline/result_stream_test"),
    ("the place of a result is never released", "pipeline/detail/stream_state.hpp",
     "            give_back(place);\n", "            new Slot(std::move(place));\n", "pipeline/result_stream_test"),
    ("the place of a result that a consumer waits for is not released", "pipeline/detail/stream_state.hpp",
     "                job.place.release();\n", "", "pipeline/result_stream_cancellation_test"),
    ("only one of several free places is used", "pipeline/detail/query_window.hpp",
     "                    window.admit();\n                    std::exception_ptr error;",
     "                    std::exception_ptr error;", "pipeline/result_stream_test"),
    ("a result is lost when the wait for it is cancelled", "sync/detail/condition_variable.hpp",
     "            notify_one();  // passes the notification on\n", "", "pipeline/result_stream_cancellation_test"),
    ("only one consumer learns that the stream has ended", "pipeline/detail/stream_state.hpp",
     "self->progress_->notify_all();", "self->progress_->notify_one();", "pipeline/result_stream_test"),
    ("a stream continues after it is abandoned", "pipeline/detail/query_window.hpp",
     "        cancelled_ = true;\n        if (group_) {\n            group_->cancel();\n        } else",
     "        cancelled_ = true;\n        if (group_) {\n        } else", "pipeline/result_stream_cancellation_test"),
    ("each of several stage runs waits for a place", "stage/detail/backoff_wait.hpp",
     "            at.is_in_line = true;\n", "", "pipeline/pipeline_test"),
    ("the stage runs that wait for another's place are not told", "stage/detail/backoff_wait.hpp",
     "                at.others->notify_all();\n", "", "pipeline/pipeline_test"),
    ("steps side by side that are cancelled before they begin are forgotten", "pipeline/detail/side_by_side.hpp",
     "            run.abort();  // some have not even begun, perhaps\n", "", "pipeline/pipeline_test"),
    ("the window counts nested steps side by side together", "stage/detail/query_run.hpp",
     "    void end_one() noexcept { begin_backoff(); }", "    void end_one() noexcept {}", "pipeline/pipeline_test"),
    ("a later failure beside the first is forgotten", "pipeline/detail/side_by_side.hpp",
     "all.run_.add_failure(\"route\", Reason::route, error);", "static_cast<void>(error);", "pipeline/pipeline_test"),
    ("a route that swallows the failure of a save completes", "pipeline/detail/record_route.hpp",
     " && run.failed_save < 0;", ";", "pipeline/save_test"),
    ("a drain waits for places that results hold", "pipeline/detail/query_window.hpp",
     "        places().set_limit(std::numeric_limits<std::ptrdiff_t>::max());  // nobody comes after those that wait for one\n", "",
     "pipeline/drain_test"),
    ("the checkpoints of a drained stream die with it", "pipeline/detail/pipeline_stream.hpp",
     "            std::ranges::move(unfinished_, std::back_inserter(state_->unfinished));\n", "", "pipeline/drain_test"),
    ("a closed stream is read by a drain", "pipeline/detail/query_window.hpp",
     "leaves_rest_ = leaves_rest_ || !cancelled_;", "leaves_rest_ = true;", "pipeline/drain_test"),
    ("a pipeline's observer does not see the steps", "stage/detail/stage_state.hpp",
     "options_.observer ? options_.observer : query.observer", "options_.observer", "pipeline/pipeline_test"),
    ("a query that is handed over during a drain waits for a place", "pipeline/detail/query_window.hpp",
     "bool runs = !window.drained_;", "bool runs = true;", "pipeline/drain_test"),
    ("the timer of a drain outlasts it", "pipeline/detail/drain_state.hpp",
     "std::exchange(timer_, nullptr)->reset();", "timer_ = nullptr;", "pipeline/drain_test"),
    ("a stream that has not begun is destroyed under its drain", "pipeline/detail/pipeline_stream.hpp",
     "if (!self || this->stopped()) {", "if (false) {", "pipeline/drain_test"),
    ("a query that ends during a drain is not counted", "pipeline/detail/drain_state.hpp",
     "            ++(counts_.*counter);\n", "", "pipeline/drain_test"),
    ("a backoff outlasts the grace", "stage/detail/backoff_wait.hpp", "            cancel();\n", "",
     "pipeline/drain_test"),
    ("a drain counts from the epoch of its clock", "pipeline/detail/drain_state.hpp",
     "            return time - *first_;", "            return time.time_since_epoch();", "pipeline/pipeline_typed_test"),
    ("the drains of a stream and of its pipeline count from different readings", "pipeline/detail/drain_state.hpp",
     "            if (pipeline_) {\n                return", "            if (false) {\n                return",
     "pipeline/pipeline_typed_test"),
    ("beside a backoff that gives up, others do", "stage/detail/backoff_wait.hpp",
     "if (wait.outlasts_grace()) {", "if (place->gave_up || wait.outlasts_grace()) {", "pipeline/drain_test"),
    ("a backoff that its route has cut short gives up", "stage/detail/backoff_wait.hpp",
     "outlasts_grace() && cancellable()", "outlasts_grace()", "pipeline/drain_test"),
    ("a consumer gets an unfinished query", "pipeline/detail/pipeline_stream.hpp",
     "            if (job.result.unfinished) {\n", "            if (false) {\n", "pipeline/drain_test"),
    ("a drained pipeline takes queries in", "pipeline/detail/pipeline_operations.hpp",
     "        if (is_draining(state)) {\n            throw Draining",
     "        if (false) {\n            throw Draining", "pipeline/drain_test"),
    ("a later drain lengthens the grace", "stage/detail/drain_scope.hpp",
     "!draining_ || deadline < deadline_", "!draining_ || deadline != deadline_", "pipeline/drain_test"),
    ("cancelling the wait for a drain ends its grace", "pipeline/detail/drain_state.hpp",
     "                throw operation_aborted(\"drain\");",
     "                drain.end_timer();\n                throw operation_aborted(\"drain\");", "pipeline/drain_test"),
    ("a drain takes from a range of somebody else", "pipeline/detail/query_reader.hpp",
     "owned && std::ranges::sized_range<Range>", "std::ranges::sized_range<Range>", "pipeline/drain_test"),
    ("each report of a stream has its checkpoints", "pipeline/detail/pipeline_stream.hpp",
     "std::exchange(self->unfinished_, {})", "self->unfinished_", "pipeline/drain_test"),
    ("a field that is filled is paid for again", "pipeline/detail/step_target.hpp",
     "return field.has_value();", "return false;", "pipeline/pipeline_test"),
    ("a run in place does not wait for its slot", "stage/detail/stage_run.hpp",
     "        if (!run.slot) {\n", "        if (false) {\n", "pipeline/in_place_test"),
    ("a run in place misses that its observer closes the endpoint", "stage/detail/stage_run.hpp",
     "return line().closed() || must_throw(frame);", "return false;", "pipeline/in_place_test"),
    ("a run in place takes an earlier cancellation for one of its own", "stage/detail/stage_run.hpp",
     "run.was_cancelled = is_cancelled(frame);", "run.was_cancelled = false;", "pipeline/in_place_test"),
    ("after a run in place none is in place", "stage/detail/stage_run.hpp",
     "        run.taken = false;\n", "", "pipeline/in_place_test"),
    ("two runs of a query are in place at once", "stage/detail/stage_run.hpp",
     "target_.may_run_in_place() && !in_place().taken &&", "target_.may_run_in_place() &&", "pipeline/in_place_test"),
    ("a run in place reads a field that is empty", "stage/detail/stage_run.hpp",
     "if (std::apply([](auto&... args) { return (is_missing<Args>(args) || ...); }, args_)) {", "if (false) {",
     "pipeline/in_place_test"),
    ("a run in place takes a closed endpoint for a cancellation", "stage/detail/stage_run.hpp",
     "is_cancelled(frame) && !run.was_cancelled);",
     "(is_cancelled(frame) && !run.was_cancelled) || !failure.attempted);", "pipeline/in_place_test"),
    ("a run in place does not say that it started", "stage/detail/stage_run.hpp",
     "        stage_.notify(target_.query(), &Observer::on_started, *run.result);\n", "", "pipeline/in_place_test"),
    ("the queue time of a run in place is not counted", "stage/detail/stage_run.hpp",
     "run.result->queue_time += target_.query().read_clock(line().context()) - queued;", "static_cast<void>(queued);", "pipeline/in_place_test"),
    ("a wait for a slot outlives the query that it lies in", "stage/detail/query_run.hpp",
     "            line->drop(waiter);\n", "", "pipeline/in_place_test"),
    ("a run in place has an argument that is converted", "stage/detail/argument.hpp",
     "    (... && (std::is_reference_v<Parameters>", "    true || (... && (std::is_reference_v<Parameters>",
     "stage/arguments_test"),
    ("the callable of a child is destroyed too late to spawn", "sync/detail/task_group_state.hpp",
     "            function.reset();\n", "", "sync/task_group_test"),
    ("a child of a cancelled group begins", "sync/detail/task_group_state.hpp",
     "if (!on_end.group->cancelled_) {", "if (true) {", "sync/task_group_test"),
    ("a step_or_error() that fails ends the route", "pipeline/detail/step_target.hpp",
     "if (failed >= 0 && (throws || save_failed)) {", "if (failed >= 0) {", "pipeline/pipeline_test"),
    ("what a route throws is a failure of a model", "pipeline/detail/record_route.hpp",
     "\"route\", Reason::route", "\"route\", Reason::model", "pipeline/pipeline_test"),
    ("an empty field is a closed endpoint", "stage/detail/stage_state.hpp",
     "result.reason = Reason::missing;", "result.reason = Reason::closed;", "pipeline/pipeline_test"),
    ("a save that fails is a failure of the route", "pipeline/detail/step_target.hpp",
     "\"save\", Reason::checkpoint", "\"save\", Reason::route", "pipeline/save_test"),
    ("the first exception of a stream is lost", "pipeline/detail/stream_state.hpp",
     " && !self->error_", "", "pipeline/map_test"),
    ("an exception of the input cancels the calls of a stream", "pipeline/detail/stream_state.hpp",
     "            error_ = error;\n        }\n    }\n\nprotected:",
     "            error_ = error;\n        }\n        cancel();\n    }\n\nprotected:", "pipeline/map_test"),
    ("work on a pool has no strand of its own", "sync/run_on.hpp",
     ["RunOn<boost::asio::strand<Executor>, Function>",
      "std::constructible_from<typename Run::Executor, boost::asio::strand<Executor>>"],
     ["RunOn<Executor, Function>", "true"], "sync/threads_test", "-fsanitize=thread"),
    ("work on a pool begins although it was cancelled", "sync/detail/run_on_state.hpp",
     "            if (link.cancelled) {", "            if (false) {", "sync/run_on_test"),
    ("work on a pool is not cancelled", "sync/detail/run_on_state.hpp", "{ work->signal.emit(type); }", "{}",
     "sync/run_on_test"),
    ("work on a pool is kept alive by the coroutine that awaits it", "sync/detail/run_on_state.hpp",
     ["[weak = std::weak_ptr(link)]", "weak.lock()"], ["[weak = link]", "weak"], "sync/run_on_test", *SANITIZERS),
    ("a handler other than the chosen one runs next", "testing/interleaving_context.hpp",
     "take(chosen)();", "take(n - 1 - chosen)();", "testing/interleaving_test"),
    ("waits with the same expiry end in any order", "testing/virtual_time.hpp",
     "Position{expiry, sequence_++}", "Position{expiry, --sequence_}", "testing/virtual_timer_test"),
    ("a wait that is cancelled leaves the others out of order", "testing/detail/indexed_heap.hpp",
     "if (hole != 0 && last.key < entries_[parent_of(hole)].key) {", "if (false) {", "testing/virtual_timer_test"),
    ("the waits that are due with one whose handler throws are lost", "testing/detail/virtual_wait.hpp",
     "                    std::move(*this).post(waits_.front().get_executor());\n", "",
     "testing/virtual_timer_test"),
    ("a wait keeps its memory while its handler runs", "testing/detail/virtual_wait.hpp",
     "        Handler handler = release();\n        std::move(handler)(error);\n",
     "        handler_(error);\n        static_cast<void>(release());\n", "testing/virtual_timer_test"),
    ("waits that are due at once end in one order only", "testing/interleaving_context.hpp",
     "        time_.complete_separately();\n", "", "testing/interleaving_test"),
    ("a fuse throws at every further point", "testing/fuse.hpp",
     "points.fetch_add(1) == state_->number", "points.fetch_add(1) >= state_->number", "testing/fuse_test"),
    ("a test ends before its last error was injected", "testing/fuse.hpp",
     "if (!fuse.blown()) {", "if (!fuse.blown() || number == 2) {", "testing/fuse_test"),
    ("a scripted model allows any number of calls at once", "testing/scripted_model.hpp",
     "if (state->running > state->limit) {", "if (false) {", "testing/scripted_model_test"),
    ("a scripted model fails before its latency", "testing/scripted_model.hpp",
     "if (call.latency.count() > 0) {", "if (call.latency.count() > 0 && !call.error) {",
     "testing/scripted_model_test"),
]


def listed(one_or_more):
    return [one_or_more] if isinstance(one_or_more, str) else one_or_more


# Builds the tests against `include` and runs them. Returns None if they pass, and otherwise what went wrong.
def failure(include, tests, flags, precompiled):
    flags = [*FLAGS, *flags, *(flag for test in tests.split() for flag in FLAGS_OF.get(test, []))]
    sources = [str(ROOT / "tests" / f"{test}.cpp") for test in tests.split()]
    with tempfile.TemporaryDirectory() as scratch:
        program = pathlib.Path(scratch) / "tests"
        build = subprocess.run(
            ["g++", *flags, "-include", precompiled, f"-I{include}", f"-I{ROOT / 'tests'}", *sources, "-o", program,
             *LIBRARIES], capture_output=True)
        if build.returncode != 0:
            return "does not compile"
        limit = "" if "-fsanitize" in " ".join(flags) else f"ulimit -v {KIBIBYTES}; "  # sanitizers reserve terabytes
        try:
            run = subprocess.run(["sh", "-c", limit + 'exec "$0" --abort', program], capture_output=True,
                                 timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return "the tests do not end"
        return "the tests fail" if run.returncode != 0 else None


def try_mutant(mutant, precompiled):
    name, header, old, new, tests, *flags = mutant
    with tempfile.TemporaryDirectory() as scratch:
        include = pathlib.Path(scratch) / "include"
        shutil.copytree(ROOT / "include", include)
        path = include / "sluice" / header
        text = path.read_text()
        for place, change in zip(listed(old), listed(new), strict=True):
            if text.count(place) != 1:
                return f"cannot be made: its text occurs {text.count(place)} times in {header}"
            text = text.replace(place, change)
        path.write_text(text)
        outcome = failure(include, tests, flags, precompiled[tuple(flags)])
        if outcome is None:
            return "SURVIVED"
        return "cannot be made: does not compile" if outcome == "does not compile" else "killed"


# Compiles the headers of the dependencies that every test file includes. Returns the name to include them by.
def precompile(directory, flags):
    header = directory / "precompiled.hpp"
    directory.mkdir()
    shutil.copy(ROOT / "tests" / "support" / "precompiled.hpp", header)
    subprocess.run(["g++", *FLAGS, *flags, header, "-o", f"{header}.gch"], check=True)
    return header


def main():
    wanted = sys.argv[1:]
    if {"-h", "--help"} & set(wanted):
        print(__doc__.strip())
        return 0
    unknown = [w for w in wanted if not any(w in m[0] for m in MUTANTS)]
    if unknown:
        print(*(f"mutants.py: no mutant has '{w}' in its name" for w in unknown), sep="\n", file=sys.stderr)
        return 2
    chosen = [m for m in MUTANTS if not wanted or any(w in m[0] for w in wanted)]
    counts = {}
    with tempfile.TemporaryDirectory() as scratch, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        kinds = sorted({tuple(m[5:]) for m in chosen})
        precompiled = {kind: precompile(pathlib.Path(scratch) / str(i), kind) for i, kind in enumerate(kinds)}
        whole = sorted({(m[4], *m[5:]) for m in chosen})
        sound = True
        for (tests, *_), outcome in zip(whole, pool.map(
                lambda w: failure(ROOT / "include", w[0], w[1:], precompiled[w[1:]]), whole)):
            if outcome:
                print(f"The unchanged library, {tests}: {outcome}", flush=True)
                sound = False
        if not sound:
            return 2
        for mutant, outcome in zip(chosen, pool.map(lambda m: try_mutant(m, precompiled), chosen)):
            print(f"{outcome:12}  {mutant[0]}", flush=True)
            kind = outcome.split()[0]
            counts[kind] = counts.get(kind, 0) + 1
    print(f"{counts.get('killed', 0)} of {len(chosen)} mutants killed")
    if counts.get("cannot"):
        return 2
    return 1 if counts.get("SURVIVED") else 0


if __name__ == "__main__":
    sys.exit(main())
