// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "choices.hpp"

#include <sluice/observer.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/retry_budget.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/sync/timed_by.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace properties {

/// Queries run through two stages that share an endpoint, with failures, retries, timeouts and cancellations, while its
/// limit changes, it is closed, and the handles are dropped. Half of the endpoints have rates and a breaker, which
/// change too; half have a retry budget; some have bounds of their line, or serve first who has completed more; and
/// each may be throttled and paused. Half of the queries go through a pipeline, with a timeout.
class EndpointRun final : sluice::Observer, Expectations {
public:
    explicit EndpointRun(Choices& c) : choices_(c) {
        limit_ = ceiling_ = static_cast<std::ptrdiff_t>(1 + choices_.below(3));
        const auto executor = sluice::timed_by<VirtualTimer>(context_.get_executor());
        sluice::EndpointOptions endpoint_options{.limit = limit_};
        has_policies_ = choices_.one_in(2);
        if (has_policies_) {
            endpoint_options.requests = rate();
            endpoint_options.input_tokens = rate();
            endpoint_options.breaker = sluice::BreakerOptions{
                .minimum_calls = static_cast<int>(1 + choices_.below(3)),
                .open_time = std::chrono::nanoseconds(1 + choices_.below(20)),
                .probes = static_cast<int>(1 + choices_.below(3)),
            };
        }
        if (choices_.one_in(2)) {
            budget_ = sluice::RetryBudget{.ratio = static_cast<double>(choices_.below(11)) / 10,
                                          .min_retries = static_cast<int>(choices_.below(3))};
            endpoint_options.retry_budget = budget_;
            has_budget_ = true;
        }
        if (choices_.one_in(3)) {
            endpoint_options.max_waiting = static_cast<std::ptrdiff_t>(choices_.below(4));
        }
        if (choices_.one_in(3)) {
            endpoint_options.max_wait = std::chrono::nanoseconds(1 + choices_.below(30));
        }
        endpoint_options.shed_late = choices_.one_in(3);
        endpoint_options.order = choices_.one_in(3) ? sluice::LineOrder::furthest_first : sluice::LineOrder::first_come;
        is_bounded_ = endpoint_options.max_waiting || endpoint_options.max_wait;
        endpoint_.emplace(executor, "shared", endpoint_options);
        sluice::StageOptions options{.retry = {.max_retries = static_cast<int>(choices_.below(3)),
                                               .backoff = {.initial = std::chrono::nanoseconds(choices_.below(8))}},
                                     .observer = this,
                                     .while_open = static_cast<sluice::WhileOpen>(choices_.below(3))};
        if (choices_.one_in(2)) {
            options.timeout = std::chrono::nanoseconds(1 + choices_.below(15));
        }
        draft_.emplace(*endpoint_, "draft", Model{this}, options);
        judge_.emplace(*endpoint_, "judge", Model{this}, options);
        for (std::size_t n = queries_ = 1 + choices_.below(8); n != 0; --n) {
            const Stage stage = choices_.one_in(2) ? *draft_ : *judge_;
            if (choices_.one_in(2)) {
                actors_.start(context_.get_executor(), [this, stage](Actor& actor) { return query(actor, stage); });
            } else {
                actors_.start(context_.get_executor(), [this, stage](Actor&) { return timed_query(stage); });
            }
        }
    }

    void check() {
        for (std::size_t steps = 0; context_.run_one(); ++steps) {
            require(steps < 20'000, "the run does not end");
            check_slots();
            if (steps < 300 && choices_.one_in(20)) {
                disturb();
            }
        }
        if (endpoint_) {
            set_limit(1);
            reset_breaker();
        }
        for (std::size_t steps = 0; context_.run_one(); ++steps) {
            require(steps < 20'000, "the run does not end");
            check_slots();
        }
        actors_.check();
        require(running_ == 0, "a model is still running");
        require(begun_ == finished_, "a stage run did not end exactly once");
        require(!endpoint_ || endpoint_->retries() == 0, "a retry was not returned");
        check_expectations();
    }

private:
    struct Model {
        EndpointRun* run;
        asio::awaitable<int> operator()() const { return run->model(); }
        sluice::Cost cost() const { return {.input_tokens = static_cast<std::int64_t>(run->choices_.below(4))}; }
    };
    using Stage = sluice::Stage<Model, VirtualTimer>;

    asio::awaitable<int> model() {
        const struct Running {
            EndpointRun& run;
            ~Running() {
                --run.running_;
                run.ceiling_ = std::max(run.limit_, run.ceiling_ - 1);
            }
        } counted{*this};
        expect(++running_ <= ceiling_, "the shared limit was exceeded");
        co_await pause(choices_);
        if (choices_.one_in(4)) {
            throw std::runtime_error("model");
        }
        if (choices_.one_in(6)) {
            sluice::Verdict verdict{.kind =
                                        choices_.one_in(2) ? sluice::Verdict::throttled : sluice::Verdict::overloaded};
            if (choices_.one_in(2)) {
                verdict.retry_after = std::chrono::nanoseconds(choices_.below(30));
                was_paused_ = true;
            }
            throw sluice::ModelError("busy", verdict);
        }
        co_return 1;
    }

    asio::awaitable<void> query(Actor& actor, const Stage& stage) {
        const auto result = co_await stage.run("q");
        expect(!actor.cancelled || result.success || result.reason == sluice::Reason::closed,
               "a cancelled run was reported as failed");
        expect(result.success == (result.reason == sluice::Reason::none), "the reason does not match the result");
        expect(result.reason != sluice::Reason::closed || closed_, "an open endpoint was reported as closed");
        expect(result.reason != sluice::Reason::overloaded || is_bounded_, "a line without bounds was full");
        expect(!result.retries_withheld || (has_budget_ && !result.success), "a retry was withheld without a budget");
    }

    struct Pair {
        std::optional<int> first;
        std::optional<int> second;
    };

    struct Letters {
        std::size_t count = 0;
        void put(const sluice::Query&, const sluice::StageResult<>&) { ++count; }
    };

    // Two steps, which end before the query is late, since the model heeds cancellation.
    asio::awaitable<void> timed_query(const Stage& stage) {
        const asio::any_io_executor executor = co_await asio::this_coro::executor;
        const auto timed = sluice::timed_by<VirtualTimer>(executor);
        Letters letters;
        const auto route = [&stage](sluice::Run<Pair>& run) -> asio::awaitable<void> {
            co_await run.step(&Pair::first, stage);
            co_await run.step(&Pair::second, stage);
        };
        sluice::Pipeline pipeline(timed, route, letters, 1);
        sluice::Query query("q", "text");
        query.timeout = std::chrono::nanoseconds(choices_.below(60));
        const auto begun = VirtualTimer::now(executor);
        const auto result = co_await pipeline.process_one(query);
        const auto took = VirtualTimer::now(executor) - begun;
        expect(took <= *query.timeout, "a query took longer than its timeout");
        expect(result.completed == !result.failure(), "a query did not end in exactly one way");
        expect(letters.count == (result.completed ? 0U : 1U), "a dead letter was not delivered once");
        const auto reason = result.failure() ? result.failure()->reason : sluice::Reason::none;
        expect(reason != sluice::Reason::closed || closed_, "an open endpoint was reported as closed");
        expect(reason != sluice::Reason::overloaded || is_bounded_, "a line without bounds was full");
    }

    void on_queued(const sluice::StageResult<>& run) noexcept override { begun_ += run.attempts == 0; }
    void on_finished(const sluice::StageResult<>&, Outcome, Event) noexcept override { ++finished_; }

    void set_limit(std::ptrdiff_t limit) {
        endpoint_->set_limit(limit);
        limit_ = limit;
        ceiling_ = std::max(limit, endpoint_->active());
    }

    sluice::Rate rate() {
        return {static_cast<std::int64_t>(1 + choices_.below(6)), std::chrono::nanoseconds(1 + choices_.below(20)),
                static_cast<std::int64_t>(1 + choices_.below(6))};
    }

    void reset_breaker() {
        if (has_policies_) {
            endpoint_->breaker().reset();
        }
    }

    void disturb() {
        switch (choices_.below(16)) {
            case 12:
                if (endpoint_) {
                    endpoint_->pause(std::chrono::nanoseconds(choices_.below(40)));
                    was_paused_ = true;
                }
                break;
            case 13:
                if (endpoint_ && has_policies_) {
                    const auto dimension = choices_.one_in(2) ? sluice::Rate::requests : sluice::Rate::input_tokens;
                    endpoint_->set_rate(dimension, choices_.one_in(3) ? sluice::Rate::unlimited : rate());
                }
                break;
            case 14:
                if (endpoint_ && has_policies_) {
                    endpoint_->breaker().force_open();
                }
                break;
            case 15:
                if (endpoint_) {
                    reset_breaker();
                }
                break;
            case 0:
                if (endpoint_) {
                    reset_breaker();
                }
                endpoint_.reset();
                draft_.reset();
                judge_.reset();
                limit_ = std::max<std::ptrdiff_t>(1, limit_);
                break;
            case 1:
                if (endpoint_ && choices_.one_in(3)) {
                    endpoint_->close();
                    closed_ = true;
                }
                break;
            case 2:
            case 3:
            case 4:
                if (endpoint_) {
                    set_limit(static_cast<std::ptrdiff_t>(1 + choices_.below(4)));
                }
                break;
            default:
                actors_.cancel_one(choices_);
        }
    }

    void check_slots() {
        check_expectations();
        if (endpoint_) {
            const auto share = static_cast<std::size_t>(budget_.ratio * static_cast<double>(queries_) + 1e-9);
            require(endpoint_->retries() <= std::max(share, static_cast<std::size_t>(budget_.min_retries)),
                    "more retries at once than the budget allows");
        }
        if (endpoint_ && context_.ready() == 0) {
            require(endpoint_->active() == running_, "a slot is held but not used");
            require(has_policies_ || was_paused_ || endpoint_->waiting() == 0 || endpoint_->active() >= limit_,
                    "a free slot is not used");
        }
    }

    Choices& choices_;
    std::ptrdiff_t limit_ = 0;
    std::ptrdiff_t ceiling_ = 0;  // above a limit that was lowered, until slots are returned
    std::ptrdiff_t running_ = 0;
    std::size_t queries_ = 0;
    sluice::RetryBudget budget_{.ratio = 0, .min_retries = 0};
    bool has_budget_ = false;
    int begun_ = 0;
    int finished_ = 0;
    bool closed_ = false;
    bool is_bounded_ = false;
    bool has_policies_ = false;
    bool was_paused_ = false;
    Actors actors_;
    std::optional<sluice::Endpoint<VirtualTimer>> endpoint_;
    std::optional<Stage> draft_;
    std::optional<Stage> judge_;
    // Last, so that coroutines that still wait when a property does not hold are destroyed first.
    InterleavingContext context_{[this](std::size_t n) { return choices_.below(n); }};
};

inline void check_endpoint(Choices& choices) { EndpointRun(choices).check(); }

}  // namespace properties
