// SPDX-License-Identifier: BSL-1.0
#include <sluice/observer.hpp>
#include <sluice/pipeline/channel_source.hpp>
#include <sluice/pipeline/checkpoint.hpp>
#include <sluice/pipeline/drain.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/sync/task_group.hpp>
#include <sluice/sync/timeout.hpp>
#include <sluice/testing/interleaving_context.hpp>
#include <sluice/testing/run.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/experimental/channel.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/system/error_code.hpp>
#include <boost/version.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::Checkpoint;
using sluice::Query;
using sluice::Reason;
using sluice::RecordResult;
using sluice::StageOptions;
using sluice::StageResult;
using test::Model;
using test::Task;
using test::timed;
using test::VirtualTimer;

struct Ticket {
    std::optional<std::string> intent;
    std::optional<std::string> entities;
    std::optional<std::string> reply;
};

using TicketRun = sluice::Run<Ticket>;
using TicketResult = RecordResult<Ticket>;
using TicketStage = sluice::Stage<test::Endpoint, VirtualTimer>;

struct TicketSink {
    struct Letter {
        Query query;
        StageResult<> reason;
        Ticket record;
    };
    std::vector<Letter> letters;

    void put(const Query& query, const StageResult<>& reason, const Ticket& record) {
        letters.push_back({query, reason, record});
    }
};

// Three models behind a stage each, and a sink that keeps the record. The context is destroyed first.
struct Desk {
    Model classify{"classify", 10ms};
    Model extract{"extract", 20ms};
    Model generate{"generate", 40ms};
    TicketSink sink;
    asio::io_context context{1};
    TicketStage classifier;
    TicketStage extractor;
    TicketStage generator;

    explicit Desk(std::ptrdiff_t limit = 9, const StageOptions& options = {})
        : classifier(timed(context.get_executor()), "classify", limit, test::Endpoint{&classify}, options),
          extractor(timed(context.get_executor()), "extract", limit, test::Endpoint{&extract}, options),
          generator(timed(context.get_executor()), "generate", limit, test::Endpoint{&generate}, options) {}

    template <class Route>
    auto pipeline(Route route, std::ptrdiff_t window = 9) {
        return sluice::Pipeline(timed(context.get_executor()), std::move(route), sink, window);
    }

    // classify, then extract, then generate
    auto in_line() {
        return [c = classifier, e = extractor, g = generator](TicketRun& run) -> asio::awaitable<void> {
            co_await run.step(&Ticket::intent, c, run.query().text);
            co_await run.step(&Ticket::entities, e, run.query().text);
            co_await run.step(&Ticket::reply, g, &Ticket::intent, &Ticket::entities, run.query().text);
        };
    }

    // classify and extract side by side, then generate
    auto side_by_side() {
        return [c = classifier, e = extractor, g = generator](TicketRun& run) -> asio::awaitable<void> {
            co_await run.all(run.step(&Ticket::intent, c, run.query().text),
                             run.step(&Ticket::entities, e, run.query().text));
            co_await run.step(&Ticket::reply, g, &Ticket::intent, &Ticket::entities, run.query().text);
        };
    }

    template <class Pipeline, class Item>
    TicketResult run_one(Pipeline& pipeline, Item item) {
        Task<TicketResult> task(context.get_executor(), [&] { return pipeline.process_one(item); });
        sluice::testing::run(context);
        REQUIRE(task.succeeded());
        return std::move(task.value());
    }

    int calls() const { return classify.calls() + extract.calls() + generate.calls(); }
    bool idle() const {
        return classifier.endpoint().active() + extractor.endpoint().active() + generator.endpoint().active() == 0;
    }
};

std::string reply_to(const std::string& text) {
    return "generate(classify(" + text + "),extract(" + text + ")," + text + ")";
}

std::vector<std::string> stages_of(const TicketResult& result) {
    std::vector<std::string> names;
    for (const auto& stage_result : result.stage_results) {
        names.push_back(stage_result.stage.str() + (stage_result.success ? "" : " failed"));
    }
    return names;
}

}  // namespace

TEST_CASE("pipeline of any shape: a route fills in the record of its query", "[any_shape]") {
    Desk desk;
    auto pipeline = desk.pipeline(desk.in_line());
    const auto result = desk.run_one(pipeline, Query("1", "a"));
    CHECK(result.completed);
    CHECK(result.failure() == nullptr);
    CHECK(result.query.id == "1");
    CHECK(result.record.reply == reply_to("a"));
    CHECK(stages_of(result) == std::vector<std::string>{"classify", "extract", "generate"});
    CHECK(desk.idle());
}

TEST_CASE("pipeline of any shape: a batch has the results in the order of its queries, at most `window` at once",
          "[any_shape]") {
    Desk desk;
    auto pipeline = desk.pipeline(desk.in_line(), 2);
    desk.classify.latency_of = [](const std::string& text) { return text == "t0" ? 30ms : 10ms; };
    Task<std::vector<TicketResult>> batch(desk.context.get_executor(),
                                          [&] { return pipeline.process_batch(test::make_queries(5)); });
    sluice::testing::run(desk.context);
    REQUIRE(batch.succeeded());
    REQUIRE(batch.value().size() == 5);
    for (std::size_t i = 0; i != 5; ++i) {
        CHECK(batch.value()[i].query.id == "q" + std::to_string(i));
        CHECK(batch.value()[i].record.reply == reply_to("t" + std::to_string(i)));
    }
    CHECK(pipeline.window() == 2);
    CHECK(desk.classify.peak == 2);
}

TEST_CASE("pipeline of any shape: a stream has the results as they complete", "[any_shape]") {
    Desk desk;
    auto pipeline = desk.pipeline(desk.side_by_side(), 3);
    desk.generate.latency_of = [](const std::string& text) { return text == "t0" ? 200ms : 10ms; };
    std::vector<std::size_t> indexes;
    Task<> task(desk.context.get_executor(), [&] {
        return [](auto& from, auto& into) -> asio::awaitable<void> {
            auto stream = from.process_stream(test::make_queries(3));
            while (auto item = co_await stream.next()) {
                CHECK(item->result.completed);
                into.push_back(item->index);
            }
        }(pipeline, indexes);
    });
    sluice::testing::run(desk.context);
    CHECK(task.succeeded());
    CHECK(indexes == std::vector<std::size_t>{1, 2, 0});
}

TEST_CASE("pipeline of any shape: the first step that fails ends the route, and the sink has the record",
          "[any_shape]") {
    Desk desk;
    desk.extract.failures["a"] = 1;
    auto pipeline = desk.pipeline(desk.in_line());
    const auto result = desk.run_one(pipeline, Query("1", "a"));
    CHECK_FALSE(result.completed);
    REQUIRE(result.failure());
    CHECK(result.failure()->stage == "extract");
    CHECK(result.failure()->reason == Reason::model);
    CHECK(result.failed == 1);
    REQUIRE(desk.sink.letters.size() == 1);
    CHECK(desk.sink.letters[0].reason.error.message() == "cannot extract a");
    CHECK(desk.sink.letters[0].record.intent == "classify(a)");
    CHECK_FALSE(desk.sink.letters[0].record.entities);
    CHECK(desk.generate.calls() == 0);
}

TEST_CASE("pipeline of any shape: a record is a checkpoint, and what is filled is not paid for again", "[any_shape]") {
    Desk desk;
    desk.generate.failures["a"] = 1;
    auto pipeline = desk.pipeline(desk.side_by_side());
    auto first = desk.run_one(pipeline, Query("1", "a"));
    REQUIRE_FALSE(first.completed);
    REQUIRE(desk.calls() == 3);

    SECTION("alone") {
        const auto again = desk.run_one(pipeline, Checkpoint<Ticket>(std::move(first)));
        CHECK(again.completed);
        CHECK(again.record.reply == reply_to("a"));
        CHECK(stages_of(again) == std::vector<std::string>{"generate"});
        CHECK(desk.calls() == 4);
    }
    SECTION("in a batch, with queries made by a projection") {
        const auto to_checkpoint = [](const TicketSink::Letter& letter) {
            return Checkpoint<Ticket>(letter.query, letter.record);
        };
        const auto letters = std::exchange(desk.sink.letters, {});
        Task<std::vector<TicketResult>> batch(desk.context.get_executor(),
                                              [&] { return pipeline.process_batch(letters, to_checkpoint); });
        sluice::testing::run(desk.context);
        REQUIRE(batch.succeeded());
        CHECK(batch.value()[0].completed);
        CHECK(desk.calls() == 4);
    }
    SECTION("in a stream of checkpoints") {
        std::vector<Checkpoint<Ticket>> checkpoints;
        checkpoints.emplace_back(std::move(first));
        auto stream = pipeline.process_stream(std::move(checkpoints));
        Task<std::optional<sluice::StreamItem<TicketResult>>> item(desk.context.get_executor(),
                                                                   [&] { return stream.next(); });
        sluice::testing::run(desk.context);
        REQUIRE(item.value());
        CHECK(item.value()->result.completed);
        CHECK(desk.calls() == 4);
    }
    SECTION("complete already") {
        const Ticket all{"i", "e", "r"};
        CHECK(desk.run_one(pipeline, Checkpoint<Ticket>(Query("2", "b"), all)).completed);
        CHECK(desk.calls() == 3);
    }
}

namespace {

// Delivers three queries, one each millisecond, of which the first `index` fields are known.
struct Resumed {
    std::size_t delivered = 0;

    static Checkpoint<Ticket> at(std::size_t index) {
        Checkpoint<Ticket> checkpoint(test::make_query(index), Ticket());
        if (index > 0) {
            checkpoint.record.intent = "kept";
        }
        if (index > 1) {
            checkpoint.record.entities = "kept";
        }
        return checkpoint;
    }

    asio::awaitable<std::optional<Checkpoint<Ticket>>> next() { return produce(*this); }

private:
    static asio::awaitable<std::optional<Checkpoint<Ticket>>> produce(Resumed& resumed) {
        co_await test::sleep(1ms);
        if (resumed.delivered == 3) {
            co_return std::nullopt;
        }
        co_return at(resumed.delivered++);
    }
};

// Delivers numbers, from which resumed_if_even() makes the same queries.
struct ResumedNumbers {
    std::size_t delivered = 0;

    asio::awaitable<std::optional<std::size_t>> next() { return produce(*this); }

private:
    static asio::awaitable<std::optional<std::size_t>> produce(ResumedNumbers& numbers) {
        co_await test::sleep(1ms);
        if (numbers.delivered == 6) {
            co_return std::nullopt;
        }
        co_return numbers.delivered++;
    }
};

std::optional<Checkpoint<Ticket>> resumed_if_even(std::size_t number) {
    if (number % 2 != 0) {
        return std::nullopt;
    }
    return Resumed::at(number / 2);
}

using TicketChannel = asio::experimental::channel<void(boost::system::error_code, Checkpoint<Ticket>)>;

asio::awaitable<void> send_resumed(TicketChannel& channel) {
    for (std::size_t i = 0; i != 3; ++i) {
        co_await channel.async_send(boost::system::error_code(), Resumed::at(i), asio::deferred);
    }
    channel.close();
}

}  // namespace

TEST_CASE("pipeline of any shape: each query of an asynchronous source of checkpoints goes on at its first empty field",
          "[any_shape][source][channel]") {
    enum class From { source, projection, channel };
    const From from = GENERATE(From::source, From::projection, From::channel);
    const bool as_stream = GENERATE(false, true);
    Desk desk;
    auto pipeline = desk.pipeline(desk.in_line(), 2);
    const auto executor = desk.context.get_executor();
    Resumed source;
    ResumedNumbers numbers;
    TicketChannel channel(executor, 1);
    std::optional<Task<>> sender;
    if (from == From::channel) {
        sender.emplace(executor, [&] { return send_resumed(channel); });
    }
    std::vector<TicketResult> results(3);
    if (as_stream) {
        auto stream = from == From::source       ? pipeline.process_stream(source)
                      : from == From::projection ? pipeline.process_stream(numbers, resumed_if_even)
                                                 : pipeline.process_stream(sluice::ChannelSource(channel));
        Task<> consumer(executor, [&] {
            return [](auto& items, auto& into) -> asio::awaitable<void> {
                while (auto item = co_await items.next()) {
                    into.at(item->index) = std::move(item->result);
                }
            }(stream, results);
        });
        sluice::testing::run(desk.context);
        CHECK(consumer.succeeded());
    } else {
        Task<std::vector<TicketResult>> batch(executor, [&] {
            return from == From::source       ? pipeline.process_batch(source)
                   : from == From::projection ? pipeline.process_batch(numbers, resumed_if_even)
                                              : pipeline.process_batch(sluice::ChannelSource(channel));
        });
        sluice::testing::run(desk.context);
        REQUIRE(batch.succeeded());
        results = std::move(batch.value());
    }
    REQUIRE(results.size() == 3);
    CHECK(results[0].record.reply == reply_to("t0"));
    CHECK(results[1].record.reply == "generate(kept,extract(t1),t1)");
    CHECK(results[2].record.reply == "generate(kept,kept,t2)");
    CHECK(stages_of(results[0]) == std::vector<std::string>{"classify", "extract", "generate"});
    CHECK(stages_of(results[1]) == std::vector<std::string>{"extract", "generate"});
    CHECK(stages_of(results[2]) == std::vector<std::string>{"generate"});
    CHECK(desk.calls() == 6);
}

TEST_CASE("pipeline of any shape: steps side by side run at the same time", "[any_shape][all]") {
    Desk desk;
    auto pipeline = desk.pipeline(desk.side_by_side());
    Task<TicketResult> task(desk.context.get_executor(), [&] { return pipeline.process_one(Query("1", "a")); });
    CHECK(sluice::testing::run(desk.context) == 60ms);
    CHECK(task.value().completed);
    CHECK(stages_of(task.value()) == std::vector<std::string>{"classify", "extract", "generate"});
}

TEST_CASE("pipeline of any shape: if one of several steps fails, the others finish, and there is one dead letter",
          "[any_shape][all]") {
    Desk desk;
    const bool both = GENERATE(false, true);
    desk.classify.failures["a"] = 1;
    desk.extract.failures["a"] = both ? 1 : 0;
    auto pipeline = desk.pipeline(desk.side_by_side());
    const auto result = desk.run_one(pipeline, Query("1", "a"));
    CHECK_FALSE(result.completed);
    REQUIRE(result.failure());
    CHECK(result.failure()->stage == "classify");  // the first in time
    CHECK(stages_of(result) == std::vector<std::string>{"classify failed", both ? "extract failed" : "extract"});
    REQUIRE(desk.sink.letters.size() == 1);
    CHECK(desk.sink.letters[0].record.entities.has_value() == !both);
    CHECK(desk.generate.calls() == 0);
    CHECK(desk.idle());
}

TEST_CASE("pipeline of any shape: step_or_error() returns the error, and a fallback fills the field", "[any_shape]") {
    Desk desk;
    desk.generate.failures["a"] = 1;
    auto pipeline = desk.pipeline([c = desk.classifier, g = desk.generator](TicketRun& run) -> asio::awaitable<void> {
        const sluice::StageError error = co_await run.step_or_error(&Ticket::reply, g, run.query().text);
        CHECK(error.message() == (run.query().text == "a" ? "cannot generate a" : ""));
        co_await run.step(&Ticket::reply, c, run.query().text);
    });
    const auto a = desk.run_one(pipeline, Query("1", "a"));
    CHECK(a.completed);
    CHECK(a.record.reply == "classify(a)");
    CHECK(a.failure() == nullptr);
    CHECK(stages_of(a) == std::vector<std::string>{"generate failed", "classify"});
    CHECK(desk.run_one(pipeline, Query("2", "b")).record.reply == "generate(b)");
    CHECK(desk.classify.calls() == 1);
    CHECK(desk.sink.letters.empty());
}

TEST_CASE("pipeline of any shape: a step_or_error() inside all() fails alone, and is in the results",
          "[any_shape][all]") {
    Desk desk;
    desk.classify.failures["a"] = desk.classify.failures["both"] = 1;
    desk.extract.failures["both"] = 1;
    auto pipeline = desk.pipeline([c = desk.classifier, e = desk.extractor](TicketRun& run) -> asio::awaitable<void> {
        const std::string& text = run.query().text;
        co_await run.all(run.step_or_error(&Ticket::intent, c, text), run.step(&Ticket::entities, e, text));
        CHECK(run->intent.has_value() == (text == "b"));
        CHECK(run->entities == "extract(" + text + ")");
    });
    const auto a = desk.run_one(pipeline, Query("1", "a"));
    CHECK(a.completed);
    CHECK(a.failure() == nullptr);
    CHECK_FALSE(a.record.intent);
    CHECK(a.record.entities == "extract(a)");
    CHECK(stages_of(a) == std::vector<std::string>{"classify failed", "extract"});
    CHECK(a.stage_results[0].error.message() == "cannot classify a");
    CHECK(desk.run_one(pipeline, Query("2", "b")).record.intent == "classify(b)");
    CHECK(desk.sink.letters.empty());

    const auto both = desk.run_one(pipeline, Query("3", "both"));  // the other fails, later
    REQUIRE(both.failure());
    CHECK(both.failure()->stage == "extract");
    CHECK(stages_of(both) == std::vector<std::string>{"classify failed", "extract failed"});
    CHECK(desk.sink.letters.size() == 1);
}

TEST_CASE("pipeline of any shape: an argument that is an empty field fails the step, without an attempt",
          "[any_shape]") {
    Desk desk(1);
    auto pipeline = desk.pipeline([g = desk.generator](TicketRun& run) -> asio::awaitable<void> {
        co_await run.step(&Ticket::reply, g, &Ticket::intent);
    });
    const auto result = desk.run_one(pipeline, Query("1", "a"));
    REQUIRE(result.failure());
    CHECK(result.failure()->reason == Reason::missing);
    CHECK(result.failure()->attempts == 0);
    CHECK(desk.calls() == 0);
    CHECK(desk.idle());
    CHECK(desk.sink.letters.size() == 1);
}

TEST_CASE("pipeline of any shape: a field is read when the attempt begins", "[any_shape][all]") {
    Desk desk(1);
    // The last step waits for the only slot of its stage until classify has filled in the intent.
    auto pipeline = desk.pipeline([c = desk.classifier, g = desk.generator](TicketRun& run) -> asio::awaitable<void> {
        co_await run.all(run.step(&Ticket::intent, c, run.query().text),
                         run.step(&Ticket::entities, g, std::string("other")),
                         run.step(&Ticket::reply, g, &Ticket::intent));
    });
    const auto result = desk.run_one(pipeline, Query("1", "a"));
    CHECK(result.completed);
    CHECK(result.record.reply == "generate(classify(a))");
}

TEST_CASE("pipeline of any shape: whatever else a route throws is a failure of the stage `route`", "[any_shape]") {
    Desk desk;
    auto pipeline = desk.pipeline([c = desk.classifier](TicketRun& run) -> asio::awaitable<void> {
        co_await run.step(&Ticket::intent, c, run.query().text);
        throw std::range_error("out of routes");
    });
    const auto result = desk.run_one(pipeline, Query("1", "a"));
    REQUIRE(result.failure());
    CHECK(result.failure()->stage == "route");
    CHECK(result.failure()->query_id == "1");
    CHECK(result.failure()->reason == Reason::route);
    CHECK(result.failure()->error.message() == "out of routes");
    REQUIRE(desk.sink.letters.size() == 1);
    CHECK(desk.sink.letters[0].record.intent == "classify(a)");
}

TEST_CASE("pipeline of any shape: a route that swallows a cancellation does not complete",
          "[any_shape][cancellation]") {
    Desk desk;
    auto pipeline = desk.pipeline([c = desk.classifier](TicketRun& run) -> asio::awaitable<void> {
        try {
            co_await run.step(&Ticket::intent, c, run.query().text);
        } catch (const std::exception&) {
        }
    });
    Task<TicketResult> task(desk.context.get_executor(), [&] { return pipeline.process_one(Query("1", "a")); });
    test::run_until(desk.context, 5ms);
    task.cancel();
    sluice::testing::run(desk.context);
    CHECK(task.aborted());
    CHECK(desk.sink.letters.empty());
    CHECK(desk.idle());
}

TEST_CASE("pipeline of any shape: at whatever step it is cancelled, a query without its values is not complete",
          "[any_shape][all][cancellation]") {
    const bool nested = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        Desk desk;
        auto pipeline = desk.pipeline([nested, c = desk.classifier, e = desk.extractor,
                                       g = desk.generator](TicketRun& run) -> asio::awaitable<void> {
            const auto extract = [&]() -> asio::awaitable<void> {
                co_await run.step(&Ticket::entities, e, run.query().text);
            };
            const auto generate = [&]() -> asio::awaitable<void> {
                co_await run.step(&Ticket::reply, g, run.query().text);
            };
            try {
                co_await run.step(&Ticket::intent, c, run.query().text);
                if (nested) {
                    co_await run.all(extract(), generate());
                } else {
                    co_await run.all(run.step(&Ticket::entities, e, run.query().text),
                                     run.step(&Ticket::reply, g, run.query().text));
                }
            } catch (const std::exception&) {
            }
        });
        Task<TicketResult> task(desk.context.get_executor(), [&] { return pipeline.process_one(Query("1", "a")); });
        test::poll(desk.context);
        steps.take(desk.context);
        task.cancel();
        sluice::testing::run(desk.context);
        CHECK(
            (task.aborted() || (task.value().completed && task.value().record.entities && task.value().record.reply)));
        CHECK(desk.idle());
    });
}

TEST_CASE("pipeline of any shape: a step that the route itself cancels is the affair of the route",
          "[any_shape][cancellation]") {
    Desk desk;
    const bool falls_back = GENERATE(true, false);
    auto pipeline =
        desk.pipeline([falls_back, c = desk.classifier, g = desk.generator](TicketRun& run) -> asio::awaitable<void> {
            if (run.query().text == "t0") {
                const auto generate = [&] { return run.step(&Ticket::reply, g, run.query().text); };
                try {
                    co_await sluice::with_timeout<VirtualTimer>(5ms, generate);
                } catch (const sluice::TimeoutError&) {
                    if (!falls_back) {
                        throw;
                    }
                }
            }
            co_await run.step(&Ticket::reply, c, run.query().text);
        });
    Task<std::vector<TicketResult>> batch(desk.context.get_executor(),
                                          [&] { return pipeline.process_batch(test::make_queries(2)); });
    sluice::testing::run(desk.context);
    REQUIRE(batch.succeeded());
    const auto& results = batch.value();
    CHECK(results[0].completed == falls_back);
    CHECK(results[0].record.reply == (falls_back ? std::optional<std::string>("classify(t0)") : std::nullopt));
    CHECK((falls_back || results[0].failure()->reason == Reason::route));
    CHECK(desk.sink.letters.size() == (falls_back ? 0U : 1U));
    CHECK(results[1].completed);
    CHECK(desk.idle());
}

TEST_CASE("pipeline of any shape: a loop runs a stage again, and branches leave stages out", "[any_shape]") {
    Desk desk;
    int rounds = 0;
    auto pipeline =
        desk.pipeline([&rounds, c = desk.classifier, e = desk.extractor](TicketRun& run) -> asio::awaitable<void> {
            co_await run.step(&Ticket::intent, c, run.query().text);
            if (run.query().text == "short") {
                co_return;
            }
            for (rounds = 0; rounds != 3; ++rounds) {
                co_await run.step(&Ticket::entities, e, run.query().text);
                if (rounds != 2) {
                    run->entities.reset();  // at the end of a round
                }
            }
        });
    CHECK(desk.run_one(pipeline, Query("1", "short")).completed);
    CHECK(desk.extract.calls() == 0);
    const auto result = desk.run_one(pipeline, Query("2", "long"));
    CHECK(result.completed);
    CHECK(result.stage_results.size() == 4);
    CHECK(desk.extract.calls() == 3);
}

TEST_CASE("pipeline of any shape: pipelines share stages, and so their limits", "[any_shape]") {
    Desk desk(1);
    const auto only_classify = [c = desk.classifier](TicketRun& run) -> asio::awaitable<void> {
        co_await run.step(&Ticket::intent, c, run.query().text);
    };
    auto one = desk.pipeline(only_classify);
    auto other = desk.pipeline(only_classify);
    Task<TicketResult> a(desk.context.get_executor(), [&] { return one.process_one(Query("1", "a")); });
    Task<TicketResult> b(desk.context.get_executor(), [&] { return other.process_one(Query("2", "b")); });
    CHECK(sluice::testing::run(desk.context) == 20ms);
    CHECK(a.value().completed);
    CHECK(b.value().completed);
    CHECK(desk.classify.peak == 1);
}

TEST_CASE("pipeline of any shape: the value of a model may be converted to the field, under a timeout too",
          "[any_shape]") {
    struct Lengths {
        std::optional<double> length;
    };
    Desk desk;
    const bool timeout = GENERATE(false, true);
    const sluice::Stage count(
        timed(desk.context.get_executor()), "count", 1,
        [](const std::string& text) -> asio::awaitable<int> {
            co_await test::sleep(1ms);
            co_return static_cast<int>(text.size());
        },
        StageOptions{.timeout = timeout ? std::optional<std::chrono::nanoseconds>(1s) : std::nullopt});
    test::DeadLetters sink;
    sluice::Pipeline pipeline(
        timed(desk.context.get_executor()),
        [count](sluice::Run<Lengths>& run) -> asio::awaitable<void> {
            co_await run.step(&Lengths::length, count, run.query().text);
        },
        sink, 1);
    Task<RecordResult<Lengths>> task(desk.context.get_executor(),
                                     [&] { return pipeline.process_one(Query("1", "four")); });
    sluice::testing::run(desk.context);
    CHECK(task.value().record.length == 4.0);
}

TEST_CASE("pipeline of any shape: a query whose steps are all in backoff leaves its place to others",
          "[any_shape][all][window]") {
    Desk desk(9, StageOptions{.retry = test::retries(1, 1s)});
    desk.classify.failures["t0"] = 1;
    desk.extract.failures["t0"] = 1;
    auto pipeline = desk.pipeline(desk.side_by_side(), 1);
    std::vector<std::pair<std::size_t, std::chrono::nanoseconds>> ended;
    Task<> task(desk.context.get_executor(), [&] {
        return [](Desk& the_desk, auto& from, auto& into) -> asio::awaitable<void> {
            auto stream = from.process_stream(test::make_queries(3));
            while (auto item = co_await stream.next()) {
                CHECK(item->result.completed);
                into.emplace_back(item->index, test::now(the_desk.context));
            }
        }(desk, pipeline, ended);
    });
    sluice::testing::run(desk.context);
    REQUIRE(ended.size() == 3);
    // t0 has left its place when extract, too, is in a backoff, at 20 ms; the others take 60 ms each.
    CHECK(ended[0] == std::pair<std::size_t, std::chrono::nanoseconds>(1, 80ms));
    CHECK(ended[1] == std::pair<std::size_t, std::chrono::nanoseconds>(2, 140ms));
    CHECK(ended[2].first == 0);
    CHECK(desk.generate.peak == 1);
}

TEST_CASE("pipeline of any shape: steps whose backoffs have ended need one place together",
          "[any_shape][all][window]") {
    Desk desk(9, StageOptions{.retry = test::retries(1, 100ms)});
    desk.classify.failures["t0"] = 1;
    desk.extract.failures["t0"] = 1;
    auto pipeline = desk.pipeline(desk.side_by_side(), 1);
    Task<std::vector<TicketResult>> batch(desk.context.get_executor(),
                                          [&] { return pipeline.process_batch(test::make_queries(3)); });
    // t0 leaves its place at 20 ms and would go on at 110 and 120 ms; t2 has the place until 140 ms.
    test::run_until(desk.context, 125ms);
    SECTION("they get it") {
        CHECK(sluice::testing::run(desk.context) == 75ms);
        REQUIRE(batch.succeeded());
        CHECK(std::ranges::all_of(batch.value(), &TicketResult::completed));
    }
    SECTION("they are cancelled as they wait") {
        batch.cancel();
        CHECK(sluice::testing::run(desk.context) == 0ms);
        CHECK(batch.aborted());
    }
    CHECK(desk.idle());
}

namespace {

// Fails at the second call of next(). `others_first` tells the executor what to do next.
struct FailingSource {
    bool& others_first;
    int calls = 0;

    asio::awaitable<std::optional<Query>> next() { return produce(*this); }

private:
    static asio::awaitable<std::optional<Query>> produce(FailingSource& source) {
        if (++source.calls == 1) {
            co_return test::make_query(0);
        }
        source.others_first = false;
        co_await test::sleep(10ms);
        source.others_first = true;
        throw std::range_error("source");
    }
};

}  // namespace

TEST_CASE("pipeline of any shape: a source that has failed is not asked again, whatever the executor does first",
          "[any_shape][source]") {
    Model classify("classify", 10ms);
    TicketSink sink;
    bool others_first = true;
    sluice::testing::InterleavingContext context([&](std::size_t n) { return others_first ? 0 : n - 1; });
    const TicketStage stage(timed(context.get_executor()), "classify", 2, test::Endpoint{&classify});
    sluice::Pipeline pipeline(
        timed(context.get_executor()),
        [stage](TicketRun& run) -> asio::awaitable<void> {
            co_await run.step(&Ticket::intent, stage, run.query().text);
        },
        sink, 2);
    FailingSource source{others_first};
    Task<std::vector<TicketResult>> batch(context.get_executor(), [&] { return pipeline.process_batch(source); });
    context.run();
    CHECK(batch.failed_with<std::range_error>());
    CHECK(source.calls == 2);
}

TEST_CASE("pipeline of any shape: it can be cancelled at every step, and nothing is lost",
          "[any_shape][cancellation]") {
    test::for_every_step([](test::Steps& steps) {
        Desk desk(1, StageOptions{.timeout = 1s, .retry = test::retries(1, 5ms)});
        desk.classify.failures["t0"] = 1;
        desk.extract.failures["t1"] = 9;
        auto pipeline = desk.pipeline(desk.side_by_side(), 2);
        Task<std::vector<TicketResult>> batch(desk.context.get_executor(),
                                              [&] { return pipeline.process_batch(test::make_queries(3)); });
        test::poll(desk.context);
        steps.take(desk.context);
        batch.cancel();
        sluice::testing::run(desk.context);
        CHECK(batch.done());
        CHECK((batch.aborted() || batch.value().size() == 3));
        CHECK(desk.idle());
    });
}

TEST_CASE("pipeline of any shape: it may be destroyed at every step, before or after its context",
          "[any_shape][shutdown][stress]") {
    const bool context_first = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        Model classify("classify", 10ms);
        Model extract("extract", 20ms);
        classify.failures["t0"] = 1;
        extract.failures["t1"] = 9;
        test::SlowDeadLetters sink;
        auto context = std::make_unique<asio::io_context>(1);
        const StageOptions options{.timeout = 1s, .retry = test::retries(1, 5ms)};
        auto c = std::make_optional<TicketStage>(timed(context->get_executor()), "classify", 1,
                                                 test::Endpoint{&classify}, options);
        auto e = std::make_optional<TicketStage>(timed(context->get_executor()), "extract", 1, test::Endpoint{&extract},
                                                 options);
        const auto route = [c = *c, e = *e](TicketRun& run) -> asio::awaitable<void> {
            co_await run.all(run.step(&Ticket::intent, c, run.query().text),
                             run.step(&Ticket::entities, e, run.query().text));
        };
        auto pipeline = std::make_optional<
            sluice::Pipeline<std::remove_const_t<decltype(route)>, test::SlowDeadLetters, VirtualTimer>>(
            timed(context->get_executor()), route, sink, 2);
        std::optional<Task<std::vector<TicketResult>>> batch(
            std::in_place, context->get_executor(), [&] { return pipeline->process_batch(test::make_queries(3)); });
        test::poll(*context);
        steps.take(*context);
        c.reset();
        e.reset();
        if (context_first) {
            context.reset();
            pipeline.reset();
        } else {
            pipeline.reset();
            sluice::testing::run(*context);
            CHECK(batch->succeeded());
            context.reset();
        }
    });
}

TEST_CASE("pipeline of any shape: what is out of range is refused with its name and value", "[any_shape]") {
    Desk desk;
    using test::refusal_of;
    CHECK(refusal_of([&] { desk.pipeline(desk.in_line(), 0); }) == "Pipeline: window must be at least 1, got 0");
    CHECK(refusal_of([&] {
              sluice::Pipeline p(timed(desk.context.get_executor()), desk.in_line(), desk.sink, 1,
                                 sluice::PipelineOptions{.max_in_backoff = -1});
          }) == "Pipeline: max_in_backoff must not be negative, got -1");
    CHECK(refusal_of([&] { sluice::Pipeline p(asio::any_io_executor(), desk.in_line(), desk.sink, 1); }) ==
          "Pipeline: the executor must not be empty");
    const std::function<asio::awaitable<void>(TicketRun&)> no_route;
    CHECK(refusal_of([&] { sluice::Pipeline p(timed(desk.context.get_executor()), no_route, desk.sink, 1); }) ==
          "Pipeline: the route must not be empty");
}

namespace {

// A class may hold a pipeline, whose route is a member function, and a function may return one.
class Service {
public:
    explicit Service(Desk& desk)
        : classify_(desk.classifier), pipeline_(timed(desk.context.get_executor()), Route{this}, desk.sink, 4) {}

    auto answer(Query query) { return pipeline_.process_one(std::move(query)); }

private:
    struct Route {
        Service* service;
        asio::awaitable<void> operator()(TicketRun& run) const { return service->route(run); }
    };

    asio::awaitable<void> route(TicketRun& run) { co_await run.step(&Ticket::intent, classify_, run.query().text); }

    TicketStage classify_;
    sluice::Pipeline<Route, TicketSink, VirtualTimer> pipeline_;
};

auto make_pipeline(Desk& desk) { return desk.pipeline(desk.in_line()); }

asio::awaitable<void> route_without_steps(TicketRun&) { co_return; }

}  // namespace

TEST_CASE("pipeline of any shape: a class holds one, a function returns one, and a function may be a route",
          "[any_shape]") {
    Desk desk;
    Service service(desk);
    Task<TicketResult> task(desk.context.get_executor(), [&] { return service.answer(Query("1", "a")); });
    sluice::testing::run(desk.context);
    CHECK(task.value().record.intent == "classify(a)");
    auto made = make_pipeline(desk);
    CHECK(desk.run_one(made, Query("2", "b")).completed);
    auto empty = desk.pipeline(&route_without_steps);
    CHECK(desk.run_one(empty, Query("3", "c")).completed);
}

namespace {

// What is moved from step to step, and is never copied.
struct Parcel {
    std::optional<std::unique_ptr<std::string>> content;
    std::optional<std::string> label;
};

// May change itself, throws nothing before its coroutine begins, and counts the queries.
struct CountingRoute {
    TicketStage stage;
    int* queries;
    int own = 0;

    asio::awaitable<void> operator()(TicketRun& run) noexcept {
        *queries = ++own;
        return go(run, stage);
    }

private:
    static asio::awaitable<void> go(TicketRun& run, TicketStage& stage) {
        co_await run.step(&Ticket::intent, stage, run.query().text);
    }
};

}  // namespace

TEST_CASE("pipeline of any shape: a route may change itself", "[any_shape]") {
    Desk desk;
    int queries = 0;
    auto functor = desk.pipeline(CountingRoute{desk.classifier, &queries});
    auto lambda =
        desk.pipeline([n = 0, &queries, c = desk.classifier](TicketRun& run) mutable -> asio::awaitable<void> {
            queries = ++n;
            co_await run.step(&Ticket::intent, c, run.query().text);
        });
    const auto runs = [&](auto& pipeline) {
        desk.run_one(pipeline, Query("1", "a"));
        desk.run_one(pipeline, Query("2", "b"));
        return std::exchange(queries, 0);
    };
    CHECK(runs(functor) == 2);
    CHECK(runs(lambda) == 2);
}

TEST_CASE("pipeline of any shape: a record may be movable only", "[any_shape]") {
    asio::io_context context(1);
    const auto executor = timed(context.get_executor());
    test::DeadLetters sink;
    const auto pack = [](const std::string& text) -> asio::awaitable<std::unique_ptr<std::string>> {
        co_await test::sleep(1ms);
        co_return std::make_unique<std::string>(text);
    };
    const auto write = [](const std::unique_ptr<std::string>& content) -> asio::awaitable<std::string> {
        co_return "to " + *content;
    };
    const sluice::Stage packer(executor, "pack", 1, pack);
    const sluice::Stage writer(executor, "write", 1, write);
    auto route = [=](sluice::Run<Parcel>& run) -> asio::awaitable<void> {
        co_await run.step(&Parcel::content, packer, run.query().text);
        co_await run.step(&Parcel::label, writer, &Parcel::content);
    };
    sluice::Pipeline pipeline(executor, std::move(route), sink, 2);
    std::vector<Checkpoint<Parcel>> parcels;
    parcels.emplace_back(Query("1", "a"), Parcel{});
    parcels.emplace_back(Query("2", "b"), Parcel{std::make_unique<std::string>("c"), std::nullopt});
    Task<std::vector<RecordResult<Parcel>>> batch(context.get_executor(),
                                                  [&] { return pipeline.process_batch(std::move(parcels)); });
    sluice::testing::run(context);
    REQUIRE(batch.succeeded());
    CHECK(batch.value()[0].record.label == "to a");
    CHECK(batch.value()[1].record.label == "to c");
    auto stream = pipeline.process_stream(test::make_queries(1));
    Task<std::optional<sluice::StreamItem<RecordResult<Parcel>>>> item(context.get_executor(),
                                                                       [&] { return stream.next(); });
    sluice::testing::run(context);
    CHECK(item.value()->result.record.label == "to t0");
}

TEST_CASE(
    "pipeline of any shape: a query that its route has cut short in a backoff waits for a place before it goes on",
    "[any_shape][window]") {
    Desk desk(9, StageOptions{.retry = test::retries(1, 1h)});
    desk.generate.latency = 0ms;
    desk.generate.failures["t0"] = 2;
    auto pipeline = desk.pipeline(
        [c = desk.classifier, g = desk.generator](TicketRun& run) -> asio::awaitable<void> {
            if (run.query().text == "t0") {
                const auto generate = [&] { return run.step(&Ticket::reply, g, run.query().text); };
                try {
                    co_await sluice::with_timeout<VirtualTimer>(5ms, generate);
                } catch (const sluice::TimeoutError&) {
                }
            }
            co_await run.step(&Ticket::intent, c, run.query().text);
        },
        1);
    Task<std::vector<TicketResult>> batch(desk.context.get_executor(),
                                          [&] { return pipeline.process_batch(test::make_queries(3)); });
    sluice::testing::run(desk.context);
    REQUIRE(batch.succeeded());
    CHECK(desk.classify.peak == 1);  // the window
    CHECK(std::ranges::all_of(batch.value(), [](const auto& result) { return result.completed; }));
}

namespace {

// Cuts the step of every query but "t1" short after 5 ms, and then returns or throws.
struct CutShort {
    TicketStage stage;
    bool throws;

    asio::awaitable<void> operator()(TicketRun& run) const { return go(*this, run); }

private:
    static asio::awaitable<void> go(const CutShort& route, TicketRun& run) {
        const auto step = [&] { return run.step(&Ticket::reply, route.stage, run.query().text); };
        const auto limit = run.query().text == "t1" ? 1h : 5ms;
        try {
            co_await sluice::with_timeout<VirtualTimer>(limit, step);
        } catch (const sluice::TimeoutError&) {
            if (route.throws) {
                throw;
            }
        }
    }
};

// A pipeline with such a route. Each step is in a backoff when it is cut short.
struct CutShortDesk : Desk {
    explicit CutShortDesk(bool throws, std::ptrdiff_t window)
        : Desk(9, StageOptions{.retry = test::retries(1, 1h)}),
          pipeline(timed(context.get_executor()), CutShort{generator, throws}, sink, window,
                   sluice::PipelineOptions{.max_in_backoff = 2}) {
        generate.latency = 4ms;
        for (const auto& query : test::make_queries(100)) {
            generate.failures[query.text] = query.text == "t1" ? 0 : 2;
        }
    }

    sluice::Pipeline<CutShort, TicketSink, VirtualTimer> pipeline;
};

}  // namespace

TEST_CASE("pipeline of any shape: the result of a query that its route has cut short in a backoff has a place, too",
          "[any_shape][window][stream]") {
    const bool throws = GENERATE(false, true);
    CutShortDesk desk(throws, 2);
    auto stream = desk.pipeline.process_stream(test::make_queries(100));
    std::size_t received = 0;
    const auto receive = [&](std::size_t n) -> asio::awaitable<void> {
        while (n-- != 0) {
            const auto item = co_await stream.next();
            received += item ? 1 : 0;
        }
    };
    Task<> some(desk.context.get_executor(), [&] { return receive(3); });
    test::run_until(desk.context, 1s);
    CHECK(received == 3);
    CHECK(desk.generate.calls() <= 3 + 2 + 2);  // two results have the places, and two queries wait for one
    Task<> all(desk.context.get_executor(), [&] { return receive(100); });
    sluice::testing::run(desk.context);
    CHECK(received == 100);
    CHECK(desk.sink.letters.size() == (throws ? 99U : 0U));
}

TEST_CASE("pipeline of any shape: a query that its route has cut short in a backoff waits for a place before it ends",
          "[any_shape][window]") {
    enum class Then { nothing, cancelled, drained };
    const Then then = GENERATE(Then::nothing, Then::cancelled, Then::drained);
    const bool throws = GENERATE(false, true);
    CutShortDesk desk(throws, 1);
    desk.generate.latency_of = [](const std::string& text) { return text == "t1" ? 16ms : 4ms; };
    Task<std::vector<TicketResult>> batch(desk.context.get_executor(),
                                          [&] { return desk.pipeline.process_batch(test::make_queries(2)); });
    test::run_until(desk.context, 10ms);  // t1 has the place
    CHECK(desk.sink.letters.empty());
    if (then == Then::nothing) {
        CHECK(sluice::testing::run(desk.context) == 10ms);
    } else if (then == Then::cancelled) {  // after it had failed, so it is a dead letter nevertheless
        batch.cancel();
        CHECK(sluice::testing::run(desk.context) == 0ms);
        CHECK(batch.aborted());
    } else {
        Task<sluice::DrainReport<Ticket>> report(desk.context.get_executor(), [&] { return desk.pipeline.drain(1h); });
        test::poll(desk.context);
        CHECK(desk.sink.letters.size() == (throws ? 1U : 0U));  // there is room, since nothing more is taken in
        CHECK(sluice::testing::run(desk.context) == 10ms);
        CHECK(report.value().completed == (throws ? 1U : 2U));
        CHECK(report.value().dead == (throws ? 1U : 0U));
    }
    if (then != Then::cancelled) {
        REQUIRE(batch.succeeded());
        CHECK(batch.value()[0].completed == !throws);
        CHECK(batch.value()[1].completed);
    }
    CHECK(desk.sink.letters.size() == (throws ? 1U : 0U));
    CHECK(desk.idle());
}

namespace {

// Cancels the step of q1 in the moment in which q0 has ended and q1 has its place.
struct CancelsNextInLine final : sluice::Observer {
    explicit CancelsNextInLine(asio::io_context& its_context) : context(its_context) {}

    void on_finished(const StageResult<>& stage_run, Outcome, Event) noexcept override {
        if (stage_run.query_id == "q0") {
            asio::post(context, [this] { group->cancel(); });
        }
    }

    asio::io_context& context;
    sluice::TaskGroup* group = nullptr;
};

}  // namespace

TEST_CASE("pipeline of any shape: a place that comes to a step which is cancelled meanwhile goes to the next query",
          "[any_shape]") {
    Model model("m", 20ms);
    TicketSink sink;
    asio::io_context context{1};
    CancelsNextInLine observer(context);
    const auto executor = timed(context.get_executor());
    model.latency_of = [](const std::string& text) -> std::chrono::nanoseconds {
        return text == "t1" ? 0ms : text == "t2" ? 1h : 20ms;
    };
    model.failures["t1"] = 1;
    const TicketStage stage(executor, "m", 9, test::Endpoint{&model}, StageOptions{.retry = test::retries(1, 10ms)});
    const auto route = [&](TicketRun& run) -> asio::awaitable<void> {
        if (run.query().id != "q1") {
            co_await run.step(&Ticket::reply, stage, run.query().text);
            co_return;
        }
        const auto body = [&](sluice::TaskGroup& group) -> asio::awaitable<void> {
            observer.group = &group;
            co_await run.step(&Ticket::reply, stage, run.query().text);
        };
        co_await sluice::with_task_group(body);  // ends normally, since only the group was cancelled
        co_await test::sleep(1h);
    };
    sluice::Pipeline pipeline(executor, route, sink, 2, sluice::PipelineOptions{.observer = &observer});
    Task<std::vector<TicketResult>> batch(context.get_executor(),
                                          [&] { return pipeline.process_batch(test::make_queries(4)); });
    test::run_until(context, 1min);
    CHECK(model.finished == std::vector<std::string>{"t0", "t3"});
    sluice::testing::run(context);
    CHECK(batch.value()[1].completed);
}

#if BOOST_VERSION >= 108300 && BOOST_VERSION <= 109200 && !defined(SLUICE_PORTABLE_AWAIT)  // else it is a coroutine

namespace {

// Throws when it is moved, if it must stay where it is.
struct Unmovable {
    explicit Unmovable(const bool& must_stay) : stays(must_stay) {}
    Unmovable(Unmovable&& other) : stays(other.stays) {
        if (stays) {
            throw std::range_error("it must stay where it is");
        }
    }

    const bool& stays;
};

}  // namespace

TEST_CASE("pipeline of any shape: a step whose argument throws when it is moved is a failure of its route",
          "[any_shape]") {
    TicketSink sink;
    asio::io_context context{1};
    const auto executor = timed(context.get_executor());
    const auto model = [](const Unmovable&) -> asio::awaitable<std::string> { co_return "never"; };
    const sluice::Stage stage(executor, "m", 1, model);
    bool stays = false;
    const auto route = [&](TicketRun& run) -> asio::awaitable<void> {
        auto step = run.step(&Ticket::reply, stage, Unmovable(stays));
        stays = true;
        auto moved = std::move(step);
        co_await std::move(moved);
    };
    sluice::Pipeline pipeline(executor, route, sink, 1);
    Task<TicketResult> one(context.get_executor(), [&] { return pipeline.process_one(Query("q", "t")); });
    sluice::testing::run(context);
    REQUIRE(sink.letters.size() == 1);
    CHECK(sink.letters[0].reason.error.type() == "std::range_error");
}

#endif

TEST_CASE("pipeline of any shape: a step of a stage whose context is gone fails once, as closed", "[any_shape]") {
    Desk desk;
    auto elsewhere = std::make_unique<asio::io_context>(1);
    const TicketStage gone(timed(elsewhere->get_executor()), "gone", 1, test::Endpoint{&desk.classify});
    elsewhere.reset();
    auto pipeline = desk.pipeline([gone](TicketRun& run) -> asio::awaitable<void> {
        co_await run.step(&Ticket::intent, gone, run.query().text);
    });
    const auto result = desk.run_one(pipeline, Query("1", "a"));
    CHECK_FALSE(result.completed);
    CHECK(stages_of(result) == std::vector<std::string>{"gone failed"});
    REQUIRE(result.failure());
    CHECK(result.failure()->reason == Reason::closed);
    CHECK(desk.sink.letters.size() == 1);
}

TEST_CASE("pipeline of any shape: a query leaves its place while all its steps are in a backoff, however they nest",
          "[any_shape][all][window]") {
    Desk desk(9, StageOptions{.retry = test::retries(1, 50ms)});
    const bool others_run = GENERATE(true, false);
    desk.classify.latency_of = [&](const std::string& text) { return text == "t0" && others_run ? 100ms : 1ms; };
    desk.extract.latency = desk.generate.latency = 1ms;
    desk.generate.failures["t0"] = 1;
    auto pipeline = desk.pipeline(
        [c = desk.classifier, e = desk.extractor, g = desk.generator](TicketRun& run) -> asio::awaitable<void> {
            const auto branch = [](auto& from, auto extractor, auto generator) -> asio::awaitable<void> {
                co_await from.all(from.step(&Ticket::entities, extractor, from.query().text));
                co_await from.step(&Ticket::reply, generator, from.query().text);
            };
            co_await run.all(run.step(&Ticket::intent, c, run.query().text), branch(run, e, g));
        },
        1);
    Task<std::vector<TicketResult>> batch(desk.context.get_executor(),
                                          [&] { return pipeline.process_batch(test::make_queries(2)); });
    test::run_until(desk.context, 20ms);                   // generate is in its backoff
    CHECK(desk.generate.calls() == (others_run ? 1 : 2));  // the second query has begun, or not
    sluice::testing::run(desk.context);
    REQUIRE(batch.succeeded());
    CHECK(std::ranges::all_of(batch.value(), [](const auto& result) { return result.completed; }));
}

TEST_CASE("pipeline of any shape: whatever fails side by side is in the results", "[any_shape][all]") {
    Desk desk;
    desk.classify.failures["a"] = 1;
    const bool coroutine_first = GENERATE(false, true);
    auto pipeline = desk.pipeline([coroutine_first, c = desk.classifier](TicketRun& run) -> asio::awaitable<void> {
        const auto fails = [](std::chrono::nanoseconds after) -> asio::awaitable<void> {
            co_await test::sleep(after);
            throw std::range_error("out of range");
        };
        co_await run.all(run.step(&Ticket::intent, c, run.query().text), fails(coroutine_first ? 1ms : 30ms));
    });
    const auto result = desk.run_one(pipeline, Query("1", "a"));
    REQUIRE(result.failure());
    CHECK(result.failure()->stage == (coroutine_first ? "route" : "classify"));
    CHECK(stages_of(result) == std::vector<std::string>{"classify failed", "route failed"});
    CHECK(result.stage_results[1].error.message() == "out of range");
    CHECK(desk.sink.letters.size() == 1);
}

namespace {

struct CountingObserver : sluice::Observer {
    std::vector<std::string> finished;
    int dead = 0;

    void on_finished(const StageResult<>& run, Outcome, Event) noexcept override {
        finished.push_back(run.stage.str());
    }
    void on_dead_letter(const Query&, const StageResult<>&, const sluice::StageError&) noexcept override { ++dead; }
};

}  // namespace

TEST_CASE("pipeline of any shape: its observer sees dead letters, and the steps of stages that have none of their own",
          "[any_shape][observer]") {
    Desk desk;
    CountingObserver of_stage;
    CountingObserver of_pipeline;
    const auto executor = timed(desk.context.get_executor());
    const TicketStage observed(executor, "observed", 1, test::Endpoint{&desk.extract},
                               StageOptions{.observer = &of_stage});
    desk.generate.failures["a"] = 1;
    auto route = [observed, c = desk.classifier, g = desk.generator](TicketRun& run) -> asio::awaitable<void> {
        co_await run.step(&Ticket::intent, c, run.query().text);
        co_await run.step(&Ticket::entities, observed, run.query().text);
        co_await run.step(&Ticket::reply, g, run.query().text);
    };
    sluice::Pipeline pipeline(executor, std::move(route), desk.sink, 1,
                              sluice::PipelineOptions{.observer = &of_pipeline});
    CHECK_FALSE(desk.run_one(pipeline, Query("1", "a")).completed);
    CHECK(of_stage.finished == std::vector<std::string>{"observed"});
    CHECK(of_pipeline.finished == std::vector<std::string>{"classify", "generate"});
    CHECK(of_pipeline.dead == 1);
    CHECK(of_stage.dead == 0);
}
