// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/checkpoint.hpp>
#include <sluice/pipeline/dead_letter.hpp>
#include <sluice/pipeline/drain.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/testing/run.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::Query;
using sluice::Reason;
using test::Model;
using test::Task;
using test::timed;
using test::VirtualTimer;

struct Draft {
    std::optional<std::string> plan;
    std::optional<std::string> text;
};

using DraftRun = sluice::Run<Draft>;
using DraftResult = sluice::RecordResult<Draft>;
using DraftStage = sluice::Stage<test::Endpoint, VirtualTimer>;

std::string fields_of(const Draft& draft) {
    return draft.plan.value_or("-").substr(0, 4) + ' ' + draft.text.value_or("-").substr(0, 5);
}

// Keeps what it is given, at once.
struct PlainStore {
    std::vector<std::string> saved;
    std::vector<std::string> letters;
    bool throws = false;

    void put(const Query&, const sluice::StageResult<>& why, const Draft& draft) {
        letters.push_back(why.stage.str() + ": " + fields_of(draft));
    }
    void save(const Query& query, const Draft& draft) {
        if (throws) {
            throw std::runtime_error("the disk is full");
        }
        saved.push_back(query.id.str() + ": " + fields_of(draft));
    }
};

// Needs `latency` for each.
struct SlowStore {
    std::chrono::nanoseconds latency = 100ms;
    bool throws = false;
    int running = 0;
    int most_running = 0;
    int begun = 0;
    std::vector<std::string> saved;
    std::vector<std::string> letters;

    void put(const Query&, const sluice::StageResult<>& why, const sluice::RecordResult<Draft>& result) {
        std::string letter = why.stage.str() + " of";
        for (const auto& stage_result : result.stage_results) {
            letter += ' ' + stage_result.stage.str() + (stage_result.success ? "" : " failed");
        }
        letters.push_back(letter);
    }
    asio::awaitable<void> save(const Query&, const Draft& draft) { return keep(*this, fields_of(draft)); }

private:
    static asio::awaitable<void> keep(SlowStore& store, std::string fields) {
        ++store.begun;
        const test::Live inside(store.running);
        store.most_running = std::max(store.most_running, store.running);
        if (store.latency.count() > 0) {
            co_await test::sleep(store.latency);
        }
        if (store.throws) {
            throw std::runtime_error("the disk is full");
        }
        store.saved.push_back(std::move(fields));
    }
};

// Plans and writes, one after the other or side by side.
template <class Store>
struct Author {
    Model plan{"plan", 10ms};
    Model write{"write", 20ms};
    Store store;
    asio::io_context context{1};
    DraftStage planner{timed(context.get_executor()), "plan", 9, test::Endpoint{&plan}};
    DraftStage writer{timed(context.get_executor()), "write", 9, test::Endpoint{&write}};

    auto pipeline(bool side_by_side) {
        auto route = [side_by_side, p = planner, w = writer](DraftRun& run) -> asio::awaitable<void> {
            const std::string& text = run.query().text;
            if (side_by_side) {
                co_await run.all(run.step(&Draft::plan, p, text), run.step(&Draft::text, w, text));
            } else {
                co_await run.step(&Draft::plan, p, text);
                co_await run.step(&Draft::text, w, text);
            }
        };
        return sluice::Pipeline(timed(context.get_executor()), std::move(route), store, 9);
    }

    template <class Pipeline>
    Task<DraftResult> start(Pipeline& made, Draft draft = {}) {
        const sluice::Checkpoint<Draft> from(Query("1", "a"), std::move(draft));
        return Task<DraftResult>(context.get_executor(), [&made, from] { return made.process_one(from); });
    }
};

}  // namespace

TEST_CASE("save: is called after each step whose model has succeeded", "[save]") {
    Author<PlainStore> author;
    auto pipeline = author.pipeline(false);

    SECTION("and not for a field that is filled") {
        auto task = author.start(pipeline, {"plan", std::nullopt});
        sluice::testing::run(author.context);
        CHECK(task.value().completed);
        CHECK(author.store.saved == std::vector<std::string>{"1: plan write"});
    }
    SECTION("and not after one that failed") {
        author.write.failures["a"] = 1;
        auto task = author.start(pipeline);
        sluice::testing::run(author.context);
        CHECK_FALSE(task.value().completed);
        CHECK(author.store.saved == std::vector<std::string>{"1: plan -"});
        CHECK(author.store.letters == std::vector<std::string>{"write: plan -"});
    }
    SECTION("all") {
        auto task = author.start(pipeline);
        sluice::testing::run(author.context);
        CHECK(task.value().completed);
        CHECK(author.store.saved == std::vector<std::string>{"1: plan -", "1: plan write"});
    }
}

TEST_CASE("save: a step completes when its record has been saved", "[save]") {
    Author<SlowStore> author;
    auto pipeline = author.pipeline(false);
    auto task = author.start(pipeline);
    CHECK(sluice::testing::run(author.context) == 10ms + 100ms + 20ms + 100ms);
    CHECK(task.value().completed);
    CHECK(author.store.saved == std::vector<std::string>{"plan -", "plan write"});
}

TEST_CASE("save: of steps side by side one saves at a time, and what a save has seen is not saved again", "[save]") {
    Author<SlowStore> author;
    auto pipeline = author.pipeline(true);

    SECTION("the second step ends while the first saves") {
        auto task = author.start(pipeline);
        CHECK(sluice::testing::run(author.context) == 10ms + 100ms + 100ms);
        CHECK(task.value().completed);
        CHECK(author.store.most_running == 1);
        CHECK(author.store.saved == std::vector<std::string>{"plan -", "plan write"});
    }
    SECTION("both end before the first save begins") {
        author.write.latency = 10ms;
        auto task = author.start(pipeline);
        CHECK(sluice::testing::run(author.context) == 10ms + 100ms);
        CHECK(task.value().completed);
        CHECK(author.store.saved == std::vector<std::string>{"plan write"});
    }
    SECTION("a save that failed has saved nothing for the other") {
        author.write.latency = 10ms;
        author.store.throws = true;
        auto task = author.start(pipeline);
        CHECK(sluice::testing::run(author.context) == 10ms + 100ms + 100ms);
        CHECK(author.store.begun == 2);
        CHECK_FALSE(task.value().completed);
        CHECK(author.store.letters == std::vector<std::string>{"save of plan write save failed save failed"});
    }
}

TEST_CASE("save: if it throws, the field stays filled, and the query is a dead letter with the reason `checkpoint`",
          "[save]") {
    Author<PlainStore> author;
    author.store.throws = true;
    auto pipeline = author.pipeline(false);
    auto task = author.start(pipeline);
    sluice::testing::run(author.context);
    const auto& result = task.value();
    CHECK_FALSE(result.completed);
    REQUIRE(result.failure());
    CHECK(result.failure()->stage == "save");
    CHECK(result.failure()->query_id == "1");
    CHECK(result.failure()->reason == Reason::checkpoint);
    CHECK(result.failure()->error.message() == "the disk is full");
    CHECK(result.record.plan == "plan(a)");
    CHECK(author.store.letters == std::vector<std::string>{"save: plan -"});
    CHECK(author.write.calls() == 0);
}

TEST_CASE("save: of several failures side by side, the dead letter names the first", "[save][all]") {
    Author<SlowStore> author;
    author.store.throws = true;
    SECTION("of two saves") {
        auto pipeline = author.pipeline(true);
        auto task = author.start(pipeline);
        sluice::testing::run(author.context);
        REQUIRE(task.value().stage_results.size() == 4);
        CHECK(task.value().failed == 2);
        CHECK(task.value().stage_results[2].reason == Reason::checkpoint);
        CHECK(task.value().stage_results[3].reason == Reason::checkpoint);
    }
    SECTION("of a model and a save") {
        author.plan.failures["a"] = 1;
        auto pipeline = author.pipeline(true);
        auto task = author.start(pipeline);
        sluice::testing::run(author.context);
        REQUIRE(task.value().failure());
        CHECK(task.value().failure()->stage == "plan");
        CHECK(author.store.letters == std::vector<std::string>{"plan of plan failed write save failed"});
    }
    SECTION("of a save and a model") {
        author.store.latency = 5ms;
        author.write.failures["a"] = 1;
        auto pipeline = author.pipeline(true);
        auto task = author.start(pipeline);
        sluice::testing::run(author.context);
        REQUIRE(task.value().failure());
        CHECK(task.value().failure()->stage == "save");
        CHECK(author.store.letters == std::vector<std::string>{"save of plan save failed write failed"});
    }
}

TEST_CASE("save: if it throws after step_or_error(), that ends the route too", "[save]") {
    Author<PlainStore> author;
    author.store.throws = true;
    auto route = [w = author.writer](DraftRun& run) -> asio::awaitable<void> {
        co_await run.step_or_error(&Draft::text, w, run.query().text);
        FAIL("the route goes on");
    };
    sluice::Pipeline pipeline(timed(author.context.get_executor()), std::move(route), author.store, 1);
    auto task = author.start(pipeline);
    sluice::testing::run(author.context);
    REQUIRE(task.value().failure());
    CHECK(task.value().failure()->reason == Reason::checkpoint);
}

TEST_CASE("save: a route that swallows its failure does not complete", "[save]") {
    Author<PlainStore> author;
    author.store.throws = true;
    auto route = [p = author.planner, w = author.writer](DraftRun& run) -> asio::awaitable<void> {
        try {
            co_await run.step(&Draft::plan, p, run.query().text);
        } catch (const sluice::StepFailed&) {
        }
        co_await run.step_or_error(&Draft::text, w, run.query().text);
    };
    sluice::Pipeline pipeline(timed(author.context.get_executor()), std::move(route), author.store, 1);
    auto task = author.start(pipeline);
    sluice::testing::run(author.context);
    REQUIRE(task.value().failure());
    CHECK(task.value().failure()->reason == Reason::checkpoint);
    CHECK(author.store.letters.size() == 1);
}

TEST_CASE("save: the dead letter of steps side by side names the first that failed and lists the others", "[save]") {
    Author<SlowStore> author;
    author.plan.failures["a"] = 1;
    author.write.failures["a"] = 1;
    auto pipeline = author.pipeline(true);
    auto task = author.start(pipeline);
    sluice::testing::run(author.context);
    CHECK(author.store.letters == std::vector<std::string>{"plan of plan failed write failed"});
}

TEST_CASE("save: no cancellation reaches it, and what was paid for is saved", "[save][cancellation]") {
    Author<SlowStore> author;
    auto pipeline = author.pipeline(false);
    auto task = author.start(pipeline);

    SECTION("one that has begun") {
        test::run_until(author.context, 15ms);
        CHECK(author.store.running == 1);
        task.cancel();
        CHECK(sluice::testing::run(author.context) == 95ms);
        CHECK(task.aborted());
        CHECK(author.store.saved == std::vector<std::string>{"plan -"});
        CHECK(author.write.calls() == 0);
    }
    SECTION("the last one, so that the query completes") {
        test::run_until(author.context, 135ms);
        task.cancel();
        sluice::testing::run(author.context);
        CHECK(task.value().completed);
        CHECK(author.store.saved.size() == 2);
    }
}

TEST_CASE("save: a model that ends in spite of its cancellation is saved", "[save][cancellation]") {
    Author<PlainStore> author;
    const auto stubborn = [](const std::string& text) -> asio::awaitable<std::string> {
        try {
            co_await test::sleep(10ms);
        } catch (const boost::system::system_error&) {
        }
        co_return text;
    };
    const sluice::Stage stage(timed(author.context.get_executor()), "stubborn", 1, stubborn);
    auto route = [stage](DraftRun& run) -> asio::awaitable<void> {
        co_await run.step(&Draft::plan, stage, run.query().text);
        co_await run.step(&Draft::text, stage, run.query().text);
    };
    sluice::Pipeline pipeline(timed(author.context.get_executor()), std::move(route), author.store, 1);
    auto task = author.start(pipeline);
    test::run_until(author.context, 5ms);
    task.cancel();
    sluice::testing::run(author.context);
    CHECK(task.aborted());
    CHECK(author.store.saved == std::vector<std::string>{"1: a -"});
}

TEST_CASE("save: thousands in a row that answer at once need no stack", "[save][stress]") {
    Author<SlowStore> author;
    author.store.latency = 0ms;
    author.plan.latency = 0ms;
    test::StackSpan span;
    auto route = [&span, p = author.planner](DraftRun& run) -> asio::awaitable<void> {
        for (int i = 0; i != 5000; ++i) {
            co_await run.step(&Draft::plan, p, run.query().text);
            run->plan.reset();
            span.touch();
        }
    };
    sluice::Pipeline pipeline(timed(author.context.get_executor()), std::move(route), author.store, 1);
    auto task = author.start(pipeline);
    sluice::testing::run(author.context);
    CHECK(task.value().completed);
    CHECK(author.store.saved.size() == 5000);
    CHECK(span.size() < 100'000);
}

TEST_CASE("save: cancelled, drained or destroyed at every step, nothing is lost", "[save][stress]") {
    enum class End { cancelled, drained, context_first, pipeline_first };
    const End end = GENERATE(End::cancelled, End::drained, End::context_first, End::pipeline_first);
    const bool side_by_side = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        auto author = std::make_unique<Author<SlowStore>>();
        auto pipeline = std::make_unique<decltype(author->pipeline(true))>(author->pipeline(side_by_side));
        auto task = author->start(*pipeline);
        test::poll(author->context);
        steps.take(author->context);
        std::optional<Task<sluice::DrainReport<Draft>>> report;
        if (end == End::cancelled) {
            task.cancel();
        } else if (end == End::drained) {
            report =
                Task<sluice::DrainReport<Draft>>(author->context.get_executor(), [&] { return pipeline->drain(0ms); });
        } else if (end == End::context_first) {
            author.reset();
            return;
        } else {
            pipeline.reset();
        }
        sluice::testing::run(author->context);
        REQUIRE(task.done());
        CHECK(author->store.running == 0);
        CHECK(author->store.letters.empty());
        const auto saves = author->store.saved.size();
        CHECK(static_cast<int>(saves) == author->store.begun);  // each that began has ended
        if (task.succeeded() && task.value().unfinished) {
            const Draft& record = task.value().record;
            CHECK(author->store.saved.empty() == (!record.plan && !record.text));
            CHECK((saves == 0 || author->store.saved.back() == fields_of(record)));
        }
    });
}

namespace {

using sluice::detail::HasSave;
using sluice::detail::PutsSomethingElse;

struct FinalSink final {
    void put(const Query&, const sluice::StageResult<>&) {}
};
struct SinkWithDefault {
    void put(const Query&, const sluice::StageResult<>&, int = 0) {}
};
class AbstractSink {
public:
    virtual void put(const Query&, const sluice::StageResult<>&) = 0;

protected:
    ~AbstractSink() = default;
};
struct GenericSink {
    template <class Why>
    void put(const Query&, const Why&) {}
};

// What is no mistake.
static_assert(!HasSave<FinalSink> && !HasSave<SinkWithDefault> && !HasSave<AbstractSink> && !HasSave<GenericSink> &&
              !HasSave<const FinalSink> && HasSave<PlainStore> && HasSave<const PlainStore>);
static_assert(!PutsSomethingElse<FinalSink> && !PutsSomethingElse<SinkWithDefault> &&
              !PutsSomethingElse<AbstractSink> && !PutsSomethingElse<GenericSink>);

// Stores more than drafts.
struct Archive : PlainStore {
    using PlainStore::put;
    using PlainStore::save;

    static void put(const Query&, const sluice::StageResult<>&) { FAIL("the record is not there"); }
    static void put(const Query&, const sluice::StageResult<>&, const std::string&) { FAIL("that is no record"); }
    static void save(const Query&, const std::string&) { FAIL("that is no record"); }
};

}  // namespace

TEST_CASE("save: a sink with several of a name has one for the record", "[save]") {
    Author<Archive> author;
    auto pipeline = author.pipeline(false);
    author.write.failures["b"] = 1;
    Task<std::vector<DraftResult>> batch(author.context.get_executor(), [&] {
        return pipeline.process_batch(std::vector<Query>({Query("a", "a"), Query("b", "b")}));
    });
    sluice::testing::run(author.context);
    CHECK(batch.value()[0].completed);
    CHECK(author.store.saved == std::vector<std::string>{"a: plan -", "b: plan -", "a: plan write"});
    CHECK(author.store.letters == std::vector<std::string>{"write: plan -"});
}
