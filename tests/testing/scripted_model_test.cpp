// SPDX-License-Identifier: BSL-1.0
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/scripted_model.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <catch2/catch_test_macros.hpp>

#include <chrono>
#include <concepts>
#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::StageOptions;
using sluice::testing::ScriptedModel;
using test::Task;
using test::timed;

using Oracle = ScriptedModel<std::string(const std::string&)>;
using OracleResult = sluice::StageResult<std::string>;

const std::exception_ptr oracle_is_busy = std::make_exception_ptr(std::runtime_error("busy"));

// The message of the error with which a task ended.
template <class T>
std::string complaint_of(const Task<T>& task) {
    return sluice::StageError(task.error()).message();
}

Task<std::string> ask_oracle(asio::io_context& context, const Oracle& oracle, const std::string& text = "text") {
    return Task<std::string>(context.get_executor(), [oracle, text] { return oracle(text); });
}

}  // namespace

TEST_CASE("scripted model: each call takes its latency, and answers or fails as the list says", "[scripted_model]") {
    asio::io_context context;
    const Oracle oracle(
        {{.answer = "first", .latency = 20ms}, {.error = oracle_is_busy, .latency = 30ms}, {.answer = "third"}});
    Task<std::string> first = ask_oracle(context, oracle);
    CHECK(sluice::testing::run(context) == 20ms);
    CHECK(first.value() == "first");
    Task<std::string> second = ask_oracle(context, oracle);
    CHECK(sluice::testing::run(context) == 30ms);
    CHECK(complaint_of(second) == "busy");
    Task<std::string> third = ask_oracle(context, oracle);
    CHECK(sluice::testing::run(context) == 0ms);
    CHECK(third.value() == "third");
    CHECK(oracle.calls() == 3);
}

TEST_CASE("scripted model: a list of one call, and an empty one, are lists", "[scripted_model]") {
    asio::io_context context;
    const Oracle one({{.answer = "only"}});
    const Oracle none(std::vector<Oracle::Call>{});
    Task<std::string> only = ask_oracle(context, one);
    Task<std::string> nothing = ask_oracle(context, none);
    sluice::testing::run(context);
    CHECK(only.value() == "only");
    CHECK(nothing.failed_with<std::logic_error>());
}

TEST_CASE("scripted model: a call after the end of the list fails, and says which it is", "[scripted_model]") {
    asio::io_context context;
    const Oracle oracle({{.answer = "first"}});
    const auto first = ask_oracle(context, oracle);
    const auto second = ask_oracle(context, oracle);
    sluice::testing::run(context);
    CHECK(first.succeeded());
    CHECK(second.failed_with<std::logic_error>());
    CHECK(complaint_of(second) == "ScriptedModel: call 1 is not in the script");
    CHECK(oracle.calls() == 2);
    CHECK(oracle.running() == 0);
}

TEST_CASE("scripted model: an error wins over an answer, and one of them is needed", "[scripted_model]") {
    asio::io_context context;
    const Oracle oracle({{.answer = "answer", .error = oracle_is_busy}, {.latency = 5ms}});
    const auto both = ask_oracle(context, oracle);
    const auto neither = ask_oracle(context, oracle);
    CHECK(sluice::testing::run(context) == 5ms);
    CHECK(complaint_of(both) == "busy");
    CHECK(neither.failed_with<std::logic_error>());
    CHECK(complaint_of(neither) == "ScriptedModel: call 1 has neither an answer nor an error");
}

TEST_CASE("scripted model: a function gets the number of the call and its arguments, and may throw",
          "[scripted_model]") {
    asio::io_context context;
    using Sum = ScriptedModel<std::string(const std::string&, int)>;
    const Sum sum([](std::size_t number, const std::string& text, int n) -> Sum::Call {
        if (n == 0) {
            throw std::range_error("zero");
        }
        return {.answer = text + std::to_string(n) + " in call " + std::to_string(number), .latency = n * 1ms};
    });
    const std::string text = "n = ";
    Task<std::string> first(context.get_executor(), [&] { return sum(text, 7); });
    CHECK(sluice::testing::run(context) == 7ms);
    CHECK(first.value() == "n = 7 in call 0");
    Task<std::string> second(context.get_executor(), [&] { return sum(text, 0); });
    Task<std::string> third(context.get_executor(), [&] { return sum(text, 1); });
    sluice::testing::run(context);
    CHECK(second.failed_with<std::range_error>());
    CHECK(third.value() == "n = 1 in call 2");
    CHECK(sum.running() == 0);
    CHECK(test::refusal_of([] { static_cast<void>(Sum(Sum::Script{})); }) ==
          "ScriptedModel: the script must not be empty");
}

TEST_CASE("scripted model: it counts the calls that have begun, that run, and the most at once", "[scripted_model]") {
    asio::io_context context;
    const Oracle oracle({{.answer = "a", .latency = 10ms}, {.answer = "b", .latency = 30ms}, {.answer = "c"}});
    const auto a = ask_oracle(context, oracle);
    auto b = ask_oracle(context, oracle);
    CHECK(oracle.calls() == 0);
    test::poll(context);
    CHECK(oracle.calls() == 2);
    CHECK(oracle.running() == 2);
    test::run_until(context, 15ms);
    CHECK(oracle.running() == 1);
    b.cancel();
    sluice::testing::run(context);
    CHECK(b.aborted());
    CHECK(oracle.running() == 0);
    const auto c = ask_oracle(context, oracle);
    sluice::testing::run(context);
    CHECK(c.succeeded());
    CHECK(oracle.calls() == 3);
    CHECK(oracle.most_running() == 2);
}

TEST_CASE("scripted model: a call beyond the limit fails, and the others do not", "[scripted_model]") {
    asio::io_context context;
    const Oracle oracle(
        [](std::size_t, const std::string& text) { return Oracle::Call{.answer = text, .latency = 5ms}; }, 2);
    const auto a = ask_oracle(context, oracle);
    const auto b = ask_oracle(context, oracle);
    const auto c = ask_oracle(context, oracle);
    sluice::testing::run(context);
    CHECK(a.succeeded());
    CHECK(b.succeeded());
    CHECK(c.failed_with<std::logic_error>());
    CHECK(complaint_of(c) == "ScriptedModel: 3 calls run at once, and the limit is 2");
    CHECK(oracle.most_running() == 3);
    const auto d = ask_oracle(context, oracle);
    sluice::testing::run(context);
    CHECK(d.succeeded());
}

TEST_CASE("scripted model: a limit that is out of range is refused with its value", "[scripted_model]") {
    const Oracle::Script script = [](std::size_t, const std::string&) { return Oracle::Call{}; };
    const std::vector<Oracle::Call> list;
    CHECK(test::refusal_of([&] { static_cast<void>(Oracle(script, 0)); }) ==
          "ScriptedModel: limit must be at least 1, got 0");
    CHECK(test::refusal_of([&] { static_cast<void>(Oracle(list, -1)); }) ==
          "ScriptedModel: limit must be at least 1, got -1");
    CHECK_NOTHROW(Oracle(script, 1));
}

TEST_CASE("scripted model: a stage runs it within its limit, and repeats what fails", "[scripted_model]") {
    asio::io_context context;
    const Oracle oracle({{.error = oracle_is_busy, .latency = 20ms},
                         {.answer = "a", .latency = 20ms},
                         {.answer = "b", .latency = 20ms}},
                        1);
    const sluice::Stage stage(timed(context.get_executor()), "oracle", 1, oracle,
                              StageOptions{.retry = test::retries(1, 5ms)});
    Task<OracleResult> a(context.get_executor(), [&] { return stage.run("1", std::string("x")); });
    Task<OracleResult> b(context.get_executor(), [&] { return stage.run("2", std::string("y")); });
    CHECK(sluice::testing::run(context) == 60ms);
    CHECK(a.value().attempts == 2);
    CHECK(a.value().data == "b");  // b was in line before the retry
    CHECK(b.value().data == "a");
    CHECK(oracle.calls() == 3);
    CHECK(oracle.most_running() == 1);
}

TEST_CASE("scripted model: a stage takes a call that is not in the script for a failure of the model",
          "[scripted_model]") {
    asio::io_context context;
    const Oracle oracle({{.error = oracle_is_busy}});
    const sluice::Stage stage(timed(context.get_executor()), "oracle", 1, oracle,
                              StageOptions{.retry = test::retries(2)});
    Task<OracleResult> task(context.get_executor(), [&] { return stage.run("1", std::string("x")); });
    sluice::testing::run(context);
    CHECK(task.value().reason == sluice::Reason::model);
    CHECK(task.value().error.message() == "ScriptedModel: call 2 is not in the script");
    CHECK(oracle.calls() == 3);
}

TEST_CASE("scripted model: copies are one model, which lives as long as its calls", "[scripted_model]") {
    asio::io_context context;
    std::optional<Oracle> first(Oracle({{.answer = "a", .latency = 10ms}, {.answer = "b", .latency = 10ms}}));
    const Oracle second = *first;
    const auto a = ask_oracle(context, *first);
    test::poll(context);
    CHECK(second.calls() == 1);
    CHECK(second.running() == 1);
    first.reset();
    sluice::testing::run(context);
    CHECK(a.succeeded());

    std::optional<Task<std::string>> last;
    {
        const Oracle gone({{.answer = "c", .latency = 10ms}});
        const std::string text = "text";
        auto call = gone(text);
        last.emplace(context.get_executor(), [awaited = std::make_shared<asio::awaitable<std::string>>(
                                                  std::move(call))] { return std::move(*awaited); });
    }
    sluice::testing::run(context);
    CHECK(last->value() == "c");
}

TEST_CASE("scripted model: its answers may be move-only, from a function", "[scripted_model]") {
    asio::io_context context;
    using Boxes = ScriptedModel<std::unique_ptr<int>()>;
    const Boxes boxes(
        [](std::size_t number) { return Boxes::Call{.answer = std::make_unique<int>(static_cast<int>(number))}; });
    Task<std::unique_ptr<int>> task(context.get_executor(), [boxes] { return boxes(); });
    sluice::testing::run(context);
    CHECK(*task.value() == 0);
}

TEST_CASE("scripted model: its coroutines may be bound to a type of executor", "[scripted_model]") {
    using Executor = asio::io_context::executor_type;
    using Typed = ScriptedModel<int(), sluice::testing::VirtualTimer, Executor>;
    static_assert(std::same_as<decltype(std::declval<Typed&>()()), asio::awaitable<int, Executor>>);
    asio::io_context context;
    const Typed typed({{.answer = 1, .latency = 5ms}});
    std::optional<int> answer;
    asio::co_spawn(context.get_executor(), typed(),
                   [&](const std::exception_ptr& error, int value) { answer = error ? -1 : value; });
    CHECK(sluice::testing::run(context) == 5ms);
    CHECK(answer == 1);
}

TEST_CASE("scripted model: it may wait with another timer", "[scripted_model]") {
    asio::io_context context;
    const ScriptedModel<int(), asio::steady_timer> patient({{.answer = 1, .latency = 1h}});
    Task<int> task(context.get_executor(), [patient] { return patient(); });
    test::poll(context);
    CHECK(patient.running() == 1);
    CHECK(test::VirtualTime::of(context).pending() == 0);
    task.cancel();
    context.run();
    CHECK(task.aborted());
    CHECK(patient.running() == 0);
}
