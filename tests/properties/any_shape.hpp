// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "any_shape_route.hpp"
#include "any_shape_scene.hpp"
#include "choices.hpp"

#include <sluice/pipeline/drain.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/sync/timed_by.hpp>
#include <sluice/testing/virtual_time.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace properties {

/// A run of one pipeline of any shape: single queries, a batch, a stream, redrives and drains beside each other, and
/// then a pipeline that takes what was left.
template <class Sink>
class AnyShapeRun final : any_shape::Scene {
public:
    explicit AnyShapeRun(Choices& c) : Scene(c) {
        saves = std::is_same_v<Sink, any_shape::SavingSink>;
        add_stages();
        add_pipeline();
        restless_ = !choices.one_in(3);
        for (std::size_t n = choices.below(4); n != 0; --n) {
            Intake& one = add_intake(Kind::one, "o" + std::to_string(n), 1);
            start([this, &one](Actor& actor) { return run_one(actor, one); });
        }
        if (choices.one_in(2)) {
            Intake& batch = add_intake(static_cast<Kind>(1 + choices.below(3)), "b", choices.below(8));
            start([this, &batch](Actor& actor) { return run_batch(actor, batch); });
        }
        if (choices.one_in(2)) {
            stream_intake_ = &add_intake(static_cast<Kind>(1 + choices.below(3)), "s", choices.below(8));
            start([this](Actor& actor) { return consume(actor, *stream_intake_); });
            for (std::size_t n = choices.below(3); n != 0; --n) {
                start([this](Actor& actor) { return drain_stream(actor); });
            }
        }
        if (choices.one_in(2)) {
            start([this](Actor& actor) { return redrive(actor); });
        }
        for (std::size_t n = choices.below(3); n != 0; --n) {
            start([this](Actor& actor) { return drain(actor); });
        }
    }

    void check() {
        if (choices.one_in(6)) {
            run(choices.below(300));
            destroy();
            check_expectations();
            return;
        }
        require(run(), "the run does not end");
        restless_ = false;
        drop_stream();
        require(run(), "the run does not end");
        actors.check();
        check_idle();
        if (pipeline_) {
            drain_when_idle();
        }
        const bool stream_was_drained = stream_intake_ && stream_intake_->drained_at != 0;
        // A report may be lost, with its pipeline.
        if ((drained_at == 0 || report) && (!stream_was_drained || stream_report || pipeline_)) {
            check_fates();
            check_report();
            const sluice::PipelineMetrics counted = metrics.snapshot().pipelines.at(0);
            expect(
                counted.completed + counted.dead_letters + counted.cancelled + counted.unfinished == queries_in_work(),
                "a metric has lost a query");
        }
        check_expectations();
        redrive_all();
    }

private:
    using Intake = any_shape::Intake;
    using Kind = any_shape::Kind;
    using Pipeline = sluice::Pipeline<any_shape::Route, Sink, VirtualTimer>;

    void add_stages() {
        using namespace std::chrono_literals;
        const auto executor = sluice::timed_by<VirtualTimer>(context_->get_executor());
        for (std::size_t stage = 0; stage != limits.size(); ++stage) {
            const bool is_patient = choices.one_in(3);  // its backoffs outlast many a grace
            sluice::StageOptions options{
                .retry = {.max_retries = static_cast<int>(choices.below(3)),
                          .backoff = {.initial = is_patient ? 200ns : 5ns, .cap = is_patient ? 400ns : 20ns}}};
            if (choices.one_in(3)) {
                options.timeout = 15ns;
            }
            stages_.emplace_back(executor, any_shape::name_of(stage), limits[stage], any_shape::Model{this, stage},
                                 options);
            metrics.watch(stages_.back().endpoint());
        }
    }

    void add_pipeline() {
        const auto window = static_cast<std::ptrdiff_t>(1 + choices.below(5));
        const auto max_in_backoff = static_cast<std::ptrdiff_t>(choices.below(4));
        most_in_route = static_cast<std::size_t>(window + max_in_backoff);
        pipeline_.emplace(sluice::timed_by<VirtualTimer>(context_->get_executor()),
                          any_shape::Route{this, {stages_[0], stages_[1], stages_[2]}}, sink_, window,
                          sluice::PipelineOptions{.max_in_backoff = max_in_backoff, .observer = this});
        metrics.watch(*pipeline_, "pipeline");
    }

    Intake& add_intake(Kind kind, const std::string& name, std::size_t size) {
        Intake& intake = intakes.emplace_back();
        intake.kind = kind;
        for (std::size_t i = 0; i != size; ++i) {
            intake.drafts.push_back(draft(name + "." + std::to_string(i)));
        }
        if (kind != Kind::one && choices.one_in(6)) {
            intake.throws_at = choices.below(8);
        }
        return intake;
    }

    template <class Function>
    void start(Function function) {
        actors.start(context_->get_executor(), std::move(function));
    }

    // From here on a cancellation of `actor` cancels what it awaits, and no earlier one does.
    static auto begin_wait(Actor& actor) {
        actor.cancelled = false;
        return asio::this_coro::reset_cancellation_state(asio::enable_total_cancellation());
    }

    asio::awaitable<void> wait_a_while() {
        for (std::size_t n = choices.below(6); n != 0; --n) {
            co_await pause(choices);
        }
    }

    asio::awaitable<void> run_one(Actor& actor, Intake& one) {
        co_await wait_a_while();
        co_await begin_wait(actor);
        if (!pipeline_) {
            co_return;
        }
        one_of_[&actor] = &one;
        any_shape::SheetCheckpoint checkpoint = take(one, 0);
        auto& fate = fate_of(checkpoint.query);
        fate.refused = !pipeline_;
        if (pipeline_) {
            co_await begin_wait(actor);
            auto awaitable = pipeline_->process_one(std::move(checkpoint));
            try {
                const auto result = co_await std::move(awaitable);
                see(result);
                one.in_full = true;
            } catch (const sluice::Draining&) {
                expect(drained_at != 0 && fate.routes == 0, "a query was refused without a drain");
                fate.refused = true;
            }
        }
        one_of_.erase(&actor);
    }

    // Runs dead letters again.
    asio::awaitable<void> redrive(Actor& actor) {
        for (std::size_t n = choices.below(5); n != 0; --n) {
            co_await wait_a_while();
            if (!letters.empty()) {
                Intake& one = intakes.emplace_back();
                one.drafts.push_back(std::move(letters.back()));
                letters.pop_back();
                co_await run_one(actor, one);
            }
        }
    }

    asio::awaitable<void> run_batch(Actor& actor, Intake& batch) {
        co_await wait_a_while();
        co_await begin_wait(actor);
        if (!pipeline_) {
            co_return;
        }
        one_of_[&actor] = &batch;
        auto indexes = indexes_of(batch);
        any_shape::Source source{this, &batch};
        const any_shape::Take projection{this, &batch};
        auto awaitable = batch.kind == Kind::owned        ? pipeline_->process_batch(std::move(indexes), projection)
                         : batch.kind == Kind::referenced ? pipeline_->process_batch(indexes, projection)
                                                          : pipeline_->process_batch(source);
        try {
            const auto results = co_await std::move(awaitable);
            expect(!batch.threw, "an exception of the input was lost");
            expect(results.size() == batch.taken, "a batch has the wrong number of results");
            expect(drained_at != 0 || batch.taken == batch.drafts.size(), "a batch has ended before its input");
            expect(batch.kind != Kind::owned || batch.taken == batch.drafts.size(), "queries were lost by a drain");
            for (std::size_t i = 0; i != results.size(); ++i) {
                expect(results[i].query.id.str() == batch.drafts[i].id, "the results are out of order");
                see(results[i]);
            }
            batch.in_full = true;
        } catch (const any_shape::InputFailure&) {
            expect(batch.threw, "an exception of the input came from elsewhere");
        } catch (const sluice::Draining&) {
            expect(drained_at != 0 && batch.taken == 0, "a batch was refused after it had begun");
        }
        one_of_.erase(&actor);
    }

    static std::vector<std::size_t> indexes_of(const Intake& intake) {
        std::vector<std::size_t> indexes;
        for (std::size_t i = 0; i != intake.drafts.size(); ++i) {
            indexes.push_back(i);
        }
        return indexes;
    }

    asio::awaitable<void> consume(Actor& actor, Intake& intake) {
        const std::size_t most = choices.one_in(2) ? choices.below(5) : 100;
        co_await wait_a_while();
        if (!pipeline_) {
            co_return;
        }
        try {
            indexes_ = indexes_of(intake);
            const any_shape::Take projection{this, &intake};
            stream_.emplace(intake.kind == Kind::owned ? pipeline_->process_stream(indexes_of(intake), projection)
                            : intake.kind == Kind::referenced
                                ? pipeline_->process_stream(indexes_, projection)
                                : pipeline_->process_stream(any_shape::Source{this, &intake}));
            expect(drained_at == 0, "a pipeline that drains has taken a stream");
        } catch (const sluice::Draining&) {
            expect(drained_at != 0, "a stream was refused without a drain");
        }
        const auto drained = [&] { return drained_at != 0 || intake.drained_at != 0; };
        bool at_end = false;
        for (std::size_t n = 0; n != most && !at_end && stream_; ++n) {
            co_await begin_wait(actor);
            auto awaitable = stream_->next();
            try {
                const auto item = co_await std::move(awaitable);
                at_end = !item;
                if (item) {
                    expect(!intake.stopped && !item->result.unfinished, "a stream has delivered what it should not");
                    expect(item->result.query.id.str() == intake.drafts[item->index].id, "a result has a wrong index");
                    see(item->result);
                }
            } catch (const any_shape::InputFailure&) {
                expect(intake.threw, "an exception of the input came from elsewhere");
            } catch (const boost::system::system_error&) {
                expect(actor.cancelled, "a wait was aborted without a cancellation");
            }
            co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
            co_await pause(choices);
        }
        if (at_end && !intake.stopped) {
            expect(drained() || intake.threw || intake.taken == intake.drafts.size(), "a stream has ended early");
            intake.in_full = true;
            intake.rest_is_due = intake.kind == Kind::owned;
        }
        if (stream_ && choices.one_in(3)) {
            co_await begin_wait(actor);
            stop_stream();
            auto awaitable = stream_->close();
            co_await std::move(awaitable);
            expect(intake.in_route == 0, "close() did not wait");
        }
        if (choices.one_in(3)) {
            drop_stream();
        }
    }

    asio::awaitable<void> drain(Actor& actor) {
        const auto grace = co_await wait_to_drain(actor);
        if (!pipeline_) {
            co_return;
        }
        if (drained_at == 0) {
            drained_at = ++moment;
        }
        const auto deadline = now() + grace;
        auto awaitable = pipeline_->drain(grace);
        auto ended = co_await std::move(awaitable);
        check_end_of_drain(deadline);
        add_report(std::move(ended));
    }

    // Drains the stream alone.
    asio::awaitable<void> drain_stream(Actor& actor) {
        const auto grace = co_await wait_to_drain(actor);
        if (!stream_) {
            co_return;
        }
        Intake& intake = *stream_intake_;
        if (intake.drained_at == 0) {
            intake.drained_at = ++moment;
        }
        const auto deadline = now() + grace;
        auto awaitable = stream_->drain(grace);
        auto ended = co_await std::move(awaitable);
        check_end_of_drain(deadline);
        add_stream_report(intake, std::move(ended));
    }

    // Returns the grace.
    asio::awaitable<std::chrono::nanoseconds> wait_to_drain(Actor& actor) {
        const std::array<std::size_t, 4> graces{0, 20, 150, 100'000};
        const std::chrono::nanoseconds grace(choices.below(1 + graces[choices.below(4)]));
        for (std::size_t n = choices.below(8); n != 0; --n) {
            co_await wait_a_while();
        }
        co_await begin_wait(actor);
        co_return grace;
    }

    void check_end_of_drain(std::chrono::nanoseconds deadline) {
        // A model, a source or a sink may need some time to end.
        expect(now() <= deadline + std::chrono::nanoseconds(300), "a drain has waited for longer than its grace");
    }

    std::chrono::nanoseconds now() { return sluice::testing::VirtualTime::of(*context_).now().time_since_epoch(); }

    void drop_stream() {
        if (stream_) {
            stop_stream();
            stream_.reset();
        }
    }

    // The stream is about to be closed or destroyed. A drain that has begun leaves the rest of a container
    // nevertheless.
    void stop_stream() {
        Intake& intake = *stream_intake_;
        const bool drained = drained_at != 0 || intake.drained_at != 0;
        intake.rest_is_due = intake.rest_is_due || (drained && !intake.stopped && intake.kind == Kind::owned);
        intake.stopped = true;
    }

    void disturb() noexcept override {
        if (!restless_) {
            return;
        }
        switch (choices.below(24)) {
            case 0:
                drop_stream();
                break;
            case 1:
                if (choices.one_in(4)) {
                    stages_[choices.below(3)].endpoint().close();
                }
                break;
            case 2:
                if (choices.one_in(4)) {
                    pipeline_.reset();
                }
                break;
            default:
                if (const Actor* actor = actors.cancel_one(choices)) {
                    if (const auto found = one_of_.find(actor); found != one_of_.end()) {
                        found->second->stopped = true;
                    }
                }
        }
    }

    // Runs until nothing is left to do, or so many handlers. Returns whether nothing is left.
    bool run(std::size_t most = 20'000) {
        for (; context_->run_one(); --most) {
            if (most == 0) {
                return false;
            }
            check_expectations();
            if (context_->ready() == 0) {
                check_slots();
            }
            if (restless_ && choices.one_in(60)) {
                disturb();
            }
        }
        return true;
    }

    void check_slots() {
        for (std::size_t stage = 0; stage != stages_.size(); ++stage) {
            const auto endpoint = stages_[stage].endpoint();
            require(endpoint.active() == running[stage], "a slot is held but not used");
            require(endpoint.waiting() == 0 || endpoint.active() >= limits[stage], "a free slot is not used");
        }
    }

    // Destroys everything, wherever it is, in some order.
    void destroy() {
        restless_ = false;
        std::array<std::size_t, 4> order{0, 1, 2, 3};
        for (std::size_t n = order.size(); n > 1; --n) {
            std::swap(order[n - 1], order[choices.below(n)]);
        }
        for (const std::size_t what : order) {
            switch (what) {
                case 0:
                    pipeline_.reset();
                    break;
                case 1:
                    drop_stream();
                    break;
                case 2:
                    stages_.clear();
                    break;
                default:
                    context_.reset();
            }
        }
        expect(routes == 0, "a route outlives its context");
        expect(running == std::array<std::ptrdiff_t, 3>{}, "a model outlives its context");
    }

    void check_idle() {
        expect(routes == 0, "a route is still running");
        expect(running == std::array<std::ptrdiff_t, 3>{}, "a model is still running");
        for (const auto& stage : stages_) {
            expect(stage.endpoint().active() == 0 && stage.endpoint().waiting() == 0, "a slot is still held");
        }
        check_metrics_at_end();
        check_expectations();
    }

    // Gets the report, perhaps again.
    void drain_when_idle() {
        const auto before = now();
        start([this](Actor&) -> asio::awaitable<void> {
            drained_at = drained_at == 0 ? ++moment : drained_at;
            auto awaitable = pipeline_->drain(std::chrono::hours(1));
            auto ended = co_await std::move(awaitable);
            add_report(std::move(ended));
        });
        run();
        actors.check();
        require(now() == before, "the drain of an idle pipeline has waited");
    }

    // Takes dead letters, and what a drain has left, to their end.
    void redrive_all() {
        pipeline_.reset();
        fates.clear();
        one_of_.clear();
        drained_at = 0;
        add_pipeline();
        Intake& batch = intakes.emplace_back();
        batch.kind = Kind::owned;
        for (auto* drafts : {&letters, &left}) {
            for (auto& draft : *drafts) {
                batch.drafts.push_back(std::move(draft));
            }
            drafts->clear();
        }
        start([this, &batch](Actor& actor) { return run_batch(actor, batch); });
        require(run(), "the run does not end");
        actors.check();
        require(batch.in_full, "what was left could not be run again");
        check_fates();
        check_idle();
    }

    // The context is last, so that coroutines that still wait when a property does not hold are destroyed first.
    Sink sink_{this};
    std::vector<std::size_t> indexes_;  // a range that the stream may refer to
    std::vector<any_shape::SheetStage> stages_;
    std::optional<Pipeline> pipeline_;
    std::optional<typename Pipeline::Stream> stream_;
    Intake* stream_intake_ = nullptr;
    std::map<const Actor*, Intake*> one_of_;  // what a cancellation of the actor stops
    bool restless_ = false;
    std::optional<InterleavingContext> context_{std::in_place, [this](std::size_t n) { return choices.below(n); }};
};

/// Pipelines of any shape: their routes, records, inputs, redrives and drains.
inline void check_any_shape(Choices& choices) {
    if (choices.one_in(2)) {
        AnyShapeRun<any_shape::SavingSink>(choices).check();
    } else {
        AnyShapeRun<any_shape::Sink>(choices).check();
    }
}

}  // namespace properties
