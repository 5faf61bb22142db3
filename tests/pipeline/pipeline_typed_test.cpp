// SPDX-License-Identifier: BSL-1.0
// Pipelines whose coroutines are bound to one type of executor, and pipelines on a strand.
#include <sluice/pipeline/checkpoint.hpp>
#include <sluice/pipeline/drain.hpp>
#include <sluice/pipeline/map.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/sync/timed_by.hpp>
#include <sluice/sync/timer.hpp>
#include <sluice/testing/run.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/task.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/basic_waitable_timer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <ratio>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::Checkpoint;
using sluice::Query;
using sluice::StageOptions;
using sluice::StageResult;
using test::Model;
using test::Task;
using test::timed;
using test::VirtualTimer;

struct Memo {
    std::optional<std::string> topic;
    std::optional<std::size_t> length;
    std::optional<std::string> summary;
};

using MemoResult = sluice::RecordResult<Memo>;
using MemoReport = sluice::DrainReport<Memo>;

// Everything of a pipeline in coroutines of one executor type.
template <class E>
struct MemoParts {
    struct Topic {
        asio::awaitable<std::string, E> operator()(const std::string& text) const { return find(text); }
        static asio::awaitable<std::string, E> find(std::string text) {
            co_await sluice::sleep_for<VirtualTimer, E>(10ms);
            co_return "topic of " + text;
        }
    };
    struct Length {
        asio::awaitable<int, E> operator()(const std::string& text) const { return count(text); }
        static asio::awaitable<int, E> count(std::string text) {
            co_await sluice::sleep_for<VirtualTimer, E>(5ms);
            co_return static_cast<int>(text.size());
        }
    };
    struct Summary {
        asio::awaitable<std::string, E> operator()(const std::string& topic, const std::size_t& length) const {
            return write(topic, length);
        }
        static asio::awaitable<std::string, E> write(std::string topic, std::size_t length) {
            co_await sluice::sleep_for<VirtualTimer, E>(20ms);
            if (topic == "topic of t1") {
                throw std::runtime_error("nothing to say");
            }
            co_return topic + ", " + std::to_string(length);
        }
    };
    struct Sink {
        std::vector<std::string> letters;
        std::size_t saved = 0;

        asio::awaitable<void, E> put(const Query& query, const StageResult<>& why, const Memo& memo) {
            return keep(*this, query.id.str() + " " + why.stage.str() + " " + memo.topic.value_or("-"));
        }
        asio::awaitable<void, E> save(const Query&, const Memo&) { return count(*this); }

    private:
        static asio::awaitable<void, E> keep(Sink& sink, std::string letter) {
            co_await sluice::sleep_for<VirtualTimer, E>(1ms);
            sink.letters.push_back(std::move(letter));
        }
        static asio::awaitable<void, E> count(Sink& sink) {
            ++sink.saved;
            co_return;
        }
    };
    struct Source {
        std::size_t delivered = 0;

        asio::awaitable<std::optional<Query>, E> next() { return produce(*this); }

    private:
        static asio::awaitable<std::optional<Query>, E> produce(Source& source) {
            co_await sluice::sleep_for<VirtualTimer, E>(1ms);
            if (source.delivered == 3) {
                co_return std::nullopt;
            }
            co_return test::make_query(source.delivered++);
        }
    };
    struct Route {
        sluice::Stage<Topic, VirtualTimer> topic;
        sluice::Stage<Length, VirtualTimer> length;
        sluice::Stage<Summary, VirtualTimer> summary;

        asio::awaitable<void, E> operator()(sluice::Run<Memo, E>& run) const {
            co_await run.all(run.step(&Memo::topic, topic, run.query().text),
                             run.step(&Memo::length, length, run.query().text));
            const sluice::StageError error =
                co_await run.step_or_error(&Memo::summary, summary, &Memo::topic, &Memo::length);
            if (error) {
                co_await run.step(&Memo::summary, summary, &Memo::topic, &Memo::length);
            }
        }
    };

    using Pipeline = sluice::Pipeline<Route, Sink, VirtualTimer>;

    static Pipeline pipeline(const E& executor, Sink& sink, std::ptrdiff_t window = 2) {
        const StageOptions options{.timeout = 1s, .retry = test::retries(1, 5ms)};
        const auto home = timed(executor);
        return Pipeline(home,
                        Route{{home, "topic", 2, Topic{}, options},
                              {home, "length", 2, Length{}, options},
                              {home, "summary", 2, Summary{}, options}},
                        sink, window);
    }

    // The completed queries of each operation in turn.
    static asio::awaitable<std::vector<std::size_t>, E> use(Pipeline& made) {
        std::vector<std::size_t> completed;
        const auto count = [](const std::vector<MemoResult>& results) {
            return static_cast<std::size_t>(std::ranges::count(results, true, &MemoResult::completed));
        };
        const auto one = co_await made.process_one(test::make_query(5));
        completed.push_back(one.completed ? 1 : 0);
        Checkpoint<Memo> checkpoint(test::make_query(6), Memo{"topic", 7, std::nullopt});
        const auto again = co_await made.process_one(std::move(checkpoint));
        completed.push_back(again.record.summary == "topic, 7" ? 1 : 0);
        const auto of_range = co_await made.process_batch(test::make_queries(3));
        completed.push_back(count(of_range));
        Source source;
        const auto of_source = co_await made.process_batch(source);
        completed.push_back(count(of_source));
        auto stream = made.process_stream(test::make_queries(3));
        completed.push_back(0);
        while (auto item = co_await stream.next()) {
            completed.back() += item->result.completed ? 1 : 0;
        }
        co_await stream.close();
        auto drained = made.process_stream(test::make_queries(3));
        const auto of_stream = co_await drained.drain(1s);
        completed.push_back(of_stream.checkpoints.size());
        const auto report = co_await made.drain(1s);
        completed.push_back(report.completed);
        co_return completed;
    }

    // Takes one result of a stream, and drains the pipeline that takes over the rest. Returns what is left of that.
    static asio::awaitable<std::size_t, E> hand_over(Pipeline& from, Pipeline& to) {
        auto stream = from.process_stream(test::make_queries(3));
        co_await stream.next();
        const auto of_completed = [](sluice::StreamItem<MemoResult>&& item) {
            return item.result.completed ? std::optional(std::move(item.result.query)) : std::nullopt;
        };
        const auto never_read = to.process_stream(std::move(stream), of_completed);
        const auto report = co_await to.drain(1s);
        co_return report.checkpoints.size();
    }
};

using ContextExecutor = asio::io_context::executor_type;
using ContextStrand = asio::strand<ContextExecutor>;

template <class E>
E executor_of(asio::io_context& context) {
    if constexpr (std::same_as<E, ContextExecutor>) {
        return context.get_executor();
    } else {
        return asio::make_strand(context);
    }
}

}  // namespace

TEMPLATE_TEST_CASE("pipeline of any shape: it uses the executor of its Run", "[any_shape][typed]", ContextExecutor,
                   ContextStrand, asio::any_io_executor) {
    using Parts = MemoParts<TestType>;
    using Pipeline = typename Parts::Pipeline;
    static_assert(std::same_as<typename Pipeline::Executor, TestType>);
    static_assert(std::same_as<typename Pipeline::Stream, sluice::ResultStream<MemoResult, TestType>>);
    static_assert(
        std::same_as<decltype(std::declval<Pipeline&>().process_one(Query())), asio::awaitable<MemoResult, TestType>>);
    static_assert(std::same_as<decltype(std::declval<Pipeline&>().drain(1s)), asio::awaitable<MemoReport, TestType>>);
    typename Parts::Sink sink;
    asio::io_context context;
    const auto executor = executor_of<TestType>(context);
    auto pipeline = Parts::pipeline(executor, sink);
    std::vector<std::size_t> completed;
    asio::co_spawn(executor, Parts::use(pipeline), [&](const std::exception_ptr& error, std::vector<std::size_t> all) {
        CHECK_FALSE(error);
        completed = std::move(all);
    });
    sluice::testing::run(context);
    CHECK(completed == std::vector<std::size_t>{1, 1, 2, 2, 2, 3, 0});
    CHECK(sink.letters == std::vector<std::string>(3, "q1 summary topic of t1"));
    CHECK(sink.saved == 3 + 1 + 3 * (3 + 3 + 2));
}

TEMPLATE_TEST_CASE("pipeline of any shape: a drain on its executor accounts for all", "[any_shape][typed][drain]",
                   ContextExecutor, ContextStrand) {
    using Parts = MemoParts<TestType>;
    const auto grace = GENERATE(0ms, 12ms, 1000ms);
    typename Parts::Sink sink;
    asio::io_context context;
    const auto executor = executor_of<TestType>(context);
    auto pipeline = Parts::pipeline(executor, sink);
    const auto kept = test::make_queries(9);
    const bool in_batch = GENERATE(true, false);
    std::vector<MemoResult> results;
    std::optional<MemoReport> report;
    if (in_batch) {
        asio::co_spawn(executor, pipeline.process_batch(kept),
                       [&](const std::exception_ptr&, std::vector<MemoResult> all) { results = std::move(all); });
    } else {
        for (const std::size_t index : {0U, 1U}) {
            asio::co_spawn(executor, pipeline.process_one(kept[index]),
                           [&](const std::exception_ptr&, MemoResult one) { results.push_back(std::move(one)); });
        }
    }
    test::run_until(context, 5ms);
    asio::co_spawn(executor, pipeline.drain(grace),
                   [&](const std::exception_ptr&, MemoReport all) { report = std::move(all); });
    const auto in_all = 10ms + 2 * (20ms + 5ms + 20ms) + 1ms;  // of the second query, which goes to the sink
    CHECK(sluice::testing::run(context) == std::min<std::chrono::nanoseconds>(grace, in_all - 5ms));
    REQUIRE(report);
    REQUIRE(results.size() == 2);
    CHECK(report->completed + report->dead + report->cancelled + report->unfinished == 2);
    CHECK(report->unfinished == (grace < 1s ? 2U : 0U));
    CHECK(report->dead == sink.letters.size());
    CHECK(results.front().record.topic.has_value() == (grace != 0ms));
    CHECK(results.front().unfinished == (grace < 1s));
}

TEMPLATE_TEST_CASE("pipeline of any shape: drained on its executor, it has what a stream hands over",
                   "[any_shape][typed][drain][source]", ContextExecutor, ContextStrand, asio::any_io_executor) {
    using Parts = MemoParts<TestType>;
    typename Parts::Sink sink;
    asio::io_context context;
    const auto executor = executor_of<TestType>(context);
    auto from = Parts::pipeline(executor, sink);
    auto to = Parts::pipeline(executor, sink);
    std::size_t handed_over = 0;
    asio::co_spawn(executor, Parts::hand_over(from, to), [&](const std::exception_ptr& error, std::size_t queries) {
        CHECK_FALSE(error);
        handed_over = queries;
    });
    sluice::testing::run(context);
    CHECK(handed_over == 1);  // of three, one was taken before, and one is a dead letter
    CHECK(sink.letters.size() == 1);
}

namespace {

// Doubles a number after as many milliseconds; of another executor than any_io_executor.
asio::awaitable<int, ContextExecutor> twice(int& number) {
    co_await sluice::sleep_for<VirtualTimer, ContextExecutor>(std::chrono::milliseconds(number));
    co_return 2 * number;
}

asio::awaitable<void, ContextExecutor> map_on_a_context(std::vector<int>& values, std::vector<std::size_t>& order,
                                                        int& sum) {
    std::vector<int> numbers{3, 2, 1};
    values = co_await sluice::map_batch(numbers, 2, &twice);
    auto stream = sluice::map_stream(std::move(numbers), 3, &twice);
    static_assert(std::same_as<decltype(stream), sluice::ResultStream<int, ContextExecutor>>);
    while (auto item = co_await stream.next()) {
        order.push_back(item->index);
    }
    const auto add = [&sum](int& number) -> asio::awaitable<void, ContextExecutor> {
        sum += number;
        co_return;
    };
    co_await sluice::map_batch(std::vector<int>(4, 2), 2, add);
}

}  // namespace

TEST_CASE("map_batch, map_stream: they use the executor of the function's coroutine", "[map][typed]") {
    asio::io_context context;
    std::vector<int> values;
    std::vector<std::size_t> order;
    int sum = 0;
    bool succeeded = false;
    asio::co_spawn(context.get_executor(), map_on_a_context(values, order, sum),
                   [&](const std::exception_ptr& error) { succeeded = !error; });
    CHECK(sluice::testing::run(context) == 3ms + 3ms);
    CHECK(succeeded);
    CHECK(values == std::vector<int>{6, 4, 2});
    CHECK(order == std::vector<std::size_t>{2, 1, 0});
    CHECK(sum == 8);
}

TEMPLATE_TEST_CASE("pipeline of any shape: it may outlive the context of its strand, at every step",
                   "[any_shape][shutdown][stress]", ContextStrand, asio::any_io_executor) {
    using Parts = MemoParts<TestType>;
    const bool drains = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        typename Parts::Sink sink;
        typename Parts::Source source;
        auto context = std::make_unique<asio::io_context>();
        auto executor = std::make_unique<TestType>(executor_of<TestType>(*context));
        auto pipeline = Parts::pipeline(*executor, sink);
        auto stream = pipeline.process_stream(source);
        asio::co_spawn(*executor, pipeline.process_batch(test::make_queries(3)),
                       [](const std::exception_ptr&, const auto&) {});
        asio::co_spawn(*executor, stream.next(), [](const std::exception_ptr&, const auto&) {});
        if (drains) {
            test::run_until(*context, 12ms);
            asio::co_spawn(*executor, stream.drain(1h), [](const std::exception_ptr&, const auto&) {});
            asio::co_spawn(*executor, pipeline.drain(15ms), [](const std::exception_ptr&, const auto&) {});
        }
        steps.take(*context);
        executor.reset();
        context.reset();
    });
}

namespace {

// The interface of a Timer and no more.
class BareTimer {
public:
    using executor_type = asio::any_io_executor;
    using duration = VirtualTimer::duration;
    using time_point = VirtualTimer::time_point;

    explicit BareTimer(const executor_type& executor) : timer_(executor) {}

    static time_point now(asio::execution_context& context) { return VirtualTimer::now(context); }

    void expires_after(duration after) { timer_.expires_after(after); }

    template <class Token>
    auto async_wait(Token&& token) {
        return timer_.async_wait(std::forward<Token>(token));
    }

private:
    VirtualTimer timer_;
};

}  // namespace

TEST_CASE("drain: a timer needs no more than the interface of a Timer", "[drain][typed]") {
    const auto grace = GENERATE(3ms, 1000ms);
    asio::io_context context;
    test::DeadLetters sink;
    const auto home = sluice::timed_by<BareTimer>(asio::any_io_executor(context.get_executor()));
    const sluice::Stage stage(home, "topic", 1, MemoParts<asio::any_io_executor>::Topic{},
                              StageOptions{.timeout = 1s, .retry = test::retries(1, 5ms)});
    auto route = [stage](sluice::Run<Memo>& run) -> asio::awaitable<void> {
        co_await run.step(&Memo::topic, stage, run.query().text);
    };
    sluice::Pipeline pipeline(home, std::move(route), sink, 2);
    Task<MemoResult> one(context.get_executor(), [&] { return pipeline.process_one(test::make_query(0)); });
    test::poll(context);
    Task<MemoReport> patient(context.get_executor(), [&] { return pipeline.drain(1h); });
    Task<MemoReport> report(context.get_executor(), [&] { return pipeline.drain(grace); });
    CHECK(sluice::testing::run(context) == std::min<std::chrono::nanoseconds>(grace, 10ms));  // no timer is left
    CHECK(one.value().unfinished == (grace < 10ms));
    CHECK(report.value().completed + report.value().unfinished == 1);
    CHECK(patient.succeeded());
}

namespace {

// Counts 100 ns from the year 1, so that its readings exceed what an int64_t has of nanoseconds.
struct CalendarClock {
    using rep = std::int64_t;
    using period = std::ratio<1, 10'000'000>;
    using duration = std::chrono::duration<rep, period>;
    using time_point = std::chrono::time_point<CalendarClock>;
    [[maybe_unused]] static constexpr bool is_steady = true;

    inline static time_point today = time_point(std::chrono::hours(24 * 365) * 2024);
    static time_point now() noexcept { return today; }
};

}  // namespace

TEST_CASE("pipeline of any shape: the clock of its timer may have any epoch", "[any_shape]") {
    using CalendarTimer = asio::basic_waitable_timer<CalendarClock>;
    asio::io_context io;
    const auto executor = sluice::timed_by<CalendarTimer>(io.get_executor());
    const auto model = [](const std::string& text) -> asio::awaitable<std::string> {
        co_await asio::post(asio::deferred);
        CalendarClock::today += 20ms;
        co_return text;
    };
    const StageOptions options{.retry = test::retries(GENERATE(0, 1), 5ms)};
    const sluice::Stage stage(executor, "file", 1, model, options);
    struct {
        void put(const Query&, const StageResult<>&) const {}
    } sink;
    sluice::Pipeline pipeline(
        executor,
        [&](sluice::Run<Memo>& run) -> asio::awaitable<void> {
            co_await run.step(&Memo::topic, stage, run.query().text);
        },
        sink, 1);
    Task<MemoResult> first(io.get_executor(), [&] { return pipeline.process_one(test::make_query(1)); });
    Task<MemoResult> second(io.get_executor(), [&] { return pipeline.process_one(test::make_query(2)); });
    sluice::testing::run(io);
    const StageResult<> at_once = first.value().stage_results.at(0);
    const StageResult<> later = second.value().stage_results.at(0);
    CHECK(at_once.queue_time == 0ms);
    CHECK(at_once.latency == 20ms);
    CHECK(later.queue_time == 20ms);
    CHECK(later.latency == 20ms);
}

namespace {

// Waits in virtual time, and measures it by a CalendarClock.
class CalendarTimer : public BareTimer {
public:
    using duration = CalendarClock::duration;
    using time_point = CalendarClock::time_point;

    using BareTimer::BareTimer;

    inline static time_point begin;  // of virtual time
    static time_point now(asio::execution_context& context) {
        return begin + std::chrono::floor<duration>(BareTimer::now(context).time_since_epoch());
    }
};

}  // namespace

TEST_CASE("drain: the clock of its timer may have any epoch", "[any_shape][drain]") {
    static constexpr auto last = std::chrono::floor<CalendarClock::duration>(std::chrono::nanoseconds::max());
    CalendarTimer::begin = GENERATE(CalendarClock::today, CalendarClock::time_point(last - 12ms),
                                    CalendarClock::time_point(-last), CalendarClock::time_point());
    const auto backoff = GENERATE(values<std::chrono::nanoseconds>({1ms, 1005ms, 1005ms + 100ns, 24h * 365 * 200}));
    const bool is_stream = GENERATE(false, true);
    Model model("file", 10ms);
    model.failures["t0"] = 1;
    test::DeadLetters sink;
    asio::io_context context;
    const auto home = sluice::timed_by<CalendarTimer>(asio::any_io_executor(context.get_executor()));
    const sluice::Stage stage(home, "file", 1, test::Endpoint{&model},
                              StageOptions{.retry = test::retries(1, backoff)});
    auto route = [stage](sluice::Run<Memo>& run) -> asio::awaitable<void> {
        co_await run.step(&Memo::topic, stage, run.query().text);
    };
    sluice::Pipeline pipeline(home, std::move(route), sink, 1);
    auto stream = pipeline.process_stream(test::make_queries(1));
    Task<std::optional<sluice::StreamItem<MemoResult>>> item(context.get_executor(), [&] { return stream.next(); });
    test::run_until(context, 11ms);
    Task<MemoReport> patient(context.get_executor(), [&] { return pipeline.drain(std::chrono::nanoseconds::max()); });
    test::run_until(context, 15ms);
    Task<MemoReport> report(context.get_executor(), [&] { return is_stream ? stream.drain(1s) : pipeline.drain(1s); });
    const auto took = sluice::testing::run(context);
    CHECK(patient.succeeded());
    CHECK(report.value().completed == (backoff == 1ms ? 1U : 0U));
    CHECK(report.value().unfinished == (backoff == 1ms ? 0U : 1U));
    CHECK(model.calls() == (backoff <= 1005ms ? 2 : 1));  // a backoff gives up that ends when the grace is over
    CHECK(took == (backoff == 1ms ? 6ms : backoff == 1005ms ? 1000ms : 0ms));
}
