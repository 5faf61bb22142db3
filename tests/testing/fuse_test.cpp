// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/testing/fuse.hpp>
#include <sluice/testing/run.hpp>

#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <chrono>
#include <cstddef>
#include <exception>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::testing::Fuse;
using sluice::testing::fuse_each;
using sluice::testing::InjectedError;
using test::Task;

// Passes `points` points, one after the other, and returns the numbers of those that threw.
std::vector<int> pass_points(const Fuse& fuse, int points) {
    std::vector<int> thrown;
    for (int i = 0; i != points; ++i) {
        try {
            fuse.point();
        } catch (const InjectedError&) {
            thrown.push_back(i);
        }
    }
    return thrown;
}

}  // namespace

TEST_CASE("fuse: the point with its number throws, and no other", "[fuse]") {
    const Fuse fuse(2);
    CHECK(fuse.number() == 2);
    CHECK(pass_points(fuse, 2).empty());
    CHECK_FALSE(fuse.blown());
    CHECK(pass_points(fuse, 1) == std::vector<int>{0});
    CHECK(fuse.blown());
    CHECK(pass_points(fuse, 5).empty());
    CHECK(fuse.blown());
}

TEST_CASE("fuse: it throws an InjectedError that says where, or another error", "[fuse]") {
    CHECK_THROWS_WITH(Fuse(0).point(), "error injected at point 0");
    const Fuse other(0, std::make_exception_ptr(std::range_error("other")));
    CHECK_THROWS_AS(other.point(), std::range_error);
    CHECK(test::refusal_of([] { static_cast<void>(Fuse(-1)); }) == "Fuse: the number must not be negative, got -1");
}

TEST_CASE("fuse: copies count together, and live on without the first", "[fuse]") {
    std::optional<Fuse> first(Fuse(2));
    const Fuse second = *first;
    CHECK(pass_points(*first, 1).empty());
    CHECK(pass_points(second, 1).empty());
    first.reset();
    CHECK(pass_points(second, 1) == std::vector<int>{0});
    CHECK(second.blown());
}

TEST_CASE("fuse: a test runs with an error at each of its points, and then without one", "[fuse]") {
    std::vector<std::vector<int>> thrown;
    CHECK(fuse_each([&](const Fuse& fuse) { thrown.push_back(pass_points(fuse, 3)); }) == 3);
    CHECK(thrown == std::vector<std::vector<int>>{{0}, {1}, {2}, {}});
}

TEST_CASE("fuse: a test without points runs once", "[fuse]") {
    int calls = 0;
    CHECK(fuse_each([&](const Fuse&) { ++calls; }) == 0);
    CHECK(calls == 1);
}

TEST_CASE("fuse: the points of a test may depend on the errors", "[fuse]") {
    std::vector<int> failures;
    const auto retry_once = [&](const Fuse& fuse) {
        const std::size_t first = pass_points(fuse, 1).size();
        const std::size_t second = first == 0 ? 0 : pass_points(fuse, 1).size();
        failures.push_back(static_cast<int>(first + second));
    };
    CHECK(fuse_each(retry_once) == 1);
    CHECK(failures == std::vector<int>{1, 0});
}

TEST_CASE("fuse: the error of all points may be another, and a test may be stateful", "[fuse]") {
    const auto stateful = [calls = 0](const Fuse& fuse) mutable {
        if (calls++ == 0) {
            CHECK_THROWS_AS(fuse.point(), std::range_error);
        } else {
            CHECK_NOTHROW(fuse.point());
        }
        CHECK(calls <= 2);
    };
    CHECK(fuse_each(stateful, std::make_exception_ptr(std::range_error("other"))) == 1);
}

TEST_CASE("fuse: what a test throws ends it", "[fuse]") {
    int calls = 0;
    const auto careless = [&](const Fuse& fuse) {
        ++calls;
        fuse.point();
    };
    CHECK_THROWS_AS(fuse_each(careless), InjectedError);
    CHECK(calls == 1);
}

TEST_CASE("fuse: a test that has ever more points is an error, and does not run forever", "[fuse]") {
    int calls = 0;
    const auto ever_more = [&](const Fuse& fuse) {
        ++calls;
        while (!fuse.blown()) {
            pass_points(fuse, 1);
        }
    };
    CHECK_THROWS_WITH(fuse_each(ever_more), Catch::Matchers::ContainsSubstring("ever more"));
    CHECK(calls == 10'000);
    calls = 0;
    const auto long_one = [&](const Fuse& fuse) {
        ++calls;
        pass_points(fuse, 1'000);
    };
    CHECK(fuse_each(long_one) == 1'000);
    CHECK(calls == 1'001);
}

namespace {

struct FusedRecord {
    std::optional<std::string> first;
    std::optional<std::string> second;
};

using FusedRun = sluice::Run<FusedRecord>;
using FusedResult = sluice::RecordResult<FusedRecord>;

// A coroutine, which fails when it is awaited, or a plain function, which fails before there is anything to await.
struct FusedModel {
    Fuse fuse;
    bool is_coroutine;

    asio::awaitable<std::string> operator()(const std::string& text) const {
        if (!is_coroutine) {
            fuse.point();
        }
        return answer(*this, text);
    }

private:
    static asio::awaitable<std::string> answer(const FusedModel& model, const std::string& text) {
        co_await test::sleep(10ms);
        if (model.is_coroutine) {
            model.fuse.point();
        }
        if (text == "t1") {
            throw std::runtime_error("no answer to t1");
        }
        co_return "answer to " + text;
    }
};

// Delivers three queries.
struct FusedSource {
    Fuse fuse;
    std::size_t delivered = 0;

    asio::awaitable<std::optional<sluice::Query>> next() { return deliver(*this); }

private:
    static asio::awaitable<std::optional<sluice::Query>> deliver(FusedSource& source) {
        co_await test::sleep(1ms);
        source.fuse.point();
        if (source.delivered == 3) {
            co_return std::nullopt;
        }
        co_return test::make_query(source.delivered++);
    }
};

struct FusedSink {
    Fuse fuse;
    std::multiset<std::string> put_ids;

    void put(const sluice::Query& query, const sluice::StageResult<>&) {
        put_ids.insert(query.id.str());
        fuse.point();
    }
    void save(const sluice::Query&, const FusedRecord&) { fuse.point(); }
};

struct FusedCoroutineSink {
    Fuse fuse;
    std::multiset<std::string> put_ids;

    asio::awaitable<void> put(const sluice::Query& query, const sluice::StageResult<>&) {
        put_ids.insert(query.id.str());
        co_await test::sleep(1ms);
        fuse.point();
    }
    asio::awaitable<void> save(const sluice::Query&, const FusedRecord&) {
        co_await test::sleep(1ms);
        fuse.point();
    }
};

// Runs what the source delivers through two steps with the fuse in everything. The first fails for one query anyway.
template <class Sink>
void run_fused(const Fuse& fuse, bool is_coroutine) {
    INFO("point " << fuse.number());
    FusedSource source{fuse};
    Sink sink{fuse, {}};
    asio::io_context context(1);
    const auto timed = test::timed(context.get_executor());
    sluice::Stage stage(timed, "answer", 2, FusedModel{fuse, is_coroutine});
    const auto route = [stage](FusedRun& run) -> asio::awaitable<void> {
        co_await run.step(&FusedRecord::first, stage, run.query().text);
        co_await run.step(&FusedRecord::second, stage, &FusedRecord::first);
    };
    sluice::Pipeline pipeline(timed, route, sink, 2);
    std::vector<FusedResult> results;
    Task<> consumer(context.get_executor(), [&] {
        return [](auto& from, auto& source_ref, auto& into) -> asio::awaitable<void> {
            auto stream = from.process_stream(source_ref);
            while (auto item = co_await stream.next()) {
                into.push_back(std::move(item->result));
            }
        }(pipeline, source, results);
    });
    sluice::testing::run(context);

    // Each query ends exactly once, and at most one error is injected.
    std::multiset<std::string> ids;
    std::multiset<std::string> dead;
    int injected = consumer.failed_with<InjectedError>() ? 1 : 0;  // by the source
    CHECK((consumer.succeeded() || injected == 1));
    for (const FusedResult& result : results) {
        ids.insert(result.query.id.str());
        CHECK(result.completed == (result.failure() == nullptr));
        const bool is_filled = result.record.first && result.record.second;
        CHECK((is_filled || !result.completed));
        injected += result.dead_letter_error ? 1 : 0;
        if (result.failure()) {
            dead.insert(result.query.id.str());
            const sluice::Reason reason = result.failure()->reason;
            CHECK((reason == sluice::Reason::checkpoint || (reason == sluice::Reason::model && !is_filled)));
            injected += result.failure()->error.type() == "sluice::testing::InjectedError" ? 1 : 0;
        }
    }
    CHECK(ids.size() == source.delivered);
    CHECK(std::set<std::string>(ids.begin(), ids.end()).size() == ids.size());
    CHECK(sink.put_ids == dead);
    CHECK(injected == (fuse.blown() ? 1 : 0));
    CHECK(stage.endpoint().active() == 0);
}

}  // namespace

TEST_CASE("fuse: in the models, the sink, its saves and the source of a pipeline, whatever fails, each query ends once",
          "[fuse][any_shape][source]") {
    const bool is_coroutine = GENERATE(false, true);
    const bool sink_is_coroutine = GENERATE(false, true);
    const int points = fuse_each([&](const Fuse& fuse) {
        if (sink_is_coroutine) {
            run_fused<FusedCoroutineSink>(fuse, is_coroutine);
        } else {
            run_fused<FusedSink>(fuse, is_coroutine);
        }
    });
    CHECK(points == 4 + 3 + 2 + 2 + 2 + 1);  // the source, the first step and its save, the second, and the sink
}
