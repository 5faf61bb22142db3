// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "choices.hpp"
#include "metered.hpp"

#include <sluice/pipeline/inference_pipeline.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>

namespace properties {

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct RangeFailure : Failure {
    using Failure::Failure;
};

/// An operation that takes queries: a batch, a stream, or the call for a single query.
struct Intake {
    char name;  // the first character of the ids of its queries
    std::size_t size = 1;
    std::size_t throws_at = std::numeric_limits<std::size_t>::max();
    std::size_t window = 1;
    std::size_t ceiling = 1;   // above a window that became smaller, until places are returned
    std::size_t max_away = 0;  // the most queries that may leave their place

    std::size_t taken = 0;
    std::size_t away = 0;       // queries in backoff that have left their place
    std::size_t concluded = 0;  // completed, or a dead letter
    std::size_t released = 0;   // places in the window that became free: in a stream when the result is consumed
    std::size_t working = 0;    // runs and dead letters that have begun and not ended
    std::size_t arrived = 0;    // 1 if a query of its source may wait for a place
    bool asks = false;          // awaits its source
    std::size_t excess = 0;     // consumers, for each of which a stream may have taken one more query
    bool open = false;          // begun, and not ended
    bool threw = false;
    bool stopped = false;          // cancelled, closed or dropped
    bool must_abort = false;       // cancelled before its end
    const Actor* owner = nullptr;  // a cancellation of this actor cancels the intake

    std::size_t held() const { return taken - released - away; }
    bool is_stream() const { return name == 's'; }
    bool may_cancel() const { return stopped || (threw && !is_stream()); }
    bool takes_all_it_can() const { return open && !stopped && !threw && !asks && taken != size; }
};

/// The events of one query.
struct Fate {
    Intake* intake;
    bool in_run = false;
    bool away = false;
    bool sink_threw = false;
    int completed = 0;
    int failed = 0;
    int cancelled = 0;
    int put = 0;       // calls of the sink
    int reported = 0;  // calls of on_dead_letter
};

/// Models that wait, fail and hang, their limits, and a record of the queries.
///
/// Models, sinks, ranges and observers check with expect(), since an exception would be part of the run.
class Scene : public Metered {
public:
    using Endpoint = sluice::Endpoint<VirtualTimer>;

    struct Classify {
        Scene* scene;
        auto operator()(const std::string& text) const { return scene->model(0, text); }
    };
    struct Extract {
        Scene* scene;
        auto operator()(const std::string& text) const { return scene->model(1, text); }
    };
    struct Generate {
        Scene* scene;
        auto operator()(const std::string& intent, const std::string& entities, const std::string& text) const {
            scene->expect(intent == text && entities == text, "the value of a stage belongs to another query");
            return scene->model(2, text);
        }
    };
    // Makes the queries of a lazy range.
    struct Take {
        Scene* scene;
        Intake* intake;
        auto operator()(std::size_t index) const { return scene->take(*intake, index); }
    };

    explicit Scene(Choices& c) : choices(c) {
        current_ = this;
        for (std::size_t stage = 0; stage != limits.size(); ++stage) {
            ceilings[stage] = limits[stage] = static_cast<std::ptrdiff_t>(1 + choices.below(3));
        }
    }

    auto options() {
        using namespace std::chrono_literals;
        const auto retry_if = [](const std::exception_ptr&) { return current_->asks_for_retry(); };
        sluice::StageOptions stage{.retry = {.max_retries = static_cast<int>(choices.below(3)),
                                             .backoff = {.initial = 5ns, .cap = 20ns},
                                             .retry_if = retry_if}};
        if (choices.one_in(3)) {
            stage.timeout = 15ns;
        }
        sluice::InferencePipelineOptions result{
            .classify = stage, .extract = stage, .generate = stage, .observer = this};
        if (!choices.one_in(4)) {
            result.window = static_cast<std::ptrdiff_t>(1 + choices.below(5));
        }
        if (choices.one_in(2)) {
            result.max_in_backoff = static_cast<std::ptrdiff_t>(choices.below(4));
        }
        window_follows_ = !result.window;
        batch.max_away = stream.max_away = static_cast<std::size_t>(result.max_in_backoff);
        return result;
    }

    sluice::Query take(Intake& intake, std::size_t index) {
        expect(!intake.stopped && !intake.threw, "a query was taken after the end of the intake");
        if (index == intake.throws_at) {
            intake.threw = true;
            throw RangeFailure("range");
        }
        ++intake.taken;
        expect(intake.held() <= intake.ceiling + intake.excess + intake.arrived, "the window was exceeded");
        const std::string id = intake.name + std::to_string(index);
        expect(fates_.try_emplace(id, Fate{.intake = &intake}).second, "a query was taken twice");
        perhaps_disturb();
        return {id, id};
    }

    asio::awaitable<std::string> model(std::size_t stage, std::string text) {
        const struct Running {
            Scene& scene;
            std::size_t stage;
            ~Running() { scene.end_model(stage); }
        } counted{*this, stage};
        expect(++running[stage] <= ceilings[stage], "a limit was exceeded");
        co_await pause(choices);
        if (choices.one_in(8)) {
            throw Failure("model");
        }
        if (choices.one_in(20)) {
            // A failure, since there was no cancellation.
            throw boost::system::system_error(asio::error::operation_aborted);
        }
        if (choices.one_in(20)) {
            VirtualTimer timer(co_await asio::this_coro::executor, std::chrono::nanoseconds(50));
            co_await timer.async_wait(asio::deferred);
        }
        co_return text;
    }

    void put(const sluice::Query& query, const sluice::StageResult<>& why) {
        expect(!why.success && why.error, "a dead letter without a reason");
        Fate& fate = fate_of(query.id);
        ++fate.put;
        perhaps_disturb();
        if (choices.one_in(10)) {
            fate.sink_threw = true;
            throw Failure("sink");
        }
    }

    template <class Result>
    void check_result(const Result& result, char name, std::size_t index) {
        const std::string id = name + std::to_string(index);
        expect(result.query.id == id, "a result belongs to another query");
        const Fate& fate = fate_of(id);
        if (result.completed) {
            expect(fate.completed == 1 && result.stage_results.size() == 3,
                   "a completed result does not match its query");
            expect(result.response == id, "a response belongs to another query");
        } else {
            expect(fate.reported == 1, "a result came before its dead letter");
            expect(!result.stage_results.empty() && !result.stage_results.back().success, "no stage has failed");
            expect(bool(result.dead_letter_error) == fate.sink_threw,
                   "the result does not contain the exception of the sink");
        }
    }

    // Checks the slots of one stage; `idle`: no handler is ready.
    void check_slots(std::size_t stage, const Endpoint& endpoint, bool idle) {
        const std::ptrdiff_t active = endpoint.active();
        expect(running[stage] <= active, "a model runs without a slot");
        expect(!idle || running[stage] == active, "a slot is held but not used");
        expect(!idle || active <= ceilings[stage], "more slots are taken than the limit allows");
        expect(!idle || endpoint.waiting() == 0 || active >= limits[stage], "a free slot is not used");
        ceilings[stage] = std::max(limits[stage], std::min(ceilings[stage], active));
    }

    void set_limit(std::size_t stage, Endpoint& endpoint, std::ptrdiff_t limit) {
        endpoint.set_limit(limit);
        limits[stage] = limit;
        ceilings[stage] = std::max(limit, endpoint.active());
        if (window_follows_) {
            const std::ptrdiff_t sum = limits[0] + limits[1] + limits[2];
            set_window(batch, sum);
            set_window(stream, sum);
        }
    }

    static void set_window(Intake& intake, std::ptrdiff_t window) {
        intake.window = static_cast<std::size_t>(window);
        intake.ceiling = std::max(intake.ceiling, intake.window);
    }

    // Checks the places of an intake when no handler is ready.
    void check_places(Intake& intake) {
        intake.ceiling = std::max(intake.window, std::min(intake.ceiling, intake.held()));
        expect(intake.stopped || intake.held() <= intake.ceiling + intake.excess + intake.arrived,
               "the window is exceeded");
        expect(!intake.takes_all_it_can() || intake.held() >= intake.window, "the window is not used");
    }

    // Checks that each query has ended in exactly one way.
    void check_fates() {
        check_metrics_at_end();
        std::size_t taken = 0;
        std::size_t completed = 0;
        std::size_t dead = 0;
        for (const Intake& intake : intakes) {
            taken += intake.taken;
            expect(intake.working == 0, "a run has not ended");
            expect(intake.may_cancel() || intake.concluded == intake.taken, "a query was lost");
        }
        expect(fates_.size() == taken, "a query ended that was never taken");
        for (const auto& [id, fate] : fates_) {
            const int ends = fate.completed + fate.failed + fate.cancelled;
            expect(ends == 1 || (ends == 0 && fate.intake->may_cancel()), "a query did not end exactly once");
            expect(fate.put == fate.failed, "the failed queries are not the dead letters");
            expect(fate.reported == fate.failed, "a dead letter was not reported to the observer");
            completed += fate.completed != 0;
            dead += fate.failed != 0;
        }
        const sluice::PipelineMetrics counted = metrics.snapshot().pipelines.at(0);
        expect(counted.completed == completed && counted.dead_letters == dead, "a metric has lost a query");
        expect(counted.cancelled <= taken - completed - dead, "a metric has a query that was never taken");
    }

    void on_queued(const sluice::StageResult<>& run) noexcept override {
        Metered::on_queued(run);
        Fate& fate = fate_of(run.query_id);
        come_back(fate);
        expect(!fate.intake->stopped, "a cancelled run began or continued");
        if (!std::exchange(fate.in_run, true)) {
            ++fate.intake->working;
        }
    }

    void on_started(const sluice::StageResult<>& run) noexcept override {
        Metered::on_started(run);
        expect(!fate_of(run.query_id).intake->stopped, "a cancelled attempt began");
    }

    void on_attempt_failed(const sluice::StageResult<>& run, const sluice::StageError& error) noexcept override {
        Metered::on_attempt_failed(run, error);
        ++failed_attempts_;
        Fate& fate = fate_of(run.query_id);
        expect(!fate.intake->stopped, "a cancelled attempt failed");
        // On to its backoff, unless on_finished follows at once.
        if (fate.intake->away < fate.intake->max_away) {
            fate.away = true;
            ++fate.intake->away;
        }
    }

    void on_finished(const sluice::StageResult<>& run, Outcome outcome, Event last) noexcept override {
        Metered::on_finished(run, outcome, last);
        Fate& fate = fate_of(run.query_id);
        Intake& intake = *fate.intake;
        come_back(fate);
        fate.in_run = false;
        --intake.working;
        if (outcome == Outcome::cancelled) {
            ++fate.cancelled;
            ++intake.released;
            expect(intake.may_cancel(), "a query was aborted without a cancellation");
        } else if (outcome == Outcome::failed) {
            ++fate.failed;
            ++intake.working;  // until its dead letter has been put
            expect(!intake.stopped, "a cancelled query failed");
        } else if (run.stage == "generate") {
            ++fate.completed;
            conclude(intake);
        }
        perhaps_disturb();
    }

    void on_dead_letter(const sluice::Query& query, const sluice::StageResult<>& run,
                        const sluice::StageError& sink_error) noexcept override {
        Metered::on_dead_letter(query, run, sink_error);
        Fate& fate = fate_of(query.id);
        ++fate.reported;
        --fate.intake->working;
        expect(bool(sink_error) == fate.sink_threw, "the exception of the sink was not reported to the observer");
        conclude(*fate.intake);
    }

    Choices& choices;
    Actors actors;
    std::array<Intake, 3> intakes{Intake{.name = 'b'}, Intake{.name = 's'}, Intake{.name = 'o'}};
    Intake& batch = intakes[0];
    Intake& stream = intakes[1];
    Intake& one = intakes[2];
    std::array<std::ptrdiff_t, 3> limits{};
    std::array<std::ptrdiff_t, 3> ceilings{};  // above a limit that was lowered, until slots are returned
    std::array<std::ptrdiff_t, 3> running{};

protected:
    // Cancels, closes or changes something at random.
    virtual void disturb() noexcept = 0;

private:
    Fate& fate_of(const std::string& id) {
        const auto found = fates_.find(id);
        expect(found != fates_.end(), "a query is unknown");
        return found != fates_.end() ? found->second : unknown_fate_;
    }

    bool asks_for_retry() {
        expect(++asked_ <= failed_attempts_, "the retry policy was asked without a failed attempt");
        return !choices.one_in(5);
    }

    static void come_back(Fate& fate) {
        if (std::exchange(fate.away, false)) {
            --fate.intake->away;
        }
    }

    // Called inside a range, a sink or the observer.
    void perhaps_disturb() noexcept {
        if (choices.one_in(20)) {
            check_metrics();
            disturb();
            check_metrics();
        }
    }

    // Its slot is returned soon, and is not handed on while more than the limit are taken.
    void end_model(std::size_t stage) {
        --running[stage];
        ceilings[stage] = std::max(limits[stage], ceilings[stage] - 1);
    }

    static void conclude(Intake& intake) {
        ++intake.concluded;
        intake.released += !intake.is_stream();
    }

    static inline Scene* current_ = nullptr;  // for a retry_if, which has no other way to know it

    std::map<std::string, Fate> fates_;
    std::size_t asked_ = 0;  // calls of the retry policy
    std::size_t failed_attempts_ = 0;
    bool window_follows_ = false;  // the limits
    Intake unknown_intake_{.name = '?'};
    Fate unknown_fate_{.intake = &unknown_intake_};
};

struct AwaitedSink {
    Scene& scene;

    asio::awaitable<void> put(const sluice::Query& query, const sluice::StageResult<>& why) {
        co_await pause(scene.choices);
        scene.put(query, why);
    }
};

struct PlainSink {
    Scene& scene;

    void put(const sluice::Query& query, const sluice::StageResult<>& why) { scene.put(query, why); }
};

}  // namespace properties
