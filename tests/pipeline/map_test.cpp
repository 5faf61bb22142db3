// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/map.hpp>
#include <sluice/testing/run.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <ranges>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using test::Task;

// Squares a number after as many milliseconds, and counts its calls. Throws for -1.
struct Squares {
    int calls = 0;
    int running = 0;
    int most_running = 0;

    asio::awaitable<long> operator()(const int& number) { return square(*this, number); }

private:
    static asio::awaitable<long> square(Squares& squares, const int& number) {
        const test::Live inside(squares.running);
        ++squares.calls;
        squares.most_running = std::max(squares.most_running, squares.running);
        if (number < 0) {
            throw std::range_error("negative");
        }
        co_await test::sleep(std::chrono::milliseconds(number));
        co_return long{number} * number;
    }
};

// Delivers the numbers from 1, one a millisecond, and throws in the end if it is told to.
struct Counting {
    int last;
    bool throws = false;
    int delivered = 0;

    asio::awaitable<std::optional<int>> next() { return produce(*this); }

private:
    static asio::awaitable<std::optional<int>> produce(Counting& counting) {
        co_await test::sleep(1ms);
        if (counting.delivered == counting.last) {
            if (counting.throws) {
                throw std::runtime_error("no more numbers");
            }
            co_return std::nullopt;
        }
        co_return ++counting.delivered;
    }
};

const std::vector<int> falling{5, 4, 3, 2, 1};
const int eight = 8;

}  // namespace

TEST_CASE("map_batch: has the values in the order of the items, at most `window` at once", "[map]") {
    asio::io_context context(1);
    Squares squares;
    Task<std::vector<long>> batch(context.get_executor(),
                                  [&] { return sluice::map_batch(falling, 3, std::ref(squares)); });
    sluice::testing::run(context);
    CHECK(batch.value() == std::vector<long>{25, 16, 9, 4, 1});
    CHECK(squares.most_running == 3);
    CHECK(squares.calls == 5);
}

TEST_CASE("map_stream: has the values as they complete, with the indexes of the items", "[map]") {
    asio::io_context context(1);
    Squares squares;
    std::vector<std::pair<std::size_t, long>> got;
    auto stream = sluice::map_stream(falling, 5, std::ref(squares));
    Task<> consumer(context.get_executor(), [&] {
        return [](auto& from, auto& into) -> asio::awaitable<void> {
            while (const auto item = co_await from.next()) {
                into.emplace_back(item->index, item->result);
            }
        }(stream, got);
    });
    sluice::testing::run(context);
    CHECK(consumer.succeeded());
    CHECK(got == std::vector<std::pair<std::size_t, long>>{{4, 1}, {3, 4}, {2, 9}, {1, 16}, {0, 25}});
}

TEST_CASE("map_batch: takes items out of an asynchronous source, one at a time", "[map][source]") {
    asio::io_context context(1);
    Squares squares;
    Counting source{4};
    Task<std::vector<long>> batch(context.get_executor(),
                                  [&] { return sluice::map_batch(source, 2, std::ref(squares)); });
    test::run_until(context, 2ms);
    CHECK(source.delivered <= 2);
    sluice::testing::run(context);
    CHECK(batch.value() == std::vector<long>{1, 4, 9, 16});
    CHECK(squares.most_running == 2);
}

TEST_CASE("map_batch: an item lives until its coroutine has ended, and is moved out of a container that was moved in",
          "[map]") {
    asio::io_context context(1);
    std::vector<std::unique_ptr<int>> owned;
    for (const int number : falling) {
        owned.push_back(std::make_unique<int>(number));
    }
    const auto later = [](const std::unique_ptr<int>& item) -> asio::awaitable<int> {
        co_await test::sleep(10ms);
        co_return *item;
    };
    Task<std::vector<int>> batch(context.get_executor(), [&] { return sluice::map_batch(std::move(owned), 2, later); });
    sluice::testing::run(context);
    CHECK(batch.value() == falling);
}

TEST_CASE("map_batch: any type of item and value, also optionals and none at all", "[map]") {
    asio::io_context context(1);
    int sum = 0;
    const auto add = [&sum](int number) -> asio::awaitable<void> {
        sum += number;
        co_return;
    };
    Task<> nothing(context.get_executor(), [&] { return sluice::map_batch(falling, 2, add); });
    std::vector<std::optional<int>> optionals{1, std::nullopt, 3};
    const auto has_value = [](const std::optional<int>& item) -> asio::awaitable<std::unique_ptr<bool>> {
        co_return std::make_unique<bool>(item.has_value());
    };
    Task<std::vector<std::unique_ptr<bool>>> flags(context.get_executor(),
                                                   [&] { return sluice::map_batch(optionals, 2, has_value); });
    auto stream = sluice::map_stream(std::views::iota(0, 1), 1, add);
    Task<std::optional<sluice::StreamItem<std::monostate>>> item(context.get_executor(), [&] { return stream.next(); });
    sluice::testing::run(context);
    CHECK(nothing.succeeded());
    CHECK(sum == 15);
    REQUIRE(flags.value().size() == 3);
    CHECK(*flags.value()[0]);
    CHECK_FALSE(*flags.value()[1]);
    CHECK(item.value().has_value());
}

TEST_CASE("map_batch: the first exception cancels the other calls and is thrown", "[map]") {
    asio::io_context context(1);
    Squares squares;
    const std::vector<int> items{500, -1, 3, 4};
    Task<std::vector<long>> batch(context.get_executor(),
                                  [&] { return sluice::map_batch(items, 2, std::ref(squares)); });
    CHECK(sluice::testing::run(context) == 0ms);
    CHECK(batch.failed_with<std::range_error>());
    CHECK(squares.running == 0);
    CHECK(squares.calls == 2);
}

TEST_CASE("map_stream: an exception comes after the values before it, once", "[map]") {
    asio::io_context context(1);
    Squares squares;
    const bool by_source = GENERATE(false, true);
    Counting source{2, true};
    const std::vector<int> items{2, 1, -1, 9};
    auto stream =
        by_source ? sluice::map_stream(source, 1, std::ref(squares)) : sluice::map_stream(items, 1, std::ref(squares));
    const auto next = [&] {
        Task<std::optional<sluice::StreamItem<long>>> item(context.get_executor(), [&] { return stream.next(); });
        sluice::testing::run_until_stalled(context);
        return item;
    };
    CHECK(next().value());
    CHECK(next().value());
    auto third = next();
    CHECK((by_source ? third.failed_with<std::runtime_error>() : third.failed_with<std::range_error>()));
    CHECK_FALSE(next().value());
    CHECK(squares.running == 0);
}

namespace {

// Puts the values of a stream into a vector, until it ends or throws.
template <class Stream>
Task<> collect(asio::io_context& context, Stream& stream, std::vector<long>& values) {
    return Task<>(context.get_executor(), [&stream, &values] {
        return [](auto& from, auto& into) -> asio::awaitable<void> {
            while (const auto item = co_await from.next()) {
                into.push_back(item->result);
            }
        }(stream, values);
    });
}

}  // namespace

TEST_CASE("map_stream: an exception of the input lets the calls that run end, and comes after their values", "[map]") {
    asio::io_context context(1);
    Squares squares;
    std::vector<long> values;
    const bool by_source = GENERATE(false, true);
    Counting source{1, true};
    const auto throws_at_the_second = std::views::iota(0, 3) | std::views::transform([](int number) {
                                          return number == 1 ? throw std::runtime_error("no number") : 8;
                                      });
    const auto eights = [&squares](int) { return squares(eight); };
    auto stream =
        by_source ? sluice::map_stream(source, 2, eights) : sluice::map_stream(throws_at_the_second, 2, eights);
    const auto consumer = collect(context, stream, values);
    CHECK(sluice::testing::run(context) == (by_source ? 9ms : 8ms));
    CHECK(values == std::vector<long>{64});
    CHECK(consumer.failed_with<std::runtime_error>());
    CHECK(squares.calls == 1);
}

TEST_CASE("map_stream: an exception of a call cancels the others, but not the values before it", "[map]") {
    asio::io_context context(1);
    Squares squares;
    std::vector<long> values;
    const std::vector<int> items{1, 500, -1, 3};
    auto stream = sluice::map_stream(items, 2, std::ref(squares));
    const auto consumer = collect(context, stream, values);
    CHECK(sluice::testing::run(context) == 1ms);
    CHECK(values == std::vector<long>{1});
    CHECK(consumer.failed_with<std::range_error>());
    CHECK(squares.calls == 3);
    CHECK(squares.running == 0);
}

TEST_CASE("map_stream: if the input and then a call throw, the first exception is thrown", "[map]") {
    asio::io_context context(1);
    std::vector<long> values;
    Counting source{1, true};
    const auto fails = [](int) -> asio::awaitable<long> {
        co_await test::sleep(5ms);
        throw std::range_error("the call");
    };
    auto stream = sluice::map_stream(source, 2, fails);
    const auto consumer = collect(context, stream, values);
    CHECK(sluice::testing::run(context) == 6ms);
    CHECK(values.empty());
    CHECK((consumer.failed_with<std::runtime_error>() && !consumer.failed_with<std::range_error>()));
}

TEST_CASE("map_batch: cancelled at every step, it waits for its calls", "[map][cancellation]") {
    const bool from_source = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        asio::io_context context(1);
        Squares squares;
        Counting source{4};
        Task<std::vector<long>> batch(context.get_executor(), [&] {
            return from_source ? sluice::map_batch(source, 2, std::ref(squares))
                               : sluice::map_batch(falling, 2, std::ref(squares));
        });
        test::poll(context);
        steps.take(context);
        const bool ended = batch.done();
        batch.cancel();
        sluice::testing::run(context);
        CHECK((ended ? batch.succeeded() : batch.done()));
        CHECK(squares.running == 0);
    });
}

TEST_CASE("map_stream: may outlive what made it, and be destroyed at every step", "[map][stress]") {
    const bool context_first = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        auto context = std::make_unique<asio::io_context>(1);
        Squares squares;
        auto stream = std::make_unique<sluice::ResultStream<long, asio::any_io_executor>>(
            sluice::map_stream(std::vector<int>(falling), 2, std::ref(squares)));
        Task<std::optional<sluice::StreamItem<long>>> item(context->get_executor(), [&] { return stream->next(); });
        test::poll(*context);
        steps.take(*context);
        if (context_first) {
            context.reset();
            stream.reset();
        } else {
            stream.reset();
            sluice::testing::run(*context);
            CHECK(squares.running == 0);
            context.reset();
        }
    });
}

TEST_CASE("map_batch: a window of none is refused", "[map]") {
    const auto no_call = [](int number) -> asio::awaitable<int> { co_return number; };
    CHECK(test::refusal_of([&] { static_cast<void>(sluice::map_batch(falling, 0, no_call)); }) ==
          "map_batch: window must be at least 1, got 0");
    CHECK(test::refusal_of([&] { static_cast<void>(sluice::map_stream(falling, -1, no_call)); }) ==
          "map_stream: window must be at least 1, got -1");
}
