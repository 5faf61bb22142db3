// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "choices.hpp"
#include "scene.hpp"

#include <sluice/pipeline/inference_pipeline.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <ranges>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace properties {

/// A run of one pipeline: a batch and a single query, or a stream with one consumer or two, or all of them.
template <class Sink>
class PipelineRun final : Scene {
public:
    PipelineRun(Choices& c, bool has_batch, bool has_stream) : Scene(c) {
        restless_ = !choices.one_in(3);
        const sluice::StageLimits stage_limits{limits[0], limits[1], limits[2]};
        pipeline_.emplace(sluice::timed_by<VirtualTimer>(context_.get_executor()), Classify{this}, Extract{this},
                          Generate{this}, stage_limits, sink_, options());
        metrics.watch(*pipeline_, "pipeline");
        endpoints_ = {pipeline_->classify().endpoint(), pipeline_->extract().endpoint(),
                      pipeline_->generate().endpoint()};
        for (const auto& endpoint : endpoints_) {
            metrics.watch(endpoint);
        }
        if (has_batch) {
            fill(batch, 12);
            calls_to_make_ = 2;
            start([this](Actor& actor) { return run_batch(actor); });
            start([this](Actor& actor) { return run_one(actor); });
        }
        if (has_stream) {
            fill(stream, 15);
            stream.arrived = choices.one_in(3);
            stream_.emplace(stream.arrived != 0 ? pipeline_->process_stream(Source{this, &stream})
                                                : pipeline_->process_stream(queries(stream)));
            for (Consumer& consumer : consumers_) {
                consumer.results = choices.one_in(2) ? choices.below(8) : 100;
                consumer.closes = choices.one_in(2);
                consumer.drops = choices.one_in(4);
                start([this, &consumer](Actor& actor) { return consume(actor, consumer); });
                if (choices.one_in(2)) {
                    break;
                }
            }
        }
    }

    void check() {
        run();
        restless_ = false;
        resume_stages();
        run();
        actors.check();
        if (choices.one_in(2)) {
            pipeline_.reset();
        }
        drop_stream();
        run();
        check_fates();
        expect(running == std::array<std::ptrdiff_t, 3>{}, "a model is still running");
        check_expectations();
    }

private:
    struct Consumer {
        std::size_t results = 0;  // after which it leaves
        bool closes = false;
        bool drops = false;
        bool in_excess = false;
    };
    using Pipeline = sluice::InferencePipeline<Classify, Extract, Generate, Sink, VirtualTimer>;

    // An asynchronous source.
    struct Source {
        Scene* scene;
        Intake* intake;
        std::size_t at = 0;

        asio::awaitable<std::optional<sluice::Query>> next() { return produce(*this); }

    private:
        static asio::awaitable<std::optional<sluice::Query>> produce(Source& self) {
            Intake& asking = *self.intake;
            self.scene->expect(!std::exchange(asking.asks, true), "a source was asked before it had answered");
            self.scene->expect(asking.held() < asking.ceiling + asking.excess, "a source was asked without room");
            const struct Answered {
                Intake& intake;
                ~Answered() { intake.asks = false; }
            } answered{asking};
            co_await pause(self.scene->choices);
            const auto state = co_await asio::this_coro::cancellation_state;
            if (state.cancelled() != asio::cancellation_type::none) {
                throw boost::system::system_error(asio::error::operation_aborted);
            }
            if (self.at == asking.size) {
                co_return std::nullopt;
            }
            co_return self.scene->take(asking, self.at++);
        }
    };

    // A lazy range.
    auto queries(Intake& intake) {
        return std::views::iota(std::size_t{0}, intake.size) | std::views::transform(Scene::Take{this, &intake});
    }

    void fill(Intake& intake, std::size_t size) {
        set_window(intake, pipeline_->window());
        intake.size = choices.below(size);
        if (choices.one_in(6)) {
            intake.throws_at = choices.below(size);
        }
    }

    template <class Function>
    void start(Function function) {
        actors.start(context_.get_executor(), std::move(function));
    }

    asio::awaitable<void> run_batch(Actor& actor) {
        batch.owner = &actor;
        batch.open = true;
        batch.arrived = choices.one_in(3);
        auto awaitable = batch.arrived != 0 ? pipeline_->process_batch(Source{this, &batch})
                                            : pipeline_->process_batch(queries(batch));
        --calls_to_make_;
        try {
            const auto results = co_await std::move(awaitable);
            expect(!batch.threw && !batch.must_abort, "a batch succeeded although it failed or was cancelled");
            expect(results.size() == batch.size, "a batch has the wrong number of results");
            for (std::size_t i = 0; i != results.size(); ++i) {
                check_result(results[i], batch.name, i);
            }
            end(batch);
        } catch (const RangeFailure&) {
            end(batch);
        } catch (const boost::system::system_error&) {
            expect(!batch.threw, "an exception of the range was lost");
            end(batch);
            throw;
        }
    }

    asio::awaitable<void> run_one(Actor& actor) {
        one.owner = &actor;
        auto awaitable = pipeline_->process_one(take(one, 0));
        --calls_to_make_;
        try {
            const auto result = co_await std::move(awaitable);
            check_result(result, one.name, 0);
            end(one);
        } catch (const boost::system::system_error&) {
            expect(one.concluded == 0, "the result of a query that has ended was lost");
            end(one);
            throw;
        }
    }

    void end(Intake& intake) {
        expect(intake.working == 0, "a batch or a query ended before its work");
        intake.owner = nullptr;
        intake.open = false;
    }

    asio::awaitable<void> consume(Actor& actor, Consumer& self) {
        bool at_end = false;
        while (self.results != 0 && !at_end && stream_) {
            co_await begin_wait(actor);
            stream.open = true;
            stream.excess += !std::exchange(self.in_excess, true);
            ++asking_;
            auto awaitable = stream_->next();
            bool aborted = false;
            try {
                const auto item = co_await std::move(awaitable);
                at_end = !item;
                if (item) {
                    --self.results;
                    ++stream.released;
                    expect(!stream.stopped, "a stream returned a result after its end");
                    expect(seen_.insert(item->index).second, "a result was returned twice");
                    check_result(item->result, stream.name, item->index);
                }
            } catch (const RangeFailure&) {
                expect(stream.threw && !std::exchange(range_error_seen_, true), "an error of the range came twice");
            } catch (const boost::system::system_error&) {
                aborted = true;  // no result is lost
            }
            --asking_;
            expect(aborted == actor.cancelled,
                   "a wait was aborted without a cancellation, or a cancellation had no effect");
            if (!aborted) {
                self.in_excess = false;
                --stream.excess;
            }
            co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
            if (!at_end) {
                co_await pause(choices);
            }
        }
        if (at_end && stream_) {
            expect(stream.stopped || seen_.size() == std::min(stream.size, stream.throws_at), "a result was lost");
            expect(stream.stopped || range_error_seen_ == stream.threw, "an error of the range was lost");
            auto awaitable = stream_->next();
            const auto item = co_await std::move(awaitable);
            expect(!item, "a stream returned a result after it had returned its end");
        }
        for (bool closed = !self.closes; !closed && stream_;) {
            co_await begin_wait(actor);
            stream.stopped = true;
            auto awaitable = stream_->close();
            try {
                co_await std::move(awaitable);
                closed = true;
                expect(stream.working == 0, "close() did not wait");
            } catch (const boost::system::system_error&) {
            }
            expect(closed != actor.cancelled,
                   "close() was aborted without a cancellation, or a cancellation had no effect");
        }
        if (self.drops) {
            drop_stream();
        }
    }

    static auto begin_wait(Actor& actor) {
        actor.cancelled = false;
        return asio::this_coro::reset_cancellation_state(asio::enable_total_cancellation());
    }

    void drop_stream() {
        if (stream_) {
            stream.stopped = true;
            stream_.reset();
        }
    }

    void resume_stages() {
        for (std::size_t stage = 0; stage != endpoints_.size(); ++stage) {
            set_limit(stage, endpoints_[stage], std::max<std::ptrdiff_t>(1, limits[stage]));
        }
    }

    void disturb() noexcept override {
        if (!restless_) {
            return;
        }
        const std::size_t stage = choices.below(3);
        switch (choices.below(16)) {
            case 0:
                drop_stream();
                break;
            case 1:
                if (!endpoints_.empty() && choices.one_in(2)) {
                    endpoints_[stage].close();
                }
                break;
            case 2:
            case 3:
            case 4:
                if (!endpoints_.empty()) {
                    set_limit(stage, endpoints_[stage], static_cast<std::ptrdiff_t>(choices.below(4)));
                }
                break;
            default:
                if (const Actor* actor = actors.cancel_one(choices)) {
                    note_cancelled(*actor);
                }
        }
    }

    void note_cancelled(const Actor& actor) {
        for (Intake* intake : {&batch, &one}) {
            if (intake->owner == &actor) {
                intake->must_abort = intake->must_abort || intake->concluded != intake->size;
                intake->stopped = true;
            }
        }
    }

    // Runs until nothing is left to do.
    void run() {
        while (context_.run_one()) {
            require(++steps_ < 20'000, "the run does not end");
            check_step();
            if (restless_ && steps_ < 3000 && choices.one_in(50)) {
                disturb();
                if (calls_to_make_ == 0 && choices.one_in(20)) {
                    pipeline_.reset();
                    if (choices.one_in(2)) {
                        resume_stages();  // this is not possible later
                        endpoints_.clear();
                    }
                }
            }
        }
    }

    void check_step() {
        const bool idle = context_.ready() == 0;
        for (std::size_t stage = 0; stage != endpoints_.size(); ++stage) {
            check_slots(stage, endpoints_[stage], idle);
        }
        if (idle) {
            for (Intake& intake : intakes) {
                check_places(intake);
            }
            expect(asking_ == 0 || stream.stopped || stream.concluded == stream.released,
                   "a result and a consumer wait for each other");
        }
        check_expectations();
    }

    // The context is last, so that coroutines that still wait when a property does not hold are destroyed first.
    Sink sink_{*this};
    std::optional<Pipeline> pipeline_;
    std::vector<Endpoint> endpoints_;  // handles, which may outlive the pipeline; or empty
    std::optional<typename Pipeline::Stream> stream_;
    std::array<Consumer, 2> consumers_{};
    std::set<std::size_t> seen_;
    std::size_t calls_to_make_ = 0;  // of the pipeline, which may be destroyed afterwards
    std::size_t asking_ = 0;
    std::size_t steps_ = 0;
    bool range_error_seen_ = false;
    bool restless_ = false;
    InterleavingContext context_{[this](std::size_t n) { return choices.below(n); }};
};

inline void check_pipeline(Choices& choices, bool has_batch, bool has_stream) {
    if (choices.one_in(4)) {
        PipelineRun<PlainSink>(choices, has_batch, has_stream).check();
    } else {
        PipelineRun<AwaitedSink>(choices, has_batch, has_stream).check();
    }
}

/// Batches and single queries, and perhaps a stream beside them.
inline void check_batch(Choices& choices) { check_pipeline(choices, true, choices.one_in(4)); }

/// Streams, and perhaps a batch beside them.
inline void check_stream(Choices& choices) { check_pipeline(choices, choices.one_in(6), true); }

}  // namespace properties
