// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "choices.hpp"
#include "metered.hpp"

#include <sluice/observer.hpp>
#include <sluice/pipeline/checkpoint.hpp>
#include <sluice/pipeline/drain.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage_error.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace properties::any_shape {

/// The record of a query.
struct Sheet {
    std::optional<std::string> first;
    std::optional<std::string> second;
    std::optional<std::string> third;
    int rounds = 0;              // of its loop
    std::shared_ptr<void> life;  // of the query: gone when the last copy of its record is
};

using SheetResult = sluice::RecordResult<Sheet>;
using SheetCheckpoint = sluice::Checkpoint<Sheet>;
using Report = sluice::DrainReport<Sheet>;
inline constexpr std::array fields{&Sheet::first, &Sheet::second, &Sheet::third};

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct InputFailure : Failure {
    using Failure::Failure;
};

enum class Shape {
    in_line,
    beside,
    three_beside,
    nested,
    loop,
    branch,
    fallback,
    tolerant,
    deadline,
    throws,
    swallows,
    chain
};
inline constexpr std::size_t shapes = 12;

/// Whether one step may fail while the other is being saved.
inline bool has_all(Shape shape) {
    return shape == Shape::beside || shape == Shape::three_beside || shape == Shape::nested ||
           shape == Shape::tolerant || shape == Shape::swallows || shape == Shape::chain;
}

/// The name of a stage.
inline std::string name_of(std::size_t stage) { return "stage " + std::to_string(stage); }

/// What a query is to be: how its route goes, and what its record has already.
struct Draft {
    std::string id;
    Shape shape = Shape::in_line;
    std::size_t turn = 0;  // less than 3; which stages it takes, and which branch
    Sheet sheet;
};

enum class Kind { one, owned, referenced, source };

/// An operation that takes queries.
struct Intake {
    Kind kind = Kind::one;
    std::vector<Draft> drafts;
    std::size_t throws_at = std::numeric_limits<std::size_t>::max();
    std::size_t taken = 0;
    std::size_t in_route = 0;
    std::size_t drained_at = 0;  // alone, as a stream
    bool asks = false;           // awaits its source
    bool threw = false;          // its range or source has
    bool stopped = false;        // cancelled, closed or dropped
    bool in_full = false;        // its end was seen, so each of its queries must have been
    bool rest_is_due = false;    // so is what a drain has left of it
};

/// The values of the fields of a record.
using Known = std::array<std::optional<std::string>, 3>;

/// What became of one query. Moments are counted in events; 0 if there was none.
struct Fate {
    Draft draft;
    Intake* intake = nullptr;
    Known known;                 // given, or returned by a model
    std::optional<Known> saved;  // what was known when the last save began that has succeeded
    Known paid;                  // the last values of models
    std::size_t taken_at = 0;
    std::size_t route_over_at = 0;
    std::size_t reported_at = 0;  // as a dead letter
    std::size_t gone_at = 0;      // its record
    int routes = 0;
    int puts = 0;
    int reports = 0;
    int seen = 0;             // in a result, or a checkpoint of a drain
    bool refused = false;     // by a pipeline that drains
    bool returned = false;    // its route has
    bool swallowed = false;   // its route a cancellation
    bool cut_itself = false;  // its route has cancelled a step
    bool completed = false;   // as was seen
    bool unfinished = false;  // as was seen
    bool sink_threw = false;
    bool is_saving = false;
    std::size_t failed_saves = 0;

    // Whether it is what a drain has left in a container that was moved in.
    bool is_rest(std::size_t drained_at) const {
        return intake->kind == Kind::owned && (is_after(drained_at) || is_after(intake->drained_at));
    }

    // The moment when it had left the pipeline.
    std::size_t ended_at() const {
        if (routes == 0 && is_after(intake->drained_at)) {
            return taken_at;  // its stream was drained when it came
        }
        return puts != 0 ? reported_at : routes != 0 ? route_over_at : gone_at;
    }

private:
    bool is_after(std::size_t moment) const { return moment != 0 && taken_at > moment; }
};

/// An argument of a model.
struct Call {
    Fate* fate;
    std::size_t field;
};

/// Waits for a while, whether it is cancelled or not.
inline asio::awaitable<void> linger(Choices& choices) {
    const bool throws = co_await asio::this_coro::throw_if_cancelled();
    co_await asio::this_coro::throw_if_cancelled(false);
    VirtualTimer timer(co_await asio::this_coro::executor, std::chrono::nanoseconds(choices.below(40)));
    co_await timer.async_wait(asio::bind_cancellation_slot(asio::cancellation_slot(), asio::deferred));
    co_await asio::this_coro::throw_if_cancelled(throws);
}

/// Models, a sink and inputs that wait, fail, hang and deliver late, and a record of the queries.
///
/// They check with expect(), since an exception would be part of the run.
class Scene : public Metered {
public:
    explicit Scene(Choices& c) : choices(c) {
        for (std::ptrdiff_t& limit : limits) {
            limit = static_cast<std::ptrdiff_t>(1 + choices.below(3));
        }
    }

    Draft draft(std::string id) {
        Draft made{std::move(id), static_cast<Shape>(choices.below(shapes)), choices.below(3), {}};
        for (const auto field : fields) {
            if (choices.one_in(8)) {
                made.sheet.*field = "given";
            }
        }
        return made;
    }

    /// Of a query that is to go on where it stopped.
    static Draft again(const Fate& fate, const Sheet& record) {
        Draft draft = fate.draft;
        draft.id += "'";
        draft.sheet = record;
        draft.sheet.life.reset();
        return draft;
    }

    /// Makes a query, for its pipeline to take in at once.
    SheetCheckpoint take(Intake& intake, std::size_t index) {
        // What a drain has left in a container that was moved in comes back, too.
        const bool drained = drained_at != 0 || intake.drained_at != 0;
        const bool is_rest = drained && intake.kind == Kind::owned;
        expect(!intake.threw, "an input was asked after it had failed");
        expect(is_rest || intake.kind == Kind::source || !intake.stopped, "a query was taken after the end");
        expect(!drained || intake.kind != Kind::referenced, "a drain has taken from a range of somebody else");
        if (index == intake.throws_at) {
            intake.threw = true;
            throw InputFailure("input");
        }
        expect(index == intake.taken, "a query was taken twice, or out of order");
        ++intake.taken;
        const Draft& taken = intake.drafts[index];
        const auto [at, is_new] = fates.try_emplace(taken.id);
        expect(is_new, "a query was taken twice");
        Fate& fate = at->second;
        fate.draft = taken;
        fate.intake = &intake;
        fate.taken_at = ++moment;
        Sheet sheet = taken.sheet;
        for (std::size_t field = 0; field != fields.size(); ++field) {
            fate.known[field] = sheet.*fields[field];
        }
        sheet.life = std::shared_ptr<void>(&fate, [this](void* gone) { static_cast<Fate*>(gone)->gone_at = ++moment; });
        perhaps_disturb();
        return {sluice::Query(taken.id, taken.id), std::move(sheet)};
    }

    asio::awaitable<std::string> model(std::size_t stage, Call call) {
        const struct Running {
            std::ptrdiff_t& running;
            ~Running() { --running; }
        } counted{running[stage]};
        Fate& fate = *call.fate;
        auto& known = fate.known[call.field];
        expect(++running[stage] <= limits[stage], "a limit was exceeded");
        expect(!known, "a model was called for a field that has a value");
        expect(fate.puts == 0 && fate.seen == 0, "a model was called for a query that has ended");
        if (choices.one_in(5)) {
            co_await linger(choices);
        } else {
            co_await pause(choices);
        }
        if (choices.one_in(5)) {
            throw Failure("model");
        }
        if (choices.one_in(30)) {
            throw boost::system::system_error(asio::error::operation_aborted);  // a failure, unless it was cancelled
        }
        if (choices.one_in(15)) {
            VirtualTimer timer(co_await asio::this_coro::executor, std::chrono::nanoseconds(60));
            co_await timer.async_wait(asio::deferred);
        }
        known = fate.draft.id + " " + std::to_string(++values_);
        fate.paid[call.field] = known;
        co_return *known;
    }

    // Whether the value of a field is accepted.
    bool accept(Fate& fate, std::size_t field, const std::string& value) {
        expect(fate.known[field] == value, "a fallback asks about another value");
        perhaps_disturb();
        if (choices.one_in(4)) {
            fate.known[field] = fate.paid[field] = std::nullopt;
            if (choices.one_in(4)) {
                throw Failure("predicate");
            }
            return false;
        }
        return true;
    }

    asio::awaitable<void> put(const sluice::Query& query, const sluice::StageResult<>& why, const Sheet& record) {
        co_await pause(choices);
        expect(!why.success && why.error, "a dead letter without a reason");
        Fate& fate = fate_of(query);
        ++fate.puts;
        const bool blames_save = why.reason == sluice::Reason::checkpoint;
        expect(blames_save ? fate.failed_saves != 0 : fate.failed_saves == 0 || has_all(fate.draft.shape),
               "a dead letter has a wrong reason");
        expect(fate.draft.shape != Shape::tolerant || why.stage != name_of(fate.draft.turn),
               "a step_or_error() has made a dead letter");
        check_record(fate, record);
        check_saved(fate);
        letters.push_back(again(fate, record));
        perhaps_disturb();
        if (choices.one_in(10)) {
            fate.sink_threw = true;
            throw Failure("sink");
        }
    }

    // No cancellation may reach this.
    asio::awaitable<void> save(const sluice::Query& query, const Sheet& record) {
        Fate& fate = fate_of(query);
        expect(!std::exchange(fate.is_saving, true), "two saves of a query overlap");
        const struct Ended {
            bool& is_saving;
            ~Ended() { is_saving = false; }
        } ended{fate.is_saving};
        expect(fate.puts == 0 && fate.seen == 0, "a query that has ended is saved");
        check_record(fate, record);
        const Known known = fate.known;
        perhaps_disturb();
        if (choices.one_in(2)) {
            try {
                co_await pause(choices);
            } catch (const boost::system::system_error&) {
                expect(false, "a save was cancelled");
            }
        }
        if (choices.one_in(12)) {
            ++fate.failed_saves;
            throw Failure("save");
        }
        fate.saved = known;
    }

    void on_dead_letter(const sluice::Query& query, const sluice::StageResult<>& run,
                        const sluice::StageError& sink_error) noexcept override {
        Metered::on_dead_letter(query, run, sink_error);
        Fate& fate = fate_of(query);
        ++fate.reports;
        fate.reported_at = ++moment;
        expect(bool(sink_error) == fate.sink_threw, "the exception of the sink was not reported");
        perhaps_disturb();
    }

    Fate& see(const sluice::Query& query, const Sheet& record, bool unfinished) {
        Fate& fate = fate_of(query);
        ++fate.seen;
        check_record(fate, record);
        check_saved(fate);
        if (unfinished) {
            expect(drained_at != 0 || fate.intake->drained_at != 0, "a query was cut short without a drain");
            fate.unfinished = true;
            left.push_back(again(fate, record));
        }
        return fate;
    }

    void see(const SheetResult& result) {
        Fate& fate = see(result.query, result.record, result.unfinished);
        const bool dead = result.failure() != nullptr;
        expect(result.completed + dead + result.unfinished == 1, "a result does not say how its query has ended");
        expect(dead == (fate.puts == 1) && dead == (fate.reports == 1), "a result does not match its dead letter");
        expect(bool(result.dead_letter_error) == fate.sink_threw, "the exception of the sink is not in the result");
        expect(!result.completed || (fate.returned && !fate.swallowed), "a query is complete without its route");
        expect(!result.completed || fate.failed_saves == 0, "a query is complete although a save has failed");
        fate.completed = result.completed;
        if (result.completed) {
            expect(is_whole(fate.draft, result.record), "a query is complete without a field");
        }
    }

    // Each query has ended in exactly one way.
    void check_fates() {
        for (const auto& [id, fate] : fates) {
            if (fate.refused) {
                continue;
            }
            const bool dead = fate.puts != 0;
            expect(fate.routes <= 1 && fate.puts <= 1 && fate.seen <= 1, "something happened twice to a query");
            expect(fate.reports == fate.puts, "a dead letter was not reported");
            expect(fate.ended_at() != 0, "a query has not ended");
            expect(!dead || !fate.unfinished, "a query has ended in two ways");
            expect(!dead || !fate.returned || fate.failed_saves != 0, "a query has ended in two ways");
            expect(fate.seen != 0 || !fate.intake->in_full, "a result was lost");
            const bool completed = fate.returned && !fate.swallowed && fate.failed_saves == 0;
            expect(completed || dead || fate.unfinished || fate.intake->stopped || fate.intake->threw,
                   "a query was lost");
        }
    }

    void add_report(Report ended) {
        for (const auto& checkpoint : ended.checkpoints) {
            const auto& fate = see_left(checkpoint);
            expect(!report || fate.intake->drained_at != 0, "a later report has checkpoints");
        }
        keep(report, std::move(ended));
    }

    // The same of the drain of a stream.
    void add_stream_report(const Intake& intake, Report ended) {
        for (const auto& checkpoint : ended.checkpoints) {
            const auto& fate = see_left(checkpoint);
            expect(fate.intake == &intake && !stream_report, "a checkpoint is in a wrong report");
        }
        keep(stream_report, std::move(ended));
    }

    // The report of a drain, if there was one, has each query that was in work or was handed over afterwards. That of a
    // stream has those of its `intake`.
    // All but those that were refused, or that a drain has left in their container.
    std::size_t queries_in_work() const {
        return static_cast<std::size_t>(std::ranges::count_if(fates, [this](const auto& each) {
            const Fate& fate = each.second;
            return !fate.refused && !fate.is_rest(drained_at);
        }));
    }

    void check_report() {
        check_report(report, drained_at, nullptr);
        for (const Intake& intake : intakes) {
            if (intake.drained_at != 0) {
                const std::size_t since = drained_at == 0 ? intake.drained_at : std::min(drained_at, intake.drained_at);
                check_report(stream_report, since, &intake);
            }
            expect(!intake.rest_is_due || intake.threw || intake.taken == intake.drafts.size(),
                   "what a stream had not taken was lost");
        }
    }

    Fate& fate_of(const sluice::Query& query) {
        const auto found = fates.find(query.id.str());
        expect(found != fates.end(), "a query is unknown");
        return found != fates.end() ? found->second : unknown_fate_;
    }

    Choices& choices;
    Actors actors;
    std::map<std::string, Fate> fates;
    std::deque<Intake> intakes;
    std::vector<Draft> letters;
    std::vector<Draft> left;  // by drains
    bool saves = false;       // the sink does
    std::array<std::ptrdiff_t, 3> limits{};
    std::array<std::ptrdiff_t, 3> running{};  // models
    std::size_t most_in_route = 0;            // of a batch or stream
    std::size_t routes = 0;                   // that run
    std::size_t moment = 0;
    std::size_t drained_at = 0;
    std::optional<Report> report;         // without its checkpoints
    std::optional<Report> stream_report;  // the same, of a stream that was drained

protected:
    // Cancels or drops something at random.
    virtual void disturb() noexcept = 0;

private:
    void check_record(const Fate& fate, const Sheet& record) {
        for (std::size_t field = 0; field != fields.size(); ++field) {
            expect(record.*fields[field] == fate.known[field], "the value of a model was lost");
        }
    }

    // If the sink saves, the last save that succeeded had what models have returned; each value that it lacks has had a
    // save of its own, which failed.
    void check_saved(const Fate& fate) {
        expect(!fate.is_saving, "a query has ended before its save");
        std::size_t lacking = 0;
        for (std::size_t field = 0; field != fields.size(); ++field) {
            lacking += fate.paid[field] && !(fate.saved && (*fate.saved)[field] == fate.paid[field]);
        }
        expect(!saves || lacking <= fate.failed_saves, "a value was not saved");
    }

    Fate& see_left(const SheetCheckpoint& checkpoint) {
        Fate& fate = see(checkpoint.query, checkpoint.record, true);
        expect(fate.intake->kind != Kind::one && !fate.completed && fate.puts == 0, "a checkpoint is superfluous");
        return fate;
    }

    void keep(std::optional<Report>& kept, Report ended) {
        if (kept) {
            expect(ended.completed == kept->completed && ended.dead == kept->dead &&
                       ended.cancelled == kept->cancelled && ended.unfinished == kept->unfinished,
                   "two reports of one drain differ");
        }
        ended.checkpoints.clear();
        kept = std::move(ended);
    }

    void check_report(const std::optional<Report>& found, std::size_t since, const Intake* of_stream) {
        if (!found) {
            return;
        }
        Report expected;
        std::size_t ambiguous = 0;  // a route that had cancelled a step itself may have been cancelled, too
        for (const auto& [id, fate] : fates) {
            if (fate.refused || fate.is_rest(drained_at) || fate.ended_at() < since ||
                (of_stream && fate.intake != of_stream)) {
                continue;
            }
            if (fate.unfinished) {
                ++expected.unfinished;
            } else if (fate.puts != 0) {
                ++expected.dead;
            } else if (!fate.returned || fate.swallowed) {
                ++expected.cancelled;
            } else if (fate.cut_itself && !fate.completed) {
                ++ambiguous;
            } else {
                ++expected.completed;
            }
        }
        expect(found->completed + found->dead + found->cancelled + found->unfinished ==
                   expected.completed + expected.dead + expected.cancelled + expected.unfinished + ambiguous,
               "a drain has lost a query, or counted one twice");
        expect(found->dead == expected.dead, "a drain has counted dead letters wrongly");
        expect(found->unfinished == expected.unfinished, "an unfinished query is in no result and no checkpoint");
        expect(found->completed >= expected.completed && found->cancelled >= expected.cancelled,
               "a drain has counted completed or cancelled queries wrongly");
    }

    static bool is_whole(const Draft& draft, const Sheet& sheet) {
        switch (draft.shape) {
            case Shape::branch:
                return sheet.first && (draft.turn == 0 ? sheet.second : sheet.third);
            case Shape::fallback:
            case Shape::tolerant:
            case Shape::deadline:
            case Shape::chain:
                return sheet.first && sheet.second;
            case Shape::swallows:
                return true;
            default:
                return sheet.first && sheet.second && sheet.third;
        }
    }

    void perhaps_disturb() noexcept {
        if (choices.one_in(20)) {
            check_metrics();
            disturb();
        }
    }

    std::size_t values_ = 0;
    Intake unknown_intake_;
    Fate unknown_fate_{.draft = {}, .intake = &unknown_intake_, .known = {}, .saved = {}, .paid = {}};
};

}  // namespace properties::any_shape
