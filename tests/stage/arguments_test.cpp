// SPDX-License-Identifier: BSL-1.0
// The arguments of user-provided callables, at every place that calls one. An argument that has to be converted must
// live as long as the coroutine that refers to it; if it does not, AddressSanitizer reports it, clang's above all.
#include <sluice/observer.hpp>
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/sync/task_group.hpp>
#include <sluice/sync/timeout.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include "support/models.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/version.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;
using sluice::Stage;
using sluice::StageResult;
using test::StageOptions;
using test::Task;
using Text = asio::awaitable<std::string>;

constexpr const char* literal = "a text that is too long for the small-string optimisation";

// Suspends before it reads its argument. The first `failures` calls fail.
struct Echo {
    int failures = 0;

    Text operator()(const std::string& text) {
        co_await test::sleep(1ms);
        if (failures-- > 0) {
            throw std::runtime_error("again");
        }
        co_return text;
    }
};

Text echo(const std::string& text) {
    co_await test::sleep(1ms);
    co_return text;
}

struct Client {
    std::string name;

    explicit Client(std::string client_name) : name(std::move(client_name)) {}

    Text ask(const std::string& text) {
        co_await test::sleep(1ms);
        co_return name + text;
    }
    Text ask_const(const std::string& text) const noexcept {
        co_await test::sleep(1ms);
        co_return name + text;
    }
};

struct SpecialClient : Client {
    using Client::Client;
};

StageOptions options() {
    StageOptions result{.retry = test::retries(1)};
    if (GENERATE(false, true)) {
        result.timeout = 1s;
    }
    return result;
}

template <class Function, class... Args>
void check(const StageOptions& options, Function function, Args&... args) {
    asio::io_context context;
    Stage stage(test::timed(context.get_executor()), "s", 1, std::move(function), options);
    Task<StageResult<std::string>> task(context.get_executor(), [&] { return stage.run("q", args...); });
    sluice::testing::run(context);
    REQUIRE(task.succeeded());
    CHECK(task.value().success);
    CHECK(task.value().data == literal);
}

}  // namespace

TEST_CASE("arguments: a stage converts them for each attempt, and they live as long as the attempt",
          "[arguments][stage]") {
    const auto with = options();
    const char* text = literal;
    check(with, echo, text);
    check(with, Echo{1}, text);
    check(with, std::function<Text(const std::string&)>(Echo{1}), text);
    check(
        with,
        [](std::string copy) -> Text {
            co_await test::sleep(1ms);
            co_return copy;
        },
        text);
    check(
        with,
        [](std::string_view view) -> Text {
            co_await test::sleep(1ms);
            co_return std::string(view);
        },
        text);
}

TEST_CASE("arguments: they are converted for a function that a stage refers to", "[arguments][stage]") {
    const auto with = options();
    const char* text = literal;
    check(with, std::ref(echo), text);
    Echo functor{1};
    check(with, std::ref(functor), text);
    CHECK(functor.failures == -1);
    const std::function<Text(const std::string&)> function = echo;
    check(with, std::cref(function), text);
}

TEST_CASE("arguments: they are converted for a member function", "[arguments][stage]") {
    const auto with = options();
    const char* text = literal;
    Client client("");
    SpecialClient special("");
    Client* pointer = &client;
    auto shared = std::make_shared<Client>("");
    auto wrapped = std::ref(client);
    const Client constant("");
    check(with, &Client::ask, client, text);
    check(with, &Client::ask, special, text);
    check(with, &Client::ask, pointer, text);
    check(with, &Client::ask, shared, text);
    check(with, &Client::ask, wrapped, text);
    check(with, &Client::ask_const, client, text);
    check(with, &Client::ask_const, constant, text);
    auto member = &Client::ask;
    check(with, std::ref(member), client, text);
}

TEST_CASE("arguments: rvalues are moved in, converted, and const", "[arguments][stage]") {
    asio::io_context context;
    Stage stage(test::timed(context.get_executor()), "s", 1, Echo{1}, options());
    Task<StageResult<std::string>> task(context.get_executor(), [&] {
        const char* pointer = literal;
        return stage.run("q", std::move(pointer));
    });
    Task<StageResult<std::string>> literally(context.get_executor(), [&] { return stage.run("q", literal); });
    sluice::testing::run(context);
    CHECK(task.value().data == literal);
    CHECK(literally.value().data == literal);
}

namespace {

struct Spoken {
    std::optional<std::string> before;
    std::optional<std::string> words;
};

// A step with these arguments, after one that runs in place.
template <class Function, class... Args>
class StepWith : sluice::Observer {
public:
    // Returns whether it runs in place too: then the results of both lie in the state of their query, one by one.
    static bool runs_in_place(Function function, Args&... args) {
        StepWith step;
        asio::io_context context;
        const auto executor = test::timed(context.get_executor());
        const StageOptions observed{.observer = &step};
        const First first(executor, "first", 1, echo, observed);
        const Second second(executor, "second", 1, std::move(function), observed);
        test::DeadLetters sink;
        sluice::Pipeline pipeline(
            executor, [&](sluice::Run<Spoken>& run) { return route(run, first, second, args...); }, sink, 1);
        Task<sluice::RecordResult<Spoken>> task(context.get_executor(),
                                                [&] { return pipeline.process_one({"q", "text"}); });
        sluice::testing::run(context);
        REQUIRE(task.succeeded());
        CHECK(task.value().completed);
        CHECK(task.value().record.words == literal);
        REQUIRE(step.places_.size() == 2);
        return step.places_[0] == step.places_[1];
    }

private:
    using First = Stage<Text (*)(const std::string&), test::VirtualTimer>;
    using Second = Stage<Function, test::VirtualTimer>;

    static asio::awaitable<void> route(sluice::Run<Spoken>& run, const First& first, const Second& second,
                                       Args&... args) {
        co_await run.step(&Spoken::before, first, run.query().text);
        co_await run.step(&Spoken::words, second, args...);
    }

    void on_queued(const StageResult<>& run) noexcept override { places_.push_back(&run); }

    std::vector<const void*> places_;
};

template <class Function, class... Args>
bool step_runs_in_place(Function function, Args&... args) {
    return StepWith<Function, Args...>::runs_in_place(std::move(function), args...);
}

#if BOOST_VERSION >= 108300 && BOOST_VERSION <= 109200 && !defined(SLUICE_PORTABLE_AWAIT)
constexpr bool steps_run_in_place = true;
#else
constexpr bool steps_run_in_place = false;
#endif

Text literal_if_2(const double& number) {
    co_await test::sleep(1ms);
    co_return number == 2.0 ? literal : "another number";
}

}  // namespace

TEST_CASE("arguments: a step runs in place if its model function takes them as they are", "[arguments][any_shape]") {
    std::string text = literal;
    const std::string constant = literal;
    CHECK(step_runs_in_place(echo, text) == steps_run_in_place);
    CHECK(step_runs_in_place(Echo(), text) == steps_run_in_place);
    CHECK(step_runs_in_place(Echo(), constant) == steps_run_in_place);
    CHECK(step_runs_in_place(std::function<Text(const std::string&)>(Echo()), text) == steps_run_in_place);
    Echo functor;
    CHECK(step_runs_in_place(std::ref(functor), text) == steps_run_in_place);
    const std::function<Text(const std::string&)> function = echo;
    CHECK(step_runs_in_place(std::cref(function), text) == steps_run_in_place);
    CHECK(step_runs_in_place([](std::string& same) { return echo(same); }, text) == steps_run_in_place);
    const double number = 2.0;
    CHECK(step_runs_in_place(literal_if_2, number) == steps_run_in_place);
    const auto by_value = [](std::string_view view, int) -> Text {
        co_await test::sleep(1ms);
        co_return std::string(view);
    };
    const int ignored = 1;
    CHECK(step_runs_in_place(by_value, text, ignored) == steps_run_in_place);
    SpecialClient special("");
    const auto of_base = [&text](Client& client) { return client.ask(text); };
    CHECK(step_runs_in_place(of_base, special) == steps_run_in_place);
}

TEST_CASE("arguments: a step converts them, and they live as long as the attempt", "[arguments][any_shape]") {
    const char* pointer = literal;
    std::string text = literal;
    const int number = 2;
    CHECK_FALSE(step_runs_in_place(echo, pointer));
    CHECK_FALSE(step_runs_in_place(std::function<Text(const std::string&)>(echo), pointer));
    CHECK_FALSE(step_runs_in_place(literal_if_2, number));
    CHECK_FALSE(step_runs_in_place([](std::string copy) { return echo(copy); }, text));  // refers to its parameter
    CHECK_FALSE(step_runs_in_place([](std::string copy) { return echo(copy); }, pointer));
    CHECK_FALSE(step_runs_in_place([](std::string&& temporary) { return echo(temporary); }, pointer));
}

TEST_CASE("arguments: a step of a model function with several signatures, or of a member", "[arguments][any_shape]") {
    const char* pointer = literal;
    std::string text = literal;
    Client client("");
    Client* client_pointer = &client;
    auto shared = std::make_shared<Client>("");
    CHECK_FALSE(step_runs_in_place([](const auto& any) { return echo(any); }, text));
    CHECK_FALSE(step_runs_in_place(&Client::ask, client, text));
    CHECK_FALSE(step_runs_in_place(&Client::ask, client, pointer));
    CHECK_FALSE(step_runs_in_place(&Client::ask, client_pointer, pointer));
    CHECK_FALSE(step_runs_in_place(&Client::ask, shared, pointer));
    CHECK_FALSE(step_runs_in_place(&Client::ask_const, client, pointer));
    CHECK_FALSE(step_runs_in_place(std::ref(echo), pointer));
}

TEST_CASE("arguments: a retry sees an rvalue argument unchanged", "[arguments][stage]") {
    asio::io_context context;
    std::vector<std::string> seen;
    Stage stage(
        test::timed(context.get_executor()), "s", 1,
        [&](auto& text) -> asio::awaitable<int> {
            seen.push_back(text);
            const std::string taken = std::move(text);  // NOLINT(performance-move-const-arg): const, so it is copied
            if (seen.size() == 1) {
                throw std::runtime_error("again");
            }
            co_return 1;
        },
        StageOptions{.retry = test::retries(1)});
    Task<StageResult<int>> task(context.get_executor(), [&] { return stage.run("q", std::string(literal)); });
    sluice::testing::run(context);
    CHECK(task.value().success);
    CHECK(seen == std::vector<std::string>(2, literal));
}

TEST_CASE("arguments: intent and entities are converted for generate, and const in all attempts",
          "[arguments][pipeline]") {
    asio::io_context context;
    test::DeadLetters dead_letters;
    int attempts = 0;
    const auto pointer = [](const std::string&) -> asio::awaitable<const char*> { co_return literal; };
    const auto string = [](const std::string&) -> Text { co_return literal; };
    const auto generate = [&](const std::string& intent, auto& entities, std::string_view text) -> Text {
        const std::string taken = std::move(entities);  // NOLINT(performance-move-const-arg): const, so it is copied
        co_await test::sleep(1ms);
        if (++attempts == 1) {
            throw std::runtime_error("again");
        }
        co_return intent == literal&& taken == literal&& text == "text" ? "right" : "wrong";
    };
    sluice::InferencePipeline pipeline(test::timed(context.get_executor()), pointer, string, generate,
                                       sluice::StageLimits{1, 1, 1}, dead_letters, test::every_stage(options()));
    using Outcome = decltype(pipeline)::Result;
    Task<Outcome> task(context.get_executor(), [&] { return pipeline.process_one({"q", "text"}); });
    sluice::testing::run(context);
    REQUIRE(task.succeeded());
    CHECK(attempts == 2);
    CHECK(task.value().response == "right");
    CHECK(task.value().entities == literal);
}

TEST_CASE("arguments: intent and entities are converted for a generate that is not repeated", "[arguments][pipeline]") {
    asio::io_context context;
    test::DeadLetters dead_letters;
    const auto pointer = [](const std::string&) -> asio::awaitable<const char*> { co_return literal; };
    const auto number = [](const std::string&) -> asio::awaitable<int> { co_return 2; };
    const auto generate = [](const std::string& intent, const double& entities, std::string text) -> Text {
        co_await test::sleep(1ms);
        co_return intent == literal&& entities == 2.0 && text == "text" ? "right" : "wrong";
    };
    sluice::InferencePipeline pipeline(test::timed(context.get_executor()), pointer, number, generate,
                                       sluice::StageLimits{1, 1, 1}, dead_letters);
    using Outcome = decltype(pipeline)::Result;
    Task<Outcome> task(context.get_executor(), [&] { return pipeline.process_one({"q", "text"}); });
    sluice::testing::run(context);
    REQUIRE(task.succeeded());
    CHECK(task.value().response == "right");
}

namespace {

struct Incident {
    std::string text;
    Incident(const sluice::Query& query) : text(query.text + ", which was long enough for the heap") {}
};

struct IncidentSink {
    std::vector<std::string> texts;

    asio::awaitable<void> put(const Incident& incident, const sluice::StageResult<>&) {
        co_await test::sleep(1ms);
        texts.push_back(incident.text);
    }
};

// A TaskGroup converts to it.
struct Spawner {
    sluice::TaskGroup* group;
    std::string name = literal;
    Spawner(sluice::TaskGroup& spawned_into) : group(&spawned_into) {}
};

}  // namespace

namespace {

// A model whose signature cannot be told.
struct Reciter {
    Text operator()(const std::string& text = std::string(literal) + "!") & {
        co_await test::sleep(1ms);
        co_return text;
    }
    Text operator()(int) const = delete;
};

struct Recital {
    std::optional<std::string> text;
};

}  // namespace

TEST_CASE("arguments: a default argument lives as long as the attempt", "[arguments][pipeline]") {
    asio::io_context context;
    test::DeadLetters sink;
    const sluice::Stage stage(test::timed(context.get_executor()), "recite", 1, Reciter());
    auto route = [stage](sluice::Run<Recital>& run) -> asio::awaitable<void> {
        co_await run.step(&Recital::text, stage);
    };
    sluice::Pipeline pipeline(test::timed(context.get_executor()), std::move(route), sink, 1);
    Task<sluice::RecordResult<Recital>> task(context.get_executor(),
                                             [&] { return pipeline.process_one({"q", "text"}); });
    sluice::testing::run(context);
    CHECK(task.value().record.text == std::string(literal) + "!");
}

TEST_CASE("arguments: they are converted for a dead-letter sink", "[arguments][pipeline]") {
    asio::io_context context;
    IncidentSink sink;
    const auto fails = [](const std::string&) -> asio::awaitable<int> {
        throw std::runtime_error("no");
        co_return 1;
    };
    const auto generate = [](int, int, const std::string&) -> asio::awaitable<int> { co_return 1; };
    sluice::InferencePipeline pipeline(test::timed(context.get_executor()), fails, fails, generate,
                                       sluice::StageLimits{1, 1, 1}, sink, test::InferencePipelineOptions{});
    using Outcome = decltype(pipeline)::Result;
    Task<Outcome> task(context.get_executor(), [&] { return pipeline.process_one({"q", "text"}); });
    sluice::testing::run(context);
    CHECK(sink.texts == std::vector<std::string>{"text, which was long enough for the heap"});
}

namespace {

struct Tally {
    std::optional<int> number;
};

struct TallySink {
    std::vector<std::string> texts;

    asio::awaitable<void> put(const Incident& incident, const sluice::StageResult<>&, const Tally&) {
        co_await test::sleep(1ms);
        texts.push_back("put " + incident.text);
    }
    asio::awaitable<void> save(const Incident& incident, const Tally&) {
        co_await test::sleep(1ms);
        texts.push_back("saved " + incident.text);
    }
};

}  // namespace

TEST_CASE("arguments: they are converted for a sink that saves", "[arguments][pipeline]") {
    asio::io_context context;
    TallySink sink;
    const auto counts = [](const std::string&) -> asio::awaitable<int> { co_return 1; };
    const sluice::Stage stage(test::timed(context.get_executor()), "count", 1, counts);
    auto route = [stage](sluice::Run<Tally>& run) -> asio::awaitable<void> {
        co_await run.step(&Tally::number, stage, run.query().text);
        throw std::runtime_error("no");
    };
    sluice::Pipeline pipeline(test::timed(context.get_executor()), std::move(route), sink, 1);
    Task<sluice::RecordResult<Tally>> task(context.get_executor(), [&] { return pipeline.process_one({"q", "text"}); });
    sluice::testing::run(context);
    CHECK(sink.texts == std::vector<std::string>{"saved text, which was long enough for the heap",
                                                 "put text, which was long enough for the heap"});
}

TEST_CASE("arguments: they are converted for the body of a task group", "[arguments][task_group]") {
    asio::io_context context;
    const auto body = [](const Spawner& spawner) -> Text {
        co_await test::sleep(1ms);
        spawner.group->spawn(test::sleep(1ms));
        co_return spawner.name;
    };
    Task<std::string> task(context.get_executor(), [&] { return sluice::with_task_group(body); });
    Task<std::string> referred(context.get_executor(), [&] { return sluice::with_task_group(std::ref(body)); });
    sluice::testing::run(context);
    CHECK(task.value() == literal);
    CHECK(referred.value() == literal);
}
