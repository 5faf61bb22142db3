// SPDX-License-Identifier: BSL-1.0
#include <sluice/observer.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_time.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using sluice::Observer;
using sluice::Query;
using sluice::Stage;
using sluice::StageError;
using sluice::StageResult;
using test::Endpoint;
using test::InferencePipelineOptions;
using test::Model;
using test::retries;
using test::run_until;
using test::StageOptions;
using test::Task;
using test::VirtualTimer;
using Lines = std::vector<std::string>;
using ObservedRun = Task<StageResult<std::string>>;

namespace {

std::string name(Observer::Event event) {
    const char* const names[] = {"queued", "started", "attempt failed"};
    return names[static_cast<int>(event)];
}

std::string name(Observer::Outcome outcome) {
    const char* const names[] = {"succeeded", "failed", "cancelled"};
    return names[static_cast<int>(outcome)];
}

bool is_aborted(const StageError& error) {
    if (!error) {
        return false;
    }
    try {
        std::rethrow_exception(error.exception());
    } catch (const boost::system::system_error& e) {
        return e.code() == asio::error::operation_aborted;
    } catch (...) {
        return false;
    }
}

// Records every event: the time (ms), the event, the query and the stage, and the rest.
class Recorder final : public Observer {
public:
    Lines lines;

    explicit Recorder(asio::io_context* context = nullptr) : context_(context) {}

    void on_queued(const StageResult<>& run) noexcept override { add("queued", run, std::to_string(run.attempts)); }
    void on_started(const StageResult<>& run) noexcept override { add("started", run, std::to_string(run.attempts)); }
    void on_attempt_failed(const StageResult<>& run, const StageError& error) noexcept override {
        add("attempt failed", run, std::to_string(run.attempts) + ": " + text(error));
    }
    void on_finished(const StageResult<>& run, Outcome outcome, Event last) noexcept override {
        CHECK(run.success == (outcome == Outcome::succeeded));
        CHECK(run.success != static_cast<bool>(run.error));
        CHECK((outcome != Outcome::cancelled || is_aborted(run.error)));
        add("finished", run,
            name(outcome) + " after " + name(last) + (run.error ? ": " + text(run.error) : std::string()));
    }
    void on_dead_letter(const Query& query, const StageResult<>& run, const StageError& sink_error) noexcept override {
        CHECK(query.id == run.query_id);
        add("dead letter", run, text(run.error) + (sink_error ? ", but " + text(sink_error) : std::string()));
    }

private:
    static std::string text(const StageError& error) { return is_aborted(error) ? "aborted" : error.message(); }

    void add(const std::string& what, const StageResult<>& run, const std::string& rest) {
        std::string line = what + ' ' + run.query_id.str() + " in " + run.stage.str() + ' ' + rest;
        if (context_) {
            line = std::to_string(test::now(*context_) / 1ms) + ' ' + line;
        }
        lines.push_back(std::move(line));
    }

    asio::io_context* context_;
};

// Keeps gauges as the comment on Observer describes, and checks the order of each stage run's events.
class Counter final : public Observer {
public:
    int waiting = 0;
    int running = 0;
    int peak = 0;
    int begun = 0;
    std::map<std::string, int> finished;  // by outcome
    std::map<std::string, int> dead;      // by query

    std::size_t open() const { return runs_.size(); }

    void on_queued(const StageResult<>& run) noexcept override {
        const auto [at, is_new] = runs_.try_emplace(&run, Event::queued);
        CHECK((is_new ? run.attempts == 0 : at->second == Event::attempt_failed));
        begun += is_new;
        at->second = Event::queued;
        ++waiting;
    }
    void on_started(const StageResult<>& run) noexcept override {
        CHECK(std::exchange(runs_.at(&run), Event::started) == Event::queued);
        --waiting;
        peak = std::max(peak, ++running);
    }
    void on_attempt_failed(const StageResult<>& run, const StageError& error) noexcept override {
        CHECK(std::exchange(runs_.at(&run), Event::attempt_failed) == Event::started);
        CHECK(error);
        --running;
    }
    void on_finished(const StageResult<>& run, Outcome outcome, Event last) noexcept override {
        CHECK(runs_.at(&run) == last);
        CHECK(runs_.erase(&run) == 1);
        waiting -= last == Event::queued;
        running -= last == Event::started;
        ++finished[name(outcome)];
    }
    void on_dead_letter(const Query& query, const StageResult<>& run, const StageError&) noexcept override {
        CHECK_FALSE(runs_.contains(&run));
        ++dead[query.id.str()];
    }

private:
    std::map<const StageResult<>*, Event> runs_;
};

// Calls a function at each event.
class Caller final : public Observer {
public:
    std::function<void(const std::string&, const StageResult<>&)> call = [](const auto&, const auto&) {};

    void on_queued(const StageResult<>& run) noexcept override { call("queued", run); }
    void on_started(const StageResult<>& run) noexcept override { call("started", run); }
    void on_attempt_failed(const StageResult<>& run, const StageError&) noexcept override {
        call("attempt failed", run);
    }
    void on_finished(const StageResult<>& run, Outcome, Event) noexcept override { call("finished", run); }
    void on_dead_letter(const Query&, const StageResult<>& run, const StageError&) noexcept override {
        call("dead letter", run);
    }
};

// One observed model behind one stage, in virtual time.
struct ObservedStage {
    asio::io_context context{1};
    Recorder recorder{&context};
    Model model{"answer", 10ms};
    Stage<Endpoint, VirtualTimer> stage;

    explicit ObservedStage(std::ptrdiff_t limit, StageOptions options = {}, Observer* observer = nullptr)
        : stage(context.get_executor(), "s", limit, Endpoint{&model},
                observed(std::move(options), observer ? observer : &recorder)) {}

    static StageOptions observed(StageOptions options, Observer* observer) {
        options.observer = observer;
        return options;
    }

    ObservedRun start(std::string text) {
        return ObservedRun(context.get_executor(),
                           [this, text = std::move(text)] { return stage.run(text, std::string(text)); });
    }
    const Lines& run() {
        sluice::testing::run(context);
        return recorder.lines;
    }
};

// Pipelines whose observer is a Recorder.
template <class Sink = test::DeadLetters>
struct ObservedRig : test::Rig<Sink> {
    Recorder recorder{&this->context};

    auto observed(sluice::StageLimits limits = {20, 10, 5}, StageOptions stage = {}) {
        return this->pipeline(limits, test::every_stage(stage, &recorder));
    }
};

// Records retries among the events around them, and may do something at each.
class RetryRecorder final : public Observer {
public:
    Lines lines;
    std::function<void()> at_retry = [] {};

    void on_attempt_failed(const StageResult<>& run, const StageError&) noexcept override { add("failed", run); }
    void on_retry(const StageResult<>& run, const sluice::Verdict& verdict,
                  std::chrono::nanoseconds delay) noexcept override {
        add("retry", run);
        lines.back() += ": kind " + std::to_string(static_cast<int>(verdict.kind)) + ", after " +
                        std::to_string(verdict.retry_after.value_or(0ms) / 1ms) + " in " + std::to_string(delay / 1ms);
        at_retry();
    }
    void on_queued(const StageResult<>& run) noexcept override { add("queued", run); }
    void on_finished(const StageResult<>& run, Outcome outcome, Event last) noexcept override {
        add("finished", run);
        lines.back() += ' ' + name(outcome) + " after " + name(last);
    }

private:
    void add(const std::string& what, const StageResult<>& run) {
        lines.push_back(what + ' ' + std::to_string(run.attempts));
    }
};

// The lines that begin with `what`, after the time.
Lines only(const Lines& lines, const std::string& what) {
    Lines result;
    std::copy_if(lines.begin(), lines.end(), std::back_inserter(result),
                 [&](const std::string& line) { return line.compare(line.find(' ') + 1, what.size(), what) == 0; });
    return result;
}

struct FullSink {
    void put(const Query&, const StageResult<>&) { throw std::runtime_error("disk full"); }
};

struct SlowFullSink {
    asio::awaitable<void> put(const Query&, const StageResult<>&) {
        co_await test::sleep(40ms);
        throw std::runtime_error("disk full");
    }
};

}  // namespace

// One stage run

TEST_CASE("observer: a stage run that succeeds is queued, started and finished", "[observer]") {
    ObservedStage bench(1);
    ObservedRun a = bench.start("a");
    CHECK(bench.run() ==
          Lines{"0 queued a in s 0", "0 started a in s 1", "10 finished a in s succeeded after started"});
}

TEST_CASE("observer: a query that waits starts when it gets a slot", "[observer]") {
    ObservedStage bench(1);
    ObservedRun a = bench.start("a");
    ObservedRun b = bench.start("b");
    CHECK(bench.run() == Lines{"0 queued a in s 0", "0 started a in s 1", "0 queued b in s 0",
                               "10 finished a in s succeeded after started", "10 started b in s 1",
                               "20 finished b in s succeeded after started"});
}

TEST_CASE("observer: every failed attempt is reported, and each attempt queues for a slot", "[observer]") {
    ObservedStage bench(1, StageOptions{.retry = retries(5, 5ms)});
    bench.model.failures["a"] = 2;
    ObservedRun a = bench.start("a");
    CHECK(bench.run() == Lines{"0 queued a in s 0", "0 started a in s 1", "10 attempt failed a in s 1: cannot answer a",
                               "15 queued a in s 1", "15 started a in s 2",
                               "25 attempt failed a in s 2: cannot answer a", "30 queued a in s 2",
                               "30 started a in s 3", "40 finished a in s succeeded after started"});
}

TEST_CASE("observer: without a backoff the next attempt is queued at once", "[observer]") {
    ObservedStage bench(1, StageOptions{.retry = retries(1)});
    bench.model.failures["a"] = 1;
    ObservedRun a = bench.start("a");
    CHECK(bench.run() == Lines{"0 queued a in s 0", "0 started a in s 1", "10 attempt failed a in s 1: cannot answer a",
                               "10 queued a in s 1", "10 started a in s 2",
                               "20 finished a in s succeeded after started"});
}

TEST_CASE("observer: when the last attempt fails, on_attempt_failed is followed by on_finished at once", "[observer]") {
    ObservedStage bench(1, StageOptions{.retry = retries(1, 5ms)});
    bench.model.failures["a"] = 2;
    ObservedRun a = bench.start("a");
    CHECK(bench.run() == Lines{"0 queued a in s 0", "0 started a in s 1", "10 attempt failed a in s 1: cannot answer a",
                               "15 queued a in s 1", "15 started a in s 2",
                               "25 attempt failed a in s 2: cannot answer a",
                               "25 finished a in s failed after attempt failed: cannot answer a"});
}

TEST_CASE("observer: a retry is reported before its backoff, with what the error means and the delay", "[observer]") {
    RetryRecorder observer;
    ObservedStage bench(1, StageOptions{.retry = retries(1, 5ms)}, &observer);
    bench.model.failures["a"] = 2;
    bench.start("a");
    run_until(bench.context, 12ms);
    CHECK(observer.lines == Lines{"queued 0", "failed 1", "retry 1: kind 0, after 0 in 5"});
    bench.run();
    CHECK(observer.lines == Lines{"queued 0", "failed 1", "retry 1: kind 0, after 0 in 5", "queued 1", "failed 2",
                                  "finished 2 failed after attempt failed"});
}

TEST_CASE("observer: a retry has the verdict of the endpoint, even if the retry predicate overrules it", "[observer]") {
    asio::io_context context;
    RetryRecorder observer;
    const auto model = []() -> asio::awaitable<int> {
        throw sluice::ModelError("no", {.kind = sluice::Verdict::invalid, .retry_after = 7ms});
        co_return 1;
    };
    Stage stage(
        test::timed(context.get_executor()), "s", 1, model,
        StageOptions{.retry = retries(1, 0ms, [](const std::exception_ptr&) { return true; }), .observer = &observer});
    Task<StageResult<int>> task(context.get_executor(), [&] { return stage.run("a"); });
    sluice::testing::run(context);
    CHECK(observer.lines == Lines{"queued 0", "failed 1", "retry 1: kind 3, after 7 in 7", "queued 1", "failed 2",
                                  "finished 2 failed after attempt failed"});
}

TEST_CASE("observer: a stage run that is cancelled in on_retry, or in the backoff after it, makes no further attempt",
          "[observer][cancellation]") {
    const bool at_once = GENERATE(true, false);
    const auto backoff = GENERATE(0ms, 5ms);
    RetryRecorder observer;
    ObservedStage bench(1, StageOptions{.retry = retries(1, backoff)}, &observer);
    bench.model.failures["a"] = 1;
    ObservedRun a = bench.start("a");
    if (at_once) {
        observer.at_retry = [&] { a.cancel(); };
    } else {
        observer.at_retry = [&] { asio::post(bench.context, [&] { a.cancel(); }); };
    }
    bench.run();
    if (at_once || backoff != 0ms) {
        CHECK(a.aborted());
        CHECK(observer.lines.back() == "finished 1 cancelled after attempt failed");
        CHECK(bench.model.calls() == 1);
    }
    CHECK(a.done());
}

TEST_CASE("observer: an attempt that times out has failed", "[observer]") {
    ObservedStage bench(1, StageOptions{.timeout = 4ms, .retry = retries(0)});
    ObservedRun a = bench.start("a");
    CHECK(bench.run() == Lines{"0 queued a in s 0", "0 started a in s 1",
                               "4 attempt failed a in s 1: timed out after 4 ms",
                               "4 finished a in s failed after attempt failed: timed out after 4 ms"});
}

TEST_CASE(
    "observer: if the retry predicate throws, the attempt has the model's error and the stage run the predicate's",
    "[observer]") {
    ObservedStage bench(
        1,
        StageOptions{.retry = retries(1, 0ms, [](const std::exception_ptr&) -> bool { throw std::logic_error("?"); })});
    bench.model.failures["a"] = 1;
    ObservedRun a = bench.start("a");
    CHECK(bench.run() == Lines{"0 queued a in s 0", "0 started a in s 1", "10 attempt failed a in s 1: cannot answer a",
                               "10 finished a in s failed after attempt failed: the retry predicate threw "
                               "std::logic_error: ?: cannot answer a"});
}

TEST_CASE("observer: operation_aborted from a model that was not cancelled is a failure", "[observer]") {
    asio::io_context context;
    Recorder recorder(&context);
    const auto model = []() -> asio::awaitable<int> {
        throw boost::system::system_error(asio::error::operation_aborted);
        co_return 1;
    };
    Stage stage(test::timed(context.get_executor()), "s", 1, model,
                StageOptions{.retry = retries(0), .observer = &recorder});
    Task<StageResult<int>> task(context.get_executor(), [&] { return stage.run("a"); });
    sluice::testing::run(context);
    CHECK(recorder.lines == Lines{"0 queued a in s 0", "0 started a in s 1", "0 attempt failed a in s 1: aborted",
                                  "0 finished a in s failed after attempt failed: aborted"});
}

TEST_CASE("observer: all events of a stage run get the same object, with its times so far", "[observer]") {
    asio::io_context context;
    Caller observer;
    Model model("answer", 10ms);
    model.failures["b"] = 1;
    Stage stage(test::timed(context.get_executor()), "s", 1, Endpoint{&model},
                StageOptions{.retry = retries(1), .observer = &observer});
    std::map<std::string, std::set<const StageResult<>*>> objects;
    std::vector<std::pair<std::chrono::nanoseconds, std::chrono::nanoseconds>> times;
    observer.call = [&](const std::string&, const StageResult<>& run) {
        objects[run.query_id.str()].insert(&run);
        if (run.query_id == "b") {
            times.emplace_back(run.queue_time, run.latency);
        }
    };
    std::deque<ObservedRun> runs;
    for (const std::string text : {"a", "b"}) {
        runs.emplace_back(context.get_executor(), [&stage, text] { return stage.run(text, std::string(text)); });
    }
    sluice::testing::run(context);
    CHECK(objects["a"].size() == 1);
    CHECK(objects["b"].size() == 1);
    CHECK(objects["a"] != objects["b"]);
    CHECK(times == decltype(times){{0ms, 0ms}, {10ms, 0ms}, {10ms, 10ms}, {10ms, 10ms}, {10ms, 10ms}, {10ms, 20ms}});
}

TEST_CASE("observer: when an attempt has failed or a stage run has finished, its slot has been returned",
          "[observer]") {
    Caller observer;
    ObservedStage bench(1, StageOptions{.retry = retries(1)}, &observer);
    bench.model.failures["a"] = 1;
    std::vector<std::pair<std::string, std::ptrdiff_t>> active;
    observer.call = [&](const std::string& event, const StageResult<>&) {
        active.emplace_back(event, bench.stage.endpoint().active());
    };
    ObservedRun a = bench.start("a");
    bench.run();
    CHECK(active ==
          decltype(active){
              {"queued", 0}, {"started", 1}, {"attempt failed", 0}, {"queued", 0}, {"started", 1}, {"finished", 0}});
}

TEST_CASE("observer: a function that is not overridden does nothing", "[observer]") {
    Observer observer;
    ObservedStage bench(1, StageOptions{.retry = retries(1)}, &observer);
    bench.model.failures["a"] = 1;
    ObservedRun a = bench.start("a");
    bench.run();
    CHECK(a.value().success);
    CHECK(a.value().attempts == 2);
}

TEST_CASE("observer: its functions are noexcept, and so are their overrides", "[observer]") {
    const StageResult<> run;
    const Query query;
    STATIC_CHECK(noexcept(std::declval<Observer&>().on_queued(run)));
    STATIC_CHECK(noexcept(std::declval<Observer&>().on_started(run)));
    STATIC_CHECK(noexcept(std::declval<Observer&>().on_attempt_failed(run, {})));
    STATIC_CHECK(noexcept(std::declval<Observer&>().on_retry(run, sluice::Verdict{}, {})));
    STATIC_CHECK(noexcept(std::declval<Observer&>().on_finished(run, {}, {})));
    STATIC_CHECK(noexcept(std::declval<Observer&>().on_skipped(run.query_id, run.stage, {})));
    STATIC_CHECK(noexcept(std::declval<Observer&>().on_dead_letter(query, run, {})));
}

// Cancellation, closing, destruction

TEST_CASE("observer: a stage run that is cancelled while it waits finishes after queued", "[observer][cancellation]") {
    ObservedStage bench(1);
    ObservedRun a = bench.start("a");
    ObservedRun b = bench.start("b");
    run_until(bench.context, 3ms);
    b.cancel();
    CHECK(bench.run() == Lines{"0 queued a in s 0", "0 started a in s 1", "0 queued b in s 0",
                               "3 finished b in s cancelled after queued: aborted",
                               "10 finished a in s succeeded after started"});
    CHECK(b.aborted());
}

TEST_CASE("observer: a stage run that is cancelled between being granted a slot and resuming has not started",
          "[observer][cancellation]") {
    ObservedStage bench(1);
    ObservedRun a = bench.start("a");
    ObservedRun b = bench.start("b");
    while (bench.stage.endpoint().waiting() == 1 || !a.done()) {
        REQUIRE(test::step(bench.context));
    }
    b.cancel();
    CHECK(only(bench.run(), "finished") ==
          Lines{"10 finished a in s succeeded after started", "10 finished b in s cancelled after queued: aborted"});
    CHECK(only(bench.recorder.lines, "started").size() == 1);
}

TEST_CASE("observer: a stage run that is cancelled during an attempt finishes after started, when the attempt ends",
          "[observer][cancellation]") {
    ObservedStage bench(1, StageOptions{.retry = retries(3)});
    bench.model.clean_up = 4ms;
    ObservedRun a = bench.start("a");
    run_until(bench.context, 3ms);
    a.cancel();
    CHECK(bench.run() ==
          Lines{"0 queued a in s 0", "0 started a in s 1", "7 finished a in s cancelled after started: aborted"});
}

TEST_CASE("observer: an attempt that was cancelled has not failed, whatever it threw", "[observer][cancellation]") {
    asio::io_context context;
    Recorder recorder(&context);
    const auto model = []() -> asio::awaitable<int> {
        if (co_await test::cancelled_within(10ms)) {
            throw std::runtime_error("disturbed");
        }
        co_return 1;
    };
    Stage stage(test::timed(context.get_executor()), "s", 1, model,
                StageOptions{.retry = retries(3), .observer = &recorder});
    Task<StageResult<int>> task(context.get_executor(), [&] { return stage.run("a"); });
    run_until(context, 3ms);
    task.cancel();
    sluice::testing::run(context);
    CHECK(recorder.lines ==
          Lines{"0 queued a in s 0", "0 started a in s 1", "3 finished a in s cancelled after started: aborted"});
}

TEST_CASE("observer: an attempt that succeeds despite its cancellation has succeeded", "[observer][cancellation]") {
    asio::io_context context;
    Recorder recorder(&context);
    const auto model = []() -> asio::awaitable<int> {
        co_await test::cancelled_within(10ms);
        co_return 1;
    };
    Stage stage(test::timed(context.get_executor()), "s", 1, model,
                StageOptions{.retry = retries(3), .observer = &recorder});
    Task<StageResult<int>> task(context.get_executor(), [&] { return stage.run("a"); });
    run_until(context, 3ms);
    task.cancel();
    sluice::testing::run(context);
    CHECK(recorder.lines ==
          Lines{"0 queued a in s 0", "0 started a in s 1", "3 finished a in s succeeded after started"});
}

TEST_CASE("observer: a stage run that is cancelled in its backoff finishes after the failed attempt",
          "[observer][cancellation]") {
    ObservedStage bench(1, StageOptions{.retry = retries(3, 1h)});
    bench.model.failures["a"] = 1;
    ObservedRun a = bench.start("a");
    run_until(bench.context, 20ms);
    a.cancel();
    CHECK(bench.run() == Lines{"0 queued a in s 0", "0 started a in s 1", "10 attempt failed a in s 1: cannot answer a",
                               "20 finished a in s cancelled after attempt failed: aborted"});
}

TEST_CASE("observer: when the endpoint is closed, stage runs that wait fail after queued", "[observer]") {
    ObservedStage bench(1, StageOptions{.retry = retries(1)});
    bench.model.failures["a"] = 1;
    ObservedRun a = bench.start("a");
    ObservedRun b = bench.start("b");
    run_until(bench.context, 3ms);
    bench.stage.endpoint().close();
    CHECK(bench.run() == Lines{"0 queued a in s 0", "0 started a in s 1", "0 queued b in s 0",
                               "3 finished b in s failed after queued: aborted",
                               "10 attempt failed a in s 1: cannot answer a", "10 queued a in s 1",
                               "10 finished a in s failed after queued: aborted"});
    CHECK(a.value().attempts == 1);
}

TEST_CASE("observer: a stage run that was cancelled before it began has no events", "[observer][cancellation]") {
    ObservedStage bench(1);
    Task<> task(bench.context.get_executor(), [&]() -> asio::awaitable<void> {
        co_await asio::this_coro::throw_if_cancelled(false);
        co_await test::sleep(5ms);
        co_await asio::this_coro::throw_if_cancelled(true);
        (void)co_await bench.stage.run("a", std::string("a"));
    });
    run_until(bench.context, 3ms);
    task.cancel();
    CHECK(bench.run().empty());
    CHECK(task.done());
}

TEST_CASE("observer: it may cancel the stage run whose event it handles", "[observer][cancellation]") {
    const std::string at = GENERATE("queued", "started", "attempt failed", "finished");
    const auto backoff = GENERATE(0ms, 5ms);
    asio::io_context context;
    Caller caller;
    Lines events;
    std::function<void()> cancel;
    caller.call = [&](const std::string& event, const StageResult<>& run) {
        events.push_back(event);
        if (event == at) {
            cancel();
        }
        if (event == "finished") {
            CHECK(is_aborted(run.error) == (at != "finished"));
        }
    };
    Model model("answer", 1ms);
    model.failures["a"] = 1;
    Stage stage(test::timed(context.get_executor()), "s", 1, Endpoint{&model},
                StageOptions{.retry = retries(1, backoff), .observer = &caller});
    ObservedRun run(context.get_executor(), [&]() -> asio::awaitable<StageResult<std::string>> {
        co_await test::yield();
        co_return co_await stage.run("a", std::string("a"));
    });
    cancel = [&] { run.cancel(); };
    sluice::testing::run(context);
    const Lines all{"queued", "started", "attempt failed", "queued", "started", "finished"};
    const Lines begun{"queued", "started", "finished"};
    CHECK(events == (at == "finished"         ? all
                     : at == "attempt failed" ? Lines{"queued", "started", "attempt failed", "finished"}
                                              : begun));
    CHECK(run.aborted() == (at != "finished"));
    CHECK(run.succeeded() == (at == "finished"));
    CHECK(stage.endpoint().active() == 0);
}

TEST_CASE("observer: it may close the endpoint, or change the limit, of the stage whose event it handles",
          "[observer]") {
    const bool close = GENERATE(false, true);
    Caller observer;
    ObservedStage bench(1, {}, &observer);
    observer.call = [&](const std::string& event, const StageResult<>&) {
        if (event == "started") {
            close ? bench.stage.endpoint().close() : bench.stage.endpoint().set_limit(3);
        }
    };
    ObservedRun a = bench.start("a");
    ObservedRun b = bench.start("b");
    ObservedRun c = bench.start("c");
    bench.run();
    CHECK(a.value().success);
    CHECK(b.value().success != close);
    CHECK(c.value().success != close);
    CHECK(test::now(bench.context) == 10ms);
}

TEST_CASE("observer: destroying the context delivers no events, at any step", "[observer][shutdown]") {
    test::for_every_step([](test::Steps& steps) {
        Counter counter;
        Model model("answer", 10ms);
        model.failures = {{"a", 1}, {"b", 5}};
        auto context = std::make_unique<asio::io_context>(1);
        Stage stage(test::timed(context->get_executor()), "s", 1, Endpoint{&model},
                    StageOptions{.retry = retries(2, 5ms), .observer = &counter});
        std::deque<ObservedRun> runs;
        for (const std::string text : {"a", "b", "c", "d"}) {
            runs.emplace_back(context->get_executor(), [&stage, text] { return stage.run(text, std::string(text)); });
        }
        steps.take(*context);
        const auto finished = counter.finished;
        const auto begun = counter.begun;
        const auto waiting = counter.waiting;
        context.reset();
        CHECK(counter.finished == finished);
        CHECK(counter.begun == begun);
        CHECK(counter.waiting == waiting);
        if (!steps.enough()) {
            CHECK(counter.finished == std::map<std::string, int>{{"succeeded", 3}, {"failed", 1}});
        }
    });
}

// Pipelines

TEST_CASE("observer: a query of a pipeline is one stage run in each stage", "[observer]") {
    ObservedRig<> rig;
    auto pipeline = rig.observed();
    Task<test::Rig<>::Result> task(rig.context.get_executor(), [&] { return pipeline.process_one(Query("q", "t")); });
    rig.run();
    CHECK(rig.recorder.lines == Lines{"0 queued q in classify 0", "0 started q in classify 1",
                                      "50 finished q in classify succeeded after started", "50 queued q in extract 0",
                                      "50 started q in extract 1", "200 finished q in extract succeeded after started",
                                      "200 queued q in generate 0", "200 started q in generate 1",
                                      "700 finished q in generate succeeded after started"});
}

TEST_CASE("observer: the time that it takes before a query is queued counts for no stage", "[observer]") {
    test::Rig<> rig;
    Caller slow;
    slow.call = [&](const std::string& event, const StageResult<>&) {
        if (event == "queued") {
            sluice::testing::VirtualTime::of(rig.context).advance_by(7ms);
        }
    };
    auto pipeline = rig.pipeline({20, 10, 5}, {.observer = &slow});
    Task<test::Rig<>::Result> task(rig.context.get_executor(), [&] { return pipeline.process_one(Query("q", "t")); });
    CHECK(rig.run() == 721ms);
    std::vector<std::chrono::nanoseconds> times;
    for (const auto& stage_result : task.value().stage_results) {
        times.push_back(stage_result.queue_time);
        times.push_back(stage_result.latency);
    }
    CHECK(times == std::vector<std::chrono::nanoseconds>{0ms, 50ms, 0ms, 150ms, 0ms, 500ms});
}

TEST_CASE("observer: a batch queues its queries in order and each stage starts them in turn", "[observer]") {
    ObservedRig<> rig;
    auto pipeline = rig.observed({2, 1, 1});
    Task<test::Rig<>::Results> task(rig.context.get_executor(),
                                    [&] { return pipeline.process_batch(test::make_queries(3)); });
    rig.run();
    CHECK(only(rig.recorder.lines, "queued") ==
          Lines{"0 queued q0 in classify 0", "0 queued q1 in classify 0", "0 queued q2 in classify 0",
                "50 queued q0 in extract 0", "50 queued q1 in extract 0", "100 queued q2 in extract 0",
                "200 queued q0 in generate 0", "350 queued q1 in generate 0", "500 queued q2 in generate 0"});
    CHECK(only(rig.recorder.lines, "started") ==
          Lines{"0 started q0 in classify 1", "0 started q1 in classify 1", "50 started q0 in extract 1",
                "50 started q2 in classify 1", "200 started q0 in generate 1", "200 started q1 in extract 1",
                "350 started q2 in extract 1", "700 started q1 in generate 1", "1200 started q2 in generate 1"});
    CHECK(only(rig.recorder.lines, "finished").size() == 9);
}

TEST_CASE("observer: a stream has the same events as a batch", "[observer]") {
    ObservedRig<> batch;
    auto batch_pipeline = batch.observed({2, 1, 1}, StageOptions{.retry = retries(1, 5ms)});
    batch.extract.failures = {{"t1", 1}, {"t2", 2}};
    Task<test::Rig<>::Results> task(batch.context.get_executor(),
                                    [&] { return batch_pipeline.process_batch(test::make_queries(5)); });
    batch.run();

    ObservedRig<> stream;
    auto stream_pipeline = stream.observed({2, 1, 1}, StageOptions{.retry = retries(1, 5ms)});
    stream.extract.failures = {{"t1", 1}, {"t2", 2}};
    Task<> consumer(stream.context.get_executor(), [&]() -> asio::awaitable<void> {
        auto results = stream_pipeline.process_stream(test::make_queries(5));
        while (co_await results.next()) {
        }
    });
    stream.run();
    CHECK(only(batch.recorder.lines, "dead letter").size() == 1);
    std::ranges::sort(batch.recorder.lines);  // the order of simultaneous events may differ
    std::ranges::sort(stream.recorder.lines);
    CHECK(stream.recorder.lines == batch.recorder.lines);
}

TEST_CASE("observer: leaving a stream finishes every stage run that has begun", "[observer][cancellation]") {
    Counter counter;
    test::Rig<> rig;
    auto pipeline = rig.pipeline({2, 2, 1}, test::every_stage(StageOptions{}, &counter));
    Task<> consumer(rig.context.get_executor(), [&]() -> asio::awaitable<void> {
        auto results = pipeline.process_stream(test::make_queries(50));
        (void)co_await results.next();
        co_await results.close();
    });
    rig.run();
    CHECK(consumer.succeeded());
    CHECK(counter.finished["cancelled"] > 0);
    CHECK(counter.open() == 0);
    CHECK(counter.waiting == 0);
    CHECK(counter.running == 0);
    CHECK(counter.dead.empty());
}

TEST_CASE("observer: on_dead_letter comes last, when the sink has the query", "[observer]") {
    ObservedRig<> rig;
    auto pipeline = rig.observed();
    rig.classify.failures["t"] = 1;
    Task<test::Rig<>::Result> task(rig.context.get_executor(), [&] { return pipeline.process_one(Query("q", "t")); });
    rig.run();
    CHECK(rig.dead_letters.letters.size() == 1);
    CHECK(rig.recorder.lines == Lines{"0 queued q in classify 0", "0 started q in classify 1",
                                      "50 attempt failed q in classify 1: cannot classify t",
                                      "50 finished q in classify failed after attempt failed: cannot classify t",
                                      "50 dead letter q in classify cannot classify t"});
}

TEST_CASE("observer: on_dead_letter is called after the sink's put has returned", "[observer]") {
    test::Rig<> rig;
    rig.classify.failures["t"] = 1;
    std::vector<std::size_t> letters;
    Caller caller;
    caller.call = [&](const std::string& event, const StageResult<>&) {
        if (event == "finished" || event == "dead letter") {
            letters.push_back(rig.dead_letters.letters.size());
        }
    };
    auto pipeline = rig.pipeline({20, 10, 5}, test::every_stage(StageOptions{}, &caller));
    Task<test::Rig<>::Result> task(rig.context.get_executor(), [&] { return pipeline.process_one(Query("q", "t")); });
    rig.run();
    CHECK(letters == std::vector<std::size_t>{0, 1});
}

TEST_CASE("observer: with an awaitable sink, on_dead_letter is called when the awaitable has ended", "[observer]") {
    ObservedRig<test::SlowDeadLetters> rig;
    auto pipeline = rig.observed();
    rig.extract.failures["t"] = 1;
    Task<test::Rig<test::SlowDeadLetters>::Result> task(rig.context.get_executor(),
                                                        [&] { return pipeline.process_one(Query("q", "t")); });
    run_until(rig.context, 210ms);
    CHECK(only(rig.recorder.lines, "finished").back() ==
          "200 finished q in extract failed after attempt failed: cannot extract t");
    CHECK(only(rig.recorder.lines, "dead letter").empty());
    rig.run();
    CHECK(rig.recorder.lines.back() == "240 dead letter q in extract cannot extract t");
}

TEST_CASE("observer: a dead letter that is being put when its query is cancelled is still reported",
          "[observer][cancellation]") {
    ObservedRig<test::SlowDeadLetters> rig;
    auto pipeline = rig.observed();
    rig.extract.failures["t"] = 1;
    Task<test::Rig<test::SlowDeadLetters>::Result> task(rig.context.get_executor(),
                                                        [&] { return pipeline.process_one(Query("q", "t")); });
    run_until(rig.context, 210ms);
    task.cancel();
    rig.run();
    CHECK(rig.dead_letters.letters.size() == 1);
    CHECK(rig.recorder.lines.back() == "240 dead letter q in extract cannot extract t");
}

TEST_CASE("observer: if the sink throws, on_dead_letter gets the exception", "[observer]") {
    ObservedRig<FullSink> plain;
    plain.classify.failures["t"] = 1;
    auto plain_pipeline = plain.observed();
    Task<test::Rig<FullSink>::Result> a(plain.context.get_executor(),
                                        [&] { return plain_pipeline.process_one(Query("q", "t")); });
    plain.run();
    CHECK(plain.recorder.lines.back() == "50 dead letter q in classify cannot classify t, but disk full");

    ObservedRig<SlowFullSink> slow;
    slow.classify.failures["t"] = 1;
    auto slow_pipeline = slow.observed();
    Task<test::Rig<SlowFullSink>::Result> b(slow.context.get_executor(),
                                            [&] { return slow_pipeline.process_one(Query("q", "t")); });
    slow.run();
    CHECK(slow.recorder.lines.back() == "90 dead letter q in classify cannot classify t, but disk full");
}

TEST_CASE("observer: a cancelled query is no dead letter", "[observer][cancellation]") {
    const auto at = GENERATE(10ms, 60ms);  // queries are in the first stage; in the first two
    ObservedRig<> rig;
    auto pipeline = rig.observed({2, 1, 1});
    Task<test::Rig<>::Results> task(rig.context.get_executor(),
                                    [&] { return pipeline.process_batch(test::make_queries(3)); });
    run_until(rig.context, at);
    task.cancel();
    rig.run();
    CHECK(task.aborted());
    CHECK(only(rig.recorder.lines, "dead letter").empty());
    CHECK(only(rig.recorder.lines, "finished").size() == (at == 10ms ? 3 : 5));
}

TEST_CASE("observer: a stage with its own observer reports to that one alone, and reports no dead letters",
          "[observer]") {
    test::Rig<> rig;
    Recorder pipeline_observer(&rig.context);
    Recorder stage_observer(&rig.context);
    InferencePipelineOptions options = test::every_stage(StageOptions{}, &pipeline_observer);
    options.extract.observer = &stage_observer;
    auto pipeline = rig.pipeline({20, 10, 5}, options);
    rig.extract.failures["t1"] = 1;
    Task<test::Rig<>::Results> task(rig.context.get_executor(),
                                    [&] { return pipeline.process_batch(test::make_queries(2)); });
    rig.run();
    const auto mentions = [](const Lines& lines, const std::string& what) {
        return std::count_if(lines.begin(), lines.end(),
                             [&](const auto& line) { return line.find(what) != std::string::npos; });
    };
    CHECK(stage_observer.lines.size() == 3 + 4);
    CHECK(mentions(stage_observer.lines, " in extract ") == 7);
    CHECK(mentions(pipeline_observer.lines, " in classify ") == 6);
    CHECK(mentions(pipeline_observer.lines, " in extract ") == 1);
    CHECK(mentions(pipeline_observer.lines, " in generate ") == 3);
    CHECK(pipeline_observer.lines[8] == "200 dead letter q1 in extract cannot extract t1");
}

TEST_CASE("observer: in random runs with cancellations, every gauge returns to zero", "[observer][stress]") {
    const unsigned seed = GENERATE(1U, 2U, 3U, 4U, 5U, 6U, 7U, 8U);
    std::mt19937 random(seed);
    const auto below = [&random](unsigned n) { return random() % n; };
    Counter counters[3];
    Counter whole;
    test::Rig<> rig;
    for (int stage = 0; stage != 3; ++stage) {
        rig.model(stage).latency_of = [&](const std::string&) { return std::chrono::milliseconds(below(20)); };
        for (std::size_t i = 0; i != 200; ++i) {
            if (below(3) == 0) {
                rig.model(stage).failures["t" + std::to_string(i)] = static_cast<int>(1 + below(4));
            }
        }
    }
    InferencePipelineOptions options =
        test::every_stage(StageOptions{.timeout = 15ms, .retry = retries(2, 3ms)}, &whole);
    options.classify.observer = &counters[0];
    options.extract.observer = &counters[1];
    options.generate.observer = &counters[2];
    auto pipeline = rig.pipeline({4, 3, 2}, options);

    std::deque<Task<test::Rig<>::Result>> tasks;
    for (std::size_t i = 0; i != 200; ++i) {
        tasks.emplace_back(rig.context.get_executor(), [&, i] { return pipeline.process_one(test::make_query(i)); });
    }
    test::steps(rig.context, 200);  // each has begun
    while (test::steps(rig.context, static_cast<int>(1 + below(40)))) {
        if (auto& victim = tasks[below(200)]; !victim.done()) {
            victim.cancel();
        }
        rig.context.restart();
        rig.context.poll();  // no coroutine is between being granted a slot, or cancelled, and resuming
        const sluice::Endpoint<VirtualTimer> endpoints[] = {
            pipeline.classify().endpoint(), pipeline.extract().endpoint(), pipeline.generate().endpoint()};
        for (int stage = 0; stage != 3; ++stage) {
            REQUIRE(counters[stage].running == endpoints[stage].active());
            REQUIRE(counters[stage].waiting == static_cast<std::ptrdiff_t>(endpoints[stage].waiting()));
        }
    }
    std::size_t cancelled = 0;
    std::map<std::string, int> dead;
    for (auto& task : tasks) {
        REQUIRE(task.done());
        cancelled += task.aborted();
        if (task.succeeded() && !task.value().completed) {
            ++dead[task.value().query.id.str()];
        }
    }
    CHECK(cancelled > 0);
    CHECK_FALSE(dead.empty());
    CHECK(whole.dead == dead);
    int finished = 0;
    for (int stage = 0; stage != 3; ++stage) {
        CHECK(counters[stage].open() == 0);
        CHECK(counters[stage].waiting == 0);
        CHECK(counters[stage].running == 0);
        CHECK(counters[stage].peak == 4 - stage);
        finished += counters[stage].finished["cancelled"];
    }
    CHECK(finished > 0);
    CHECK(finished <= static_cast<int>(cancelled));  // some were cancelled between two stages
}

namespace {

// Emits a cancellation when a stage run has failed.
struct CancelsOnFailure : sluice::Observer {
    boost::asio::cancellation_signal signal;

    void on_finished(const sluice::StageResult<>&, Outcome outcome, Event) noexcept override {
        if (outcome == Outcome::failed) {
            signal.emit(boost::asio::cancellation_type::terminal);
        }
    }
};

template <class Sink>
void fail_and_cancel(Sink& sink) {
    namespace asio = boost::asio;
    asio::io_context context;
    CancelsOnFailure observer;
    sluice::InferencePipelineOptions options;
    options.observer = &observer;
    const auto fails = [](const std::string&) -> asio::awaitable<int> {
        co_await asio::post(co_await asio::this_coro::executor, asio::deferred);
        throw std::runtime_error("no");
        co_return 0;
    };
    const auto generate = [](int, int, const std::string&) -> asio::awaitable<int> { co_return 0; };
    sluice::InferencePipeline pipeline(test::timed(context.get_executor()), fails, fails, generate,
                                       sluice::StageLimits{1, 1, 1}, sink, options);
    bool ended = false;
    asio::co_spawn(
        context, pipeline.process_one(sluice::Query("1", "text")),
        asio::bind_cancellation_slot(observer.signal.slot(), [&](std::exception_ptr error, const auto& result) {
            ended = true;
            CHECK_FALSE(error);
            CHECK_FALSE(result.completed);
            CHECK_FALSE(result.dead_letter_error);
        }));
    context.run();
    CHECK(ended);
}

}  // namespace

TEST_CASE("observer: cancelling a query that has failed comes too late, and it is a dead letter", "[observer]") {
    SECTION("plain sink") {
        struct {
            int letters = 0;
            void put(const sluice::Query&, const sluice::StageResult<>&) { ++letters; }
        } sink;
        fail_and_cancel(sink);
        CHECK(sink.letters == 1);
    }
    SECTION("awaitable sink") {
        struct {
            int letters = 0;
            boost::asio::awaitable<void> put(const sluice::Query&, const sluice::StageResult<>&) {
                co_await boost::asio::post(co_await boost::asio::this_coro::executor, boost::asio::deferred);
                ++letters;
            }
        } sink;
        fail_and_cancel(sink);
        CHECK(sink.letters == 1);
    }
}
