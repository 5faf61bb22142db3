// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/fallback.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/testing/run.hpp>

#include "models.hpp"
#include "probes.hpp"
#include "task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace test {

// No templates: see RetryDecision.
inline sluice::ModelError relay_error(sluice::Verdict::Kind kind,
                                      std::optional<std::chrono::nanoseconds> retry_after = std::nullopt) {
    return sluice::ModelError("no", {.kind = kind, .retry_after = retry_after}, 500);
}
inline sluice::ModelError relay_too_long() {
    return sluice::ModelError("too long", {.kind = sluice::Verdict::invalid}, 400, "context_length");
}
inline sluice::ModelError relay_invalid() {
    return sluice::ModelError("refused", {.kind = sluice::Verdict::invalid}, 400);
}

inline bool relay_is_too_long(const std::exception_ptr& error) {
    try {
        std::rethrow_exception(error);
    } catch (const sluice::ModelError& model_error) {
        return model_error.code() == "context_length";
    } catch (...) {
        return false;
    }
}

struct RelayRecord {
    std::optional<std::string> text;
    std::optional<std::string> other;
};
using RelayRun = sluice::Run<RelayRecord>;
using RelayResult = sluice::RecordResult<RelayRecord>;

// What a call does, by its number; after how long, if it returns.
using RelayScript = std::function<void(std::size_t call)>;

struct RelayMember {
    std::string name;
    RelayScript script = [](std::size_t) {};
    std::chrono::nanoseconds takes = std::chrono::seconds(1);
    std::size_t calls = 0;
    int running = 0;
};

struct RelayModel {
    RelayMember* member;

    asio::awaitable<std::string> operator()(const std::string& text) const { return call(*member, text); }

    static asio::awaitable<std::string> call(RelayMember& member, std::string text) {
        const Live running(member.running);
        const std::size_t number = member.calls++;
        co_await sleep(member.takes);
        member.script(number);
        co_return member.name + ' ' + text;
    }
};

inline RelayScript relay_fails_with(const std::exception_ptr& error) {
    return [error](std::size_t) { std::rethrow_exception(error); };
}
inline RelayScript relay_fails(std::string message = "down") {
    return relay_fails_with(std::make_exception_ptr(std::runtime_error(std::move(message))));
}
inline RelayScript relay_fails(const sluice::ModelError& error) {
    return relay_fails_with(std::make_exception_ptr(error));
}

using RelayStage = sluice::Stage<RelayModel, VirtualTimer>;
using RelayFallback =
    decltype(sluice::Fallback("", std::declval<RelayStage>(), std::declval<RelayStage>(), std::declval<RelayStage>()));

struct RelaySink {
    std::vector<std::string> letters;
    std::vector<std::string> saved;

    void put(const sluice::Query&, const sluice::StageResult<>& why, const RelayRecord&) {
        letters.push_back(why.stage.str() + ": " + why.error.message());
    }
    void save(const sluice::Query&, const RelayRecord& record) { saved.push_back(record.text.value_or("nothing")); }
};

// The events, each as the first letters of its name and the stage.
struct RelayObserver : sluice::Observer {
    std::vector<std::string> events;

    void on_queued(const sluice::StageResult<>& run) noexcept override { add("queued", run); }
    void on_started(const sluice::StageResult<>& run) noexcept override { add("started", run); }
    void on_attempt_failed(const sluice::StageResult<>& run, const sluice::StageError&) noexcept override {
        add("failed", run);
    }
    void on_retry(const sluice::StageResult<>& run, const sluice::Verdict&,
                  std::chrono::nanoseconds) noexcept override {
        add("retry", run);
    }
    void on_finished(const sluice::StageResult<>& run, Outcome outcome, Event last) noexcept override {
        add(outcome == Outcome::succeeded ? "succeeded" : outcome == Outcome::failed ? "ended" : "cancelled", run);
        if (outcome == Outcome::failed && last == Event::started) {
            events.back() += " after a value";
        }
        if (on_end) {
            on_end();
        }
    }
    void on_skipped(const sluice::SharedString& query_id, const sluice::SharedString& stage,
                    sluice::Reason reason) noexcept override {
        events.push_back(stage.str() + " skipped for " + query_id.str() + ": " + std::string(to_string(reason)));
        if (on_skip) {
            on_skip();
        }
    }
    void on_dead_letter(const sluice::Query&, const sluice::StageResult<>& run,
                        const sluice::StageError&) noexcept override {
        add("dead", run);
    }

    void add(const char* what, const sluice::StageResult<>& run) { events.push_back(run.stage.str() + ' ' + what); }

    std::function<void()> on_end;
    std::function<void()> on_skip;
};

// The options of three members.
struct RelaySetup {
    std::array<sluice::EndpointOptions, 3> endpoints{sluice::EndpointOptions{.limit = 9}, {.limit = 9}, {.limit = 9}};
    std::array<sluice::StageOptions, 3> stages{};
    std::ptrdiff_t window = 99;
    sluice::Observer* observer = nullptr;
};

// Three stages behind each other, a pipeline with one step, and queries through it. The context is destroyed first.
class Relay {
public:
    RelayMember gpt{"gpt"};
    RelayMember claude{"claude"};
    RelayMember local{"local"};
    RelaySink sink;
    asio::io_context context{1};
    std::vector<sluice::Endpoint<VirtualTimer>> endpoints;
    std::vector<RelayStage> stages;
    std::optional<RelayFallback> fallback;
    std::function<asio::awaitable<void>(Relay&, RelayRun&)> route = &Relay::one_step;
    std::deque<Task<RelayResult>> tasks;
    std::vector<std::chrono::nanoseconds> ended;
    std::optional<sluice::Pipeline<std::function<asio::awaitable<void>(RelayRun&)>, RelaySink, VirtualTimer>> pipeline;

    explicit Relay(const RelaySetup& setup = {}) {
        std::size_t i = 0;
        for (RelayMember* const member : {&gpt, &claude, &local}) {
            endpoints.emplace_back(timed(context.get_executor()), member->name, setup.endpoints.at(i));
            stages.emplace_back(endpoints.back(), member->name, RelayModel{member}, setup.stages.at(i));
            ++i;
        }
        fallback.emplace("answer", stages.at(0), stages.at(1), stages.at(2));
        pipeline.emplace(
            timed(context.get_executor()), [this](RelayRun& run) { return route(*this, run); }, sink, setup.window,
            sluice::PipelineOptions{.observer = setup.observer});
    }

    std::size_t start(std::optional<std::chrono::nanoseconds> timeout = std::nullopt) {
        const std::size_t index = tasks.size();
        tasks.emplace_back(context.get_executor(), [this, timeout, index] { return go(*this, timeout, index); });
        ended.emplace_back();
        return index;
    }

    // Runs all, and expects no slot to be held, and nobody to wait.
    void run() {
        sluice::testing::run(context);
        CHECK(is_idle());
    }
    void run_until(std::chrono::nanoseconds time) { test::run_until(context, time); }

    // Runs one query, and returns what has become of it.
    std::string run_one(std::optional<std::chrono::nanoseconds> timeout = std::nullopt) {
        const std::size_t index = start(timeout);
        run();
        return story(index);
    }

    bool is_idle() const {
        bool idle = gpt.running + claude.running + local.running == 0;
        for (const auto& endpoint : endpoints) {
            idle = idle && endpoint.active() == 0 && endpoint.waiting() == 0;
        }
        return idle;
    }

    const RelayResult& result(std::size_t index) { return tasks.at(index).value(); }

    // Each stage run, with its reason, and the value or the name of the dead letter.
    std::string story(std::size_t index) {
        const RelayResult& it = result(index);
        std::string text;
        for (const auto& stage_run : it.stage_results) {
            CHECK(stage_run.success == (stage_run.reason == sluice::Reason::none && !stage_run.error));
            text +=
                stage_run.stage.str() + (stage_run.success ? "" : "(" + std::string(to_string(stage_run.reason)) + ")");
            text += ", ";
        }
        if (it.failure()) {
            CHECK_FALSE(it.completed);
            CHECK_FALSE(it.record.text.has_value());
            return text + "dead: " + it.failure()->stage.str();
        }
        return text + (it.unfinished ? "unfinished" : it.record.text.value_or("nothing"));
    }
    std::string error_of(std::size_t index) {
        return result(index).failure() ? result(index).failure()->error.message() : "";
    }

    static asio::awaitable<void> one_step(Relay& relay, RelayRun& run) {
        co_await run.step(&RelayRecord::text, *relay.fallback, run.query().text);
    }

private:
    static asio::awaitable<RelayResult> go(Relay& relay, std::optional<std::chrono::nanoseconds> timeout,
                                           std::size_t index) {
        sluice::Query query("id", "text");
        query.timeout = timeout;
        RelayResult result = co_await relay.pipeline->process_one(query);
        relay.ended.at(index) = now(relay.context);
        co_return std::move(result);
    }
};

// A breaker that the first failure opens, for 10 s.
inline constexpr sluice::BreakerOptions relay_breaker{
    .minimum_calls = 1, .open_time = std::chrono::seconds(10), .jitter = 0, .probes = 1};

inline RelaySetup relay_with_breakers() {
    RelaySetup setup;
    setup.endpoints = {sluice::EndpointOptions{.limit = 1, .breaker = relay_breaker},
                       {.limit = 1, .breaker = relay_breaker},
                       {.limit = 1, .breaker = relay_breaker}};
    return setup;
}

}  // namespace test
