// SPDX-License-Identifier: BSL-1.0
// The code in README.md, examples/README.md and the comments of the headers, compiled and, where possible, run. Code
// marked BAD is only compiled.
#include "support/task.hpp"

#include <sluice/sluice.hpp>
#include <sluice/testing/interleaving_context.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/append.hpp>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/channel.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/system/error_code.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <ranges>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {

asio::awaitable<int> call_model(std::string) { co_return 1; }

asio::awaitable<int> classify(const std::string& text) {
    if (text == "fail") throw std::runtime_error("no");
    co_return 1;
}
asio::awaitable<int> extract(const std::string&) { co_return 2; }
asio::awaitable<std::string> generate(int, int, const std::string& text) { co_return text; }

struct CollectingSink {
    std::vector<std::string> lost;
    void put(const sluice::Query& query, const sluice::StageResult<>& why) {
        lost.push_back(query.id.str() + " in " + why.stage.str() + ": " + why.error.message());
    }
};

// README: cancellation and shutdown.

template <class Pipeline, class Queries>
asio::awaitable<int> first_answers(Pipeline& pipeline, Queries& endless, int wanted) {
    auto stream = pipeline.process_stream(endless);
    int completed = 0;
    while (auto item = co_await stream.next()) {
        if (item->result.completed && ++completed == wanted) break;
    }
    co_await stream.close();  // cancels the queries that still run, and waits until they have ended
    co_return completed;
}

TEST_CASE("readme: a stream is closed when there are enough results", "[readme]") {
    asio::io_context context;
    CollectingSink sink;
    sluice::InferencePipeline pipeline(context.get_executor(), classify, extract, generate,
                                       sluice::StageLimits{4, 2, 1}, sink);
    auto endless =
        std::views::iota(0) | std::views::transform([](int i) { return sluice::Query(std::to_string(i), "text"); });
    test::Task<int> task(context.get_executor(), [&] { return first_answers(pipeline, endless, 10); });
    sluice::testing::run(context);
    CHECK(task.value() == 10);
}

// README: testing on virtual time.

TEST_CASE("readme: a pipeline is tested on virtual time", "[readme]") {
    using sluice::testing::VirtualTimer;
    CollectingSink sink;  // keeps "<id> in <stage>: <error>"

    asio::io_context context;
    auto model = [](const std::string& text) -> asio::awaitable<int> {
        co_await sluice::sleep_for<VirtualTimer>(150ms);
        if (text == "fail") throw std::runtime_error("no");
        co_return 1;
    };
    auto answer = [](int, int, const std::string& text) -> asio::awaitable<std::string> { co_return text; };
    sluice::InferencePipeline pipeline(sluice::timed_by<VirtualTimer>(context.get_executor()), model, model, answer,
                                       sluice::StageLimits{1, 1, 1}, sink);

    std::vector<sluice::Query> queries{{"1", "one"}, {"2", "fail"}, {"3", "three"}};
    asio::co_spawn(context, pipeline.process_batch(queries), [](std::exception_ptr, auto results) {
        CHECK(results[0].completed);
        CHECK(results[2].stage_results[0].queue_time == 300ms);
    });
    CHECK(sluice::testing::run(context) == 600ms);  // without any real delay
    CHECK(sink.lost == std::vector<std::string>{"2 in classify: no"});
}

// The guide: testing in many interleavings.

struct Cache {
    sluice::StageSemaphore lock;
    std::map<std::string, int> known;
    int asked = 0;

    explicit Cache(asio::any_io_executor executor) : lock(std::move(executor), 1) {}

    asio::awaitable<int> operator()(const std::string& text) {
        const auto held = co_await lock.acquire();
        if (!known.contains(text)) {
            ++asked;
            co_await sluice::sleep_for<sluice::testing::VirtualTimer>(1ms);
            known[text] = 1;
        }
        co_return known[text];
    }
};

TEST_CASE("guide: a pipeline is tested in many interleavings", "[readme]") {
    using sluice::testing::VirtualTimer;
    CollectingSink sink;
    std::vector<sluice::Query> queries{{"1", "one"}, {"2", "two"}, {"3", "one"}, {"4", "two"}};

    for (unsigned seed = 0; seed != 1000; ++seed) {  // each seed is another interleaving, the same in every run
        CAPTURE(seed);
        std::mt19937 random(seed);
        sluice::testing::InterleavingContext context([&](std::size_t ready) { return random() % ready; });
        Cache cache(context.get_executor());
        sluice::InferencePipeline pipeline(sluice::timed_by<VirtualTimer>(context.get_executor()), std::ref(cache),
                                           std::ref(cache), generate, sluice::StageLimits{4, 4, 4}, sink);
        asio::co_spawn(context.get_executor(), pipeline.process_batch(queries), asio::detached);
        context.run();
        CHECK(cache.asked == 2);
    }
    CHECK(sink.lost.empty());
}

// The guide: lifetime and ownership, arguments.

asio::awaitable<std::size_t> by_reference(const std::string& text) { co_return text.size(); }
asio::awaitable<std::size_t> by_value(std::string text) { co_return text.size(); }

[[maybe_unused]] asio::awaitable<void> bad_argument() {
    auto later = by_reference("some text");  // BAD: the temporary string is gone before the coroutine begins
    (void)co_await std::move(later);
}

TEST_CASE("guide: arguments of coroutines", "[readme]") {
    asio::io_context context;
    const test::Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        auto later = by_value("some text");  // GOOD: the string lives in the coroutine's frame
        const std::size_t one = co_await std::move(later);
        const std::size_t two = co_await by_reference("some text");  // GOOD: awaited where the string is made
        CHECK(one == two);
    });
    sluice::testing::run(context);
    CHECK(task.succeeded());
}

template <class StageType>
[[maybe_unused]] asio::awaitable<void> bad_reference(StageType& stage, sluice::TaskGroup& group) {
    for (int i = 0; i < 3; ++i) {
        sluice::Query query(std::to_string(i), "text");
        group.spawn(stage.run(query.id, query.text));  // BAD: query.text is gone before the stage runs
    }
    co_return;
}

template <class StageType>
asio::awaitable<void> good_reference(StageType& stage, sluice::TaskGroup& group) {
    for (int i = 0; i < 3; ++i) {
        sluice::Query query(std::to_string(i), "text");
        group.spawn(stage.run(query.id, std::move(query.text)));  // GOOD: the stage run owns the text
    }
    co_return;
}

TEST_CASE("guide: arguments of a stage run", "[readme]") {
    asio::io_context context;
    std::size_t characters = 0;
    sluice::Stage stage(context.get_executor(), "count", 2, [&](const std::string& text) -> asio::awaitable<int> {
        characters += text.size();
        co_return 1;
    });
    const test::Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        co_await sluice::with_task_group([&](sluice::TaskGroup& group) { return good_reference(stage, group); });
    });
    sluice::testing::run(context);
    CHECK(task.succeeded());
    CHECK(characters == 12);
}

// The guide: lifetime and ownership, lambdas.

[[maybe_unused]] void bad_lambda(asio::io_context& context, std::string text) {
    // BAD: the captures live in the lambda, which is gone at the end of the statement; the coroutine still uses them.
    asio::co_spawn(context, [text]() -> asio::awaitable<void> { co_await call_model(text); }(), asio::detached);
}

[[maybe_unused]] void good_lambda(asio::io_context& context, std::string text) {
    // GOOD: co_spawn() is passed the lambda itself, and keeps it as long as its coroutine.
    asio::co_spawn(context, [text]() -> asio::awaitable<void> { co_await call_model(text); }, asio::detached);
}

// The guide: lifetime and ownership, frames.

asio::awaitable<void> count(int& answers) { answers += co_await call_model("text"); }

[[maybe_unused]] void bad_detached(asio::io_context& context) {
    int answers = 0;
    asio::co_spawn(context, count(answers), asio::detached);  // BAD: nothing waits for it before `answers` is gone
}

[[maybe_unused]] asio::awaitable<void> bad_local() {
    co_await sluice::with_task_group([](sluice::TaskGroup& group) -> asio::awaitable<void> {
        int answers = 0;  // in the frame of the body
        group.spawn([&answers] { return count(answers); });
        co_return;  // BAD: the body's frame is gone before its children begin
    });
}

asio::awaitable<int> good_group() {
    int answers = 0;
    co_await sluice::with_task_group([&](sluice::TaskGroup& group) -> asio::awaitable<void> {
        group.spawn([&] { return count(answers); });
        group.spawn([&] { return count(answers); });
        co_return;
    });
    co_return answers;  // GOOD: both children have ended, however they ended
}

TEST_CASE("guide: children refer to the frame that awaits their group", "[readme]") {
    asio::io_context context;
    test::Task<int> task(context.get_executor(), good_group);
    sluice::testing::run(context);
    CHECK(task.value() == 2);
}

// The guide: lifetime and ownership, primitives and contexts.

TEST_CASE("guide: a primitive and its context are destroyed in either order", "[readme]") {
    std::optional<asio::io_context> context(std::in_place);
    std::optional<sluice::StageSemaphore> semaphore(std::in_place, context->get_executor(), 1);
    sluice::Slot slot = semaphore->try_acquire();
    const auto wait = [&]() -> asio::awaitable<void> { const sluice::Slot mine = co_await semaphore->acquire(); };
    asio::co_spawn(*context, wait, asio::detached);
    context->poll();
    CHECK(semaphore->waiting() == 1);

    context.reset();    // GOOD: destroys the waiting coroutine, which does not resume
    semaphore.reset();  // GOOD: the slot keeps the state that it needs
    slot.release();     // GOOD: nothing is left to hand it to
}

// The guide: lifetime and ownership, streams that are left early.

asio::awaitable<void> print(std::string) { co_return; }

[[maybe_unused]] asio::awaitable<void> bad_stream(std::vector<sluice::Query> queries) {
    CollectingSink sink;
    sluice::InferencePipeline pipeline(co_await asio::this_coro::executor, classify, extract, generate,
                                       sluice::StageLimits{4, 2, 1}, sink);
    auto stream = pipeline.process_stream(queries);
    if (auto item = co_await stream.next()) co_await print(item->result.query.text);
    // BAD: the queries that were cancelled end later, and the sink and the range are gone by then.
}

asio::awaitable<void> good_stream(std::vector<sluice::Query> queries) {
    CollectingSink sink;
    sluice::InferencePipeline pipeline(co_await asio::this_coro::executor, classify, extract, generate,
                                       sluice::StageLimits{4, 2, 1}, sink);
    auto stream = pipeline.process_stream(std::move(queries));  // moved in: the stream owns the range
    if (auto item = co_await stream.next()) co_await print(item->result.query.text);
    co_await stream.close();  // GOOD: nothing uses the sink any more
}

TEST_CASE("guide: a stream is closed before its sink is gone", "[readme]") {
    asio::io_context context;
    const test::Task<> task(context.get_executor(),
                            [] { return good_stream({{"1", "one"}, {"2", "two"}, {"3", "three"}}); });
    sluice::testing::run(context);
    CHECK(task.succeeded());
}

// The guide: lifetime and ownership, threads and strands.

std::size_t blocking_call(const std::string& text) { return text.size(); }

[[maybe_unused]] void bad_threads(asio::thread_pool& pool, CollectingSink& sink) {
    // BAD: the threads of the pool run the pipeline's handlers side by side.
    sluice::InferencePipeline pipeline(pool.get_executor(), classify, extract, generate, sluice::StageLimits{4, 2, 1},
                                       sink);
}

[[maybe_unused]] void bad_order() {
    asio::thread_pool pool(2);  // BAD: it is destroyed last, when the context that its work resumes on is gone
    asio::io_context context;
}

[[maybe_unused]] asio::awaitable<void> bad_timeout(asio::thread_pool& pool) {
    const auto work = [&pool] { return asio::co_spawn(pool, call_model("text"), asio::use_awaitable); };
    co_await sluice::with_timeout(1s, work);  // BAD: when the time is up, Asio cancels the work on another thread
}

[[maybe_unused]] asio::awaitable<void> good_timeout(asio::thread_pool& pool) {
    const auto work = [&pool] { return sluice::run_on(pool.get_executor(), [] { return call_model("text"); }); };
    co_await sluice::with_timeout(1s, work);  // GOOD: the cancellation reaches the work on a strand of its own
}

TEST_CASE("guide: a model on a pool, and a session that awaits the pipeline from another executor", "[readme]") {
    asio::io_context context;   // first, since it must outlive the work that its coroutines await
    asio::thread_pool pool(2);  // destroyed first: it waits for the functions that run on it
    CollectingSink sink;
    // GOOD: a strand runs one handler at a time, whatever thread that is on.
    const auto strand = asio::make_strand(pool);
    auto classify = [&pool](const std::string& text) {
        return sluice::run_on(pool.get_executor(), [text] { return blocking_call(text); });
    };
    auto answer = [](std::size_t, std::size_t, const std::string&) -> asio::awaitable<int> { co_return 2; };
    sluice::InferencePipeline pipeline(asio::any_io_executor(strand), classify, classify, answer,
                                       sluice::StageLimits{1, 1, 1}, sink);
    const test::Task<> session(context.get_executor(), [&]() -> asio::awaitable<void> {
        const sluice::Query query("1", "four");
        const auto result = co_await sluice::run_on(strand, [&] { return pipeline.process_one(query); });
        CHECK(result.intent == 4);
        CHECK(result.response == 2);
    });
    context.run();
    CHECK(session.succeeded());
}

// The guide: lifetime and ownership, operations and g++ 12.

[[maybe_unused]] asio::awaitable<void> bad_operation(sluice::StageSemaphore& semaphore) {
    {
        auto slot = semaphore.acquire();  // BAD: an operation that is not awaited; it holds no slot
    }
    {
        const sluice::Slot slot = co_await semaphore.acquire();  // GOOD
    }
}

[[maybe_unused]] asio::awaitable<void> bad_conditional(sluice::StageSemaphore& semaphore, bool free) {
    auto slot = free ? sluice::Slot() : co_await semaphore.acquire();  // BAD: g++ 12 destroys the temporary twice
    (void)slot;
}

[[maybe_unused]] asio::awaitable<void> good_conditional(sluice::StageSemaphore& semaphore, bool free) {
    sluice::Slot slot;
    if (!free) slot = co_await semaphore.acquire();  // GOOD
}

// The guide: models from other code, callbacks.

// A client with callbacks, such as a vendor's, which calls back on a thread of its own.
class Client {
public:
    using Callback = std::function<void(bool ok, std::string answer)>;

    int ask(std::string question, Callback done) {
        const std::lock_guard lock(mutex_);
        const int call = next_++;
        pending_.emplace(call, std::move(done));
        if (question != "never answered") {
            asio::post(threads_, [=, this] { finish(call, true, "an answer to " + question); });
        }
        return call;
    }

    void cancel(int call) {
        asio::post(threads_, [=, this] { finish(call, false, ""); });
    }

private:
    void finish(int call, bool ok, std::string answer) {
        std::unique_lock lock(mutex_);
        if (auto found = pending_.extract(call)) {
            lock.unlock();
            found.mapped()(ok, std::move(answer));
        }
    }

    std::mutex mutex_;
    std::map<int, Callback> pending_;
    int next_ = 0;
    asio::thread_pool threads_{1};
};

asio::awaitable<std::string> ask(Client& client, std::string question) {
    const auto start = [&](auto handler) {
        auto slot = asio::get_associated_cancellation_slot(handler);
        const auto shared = std::make_shared<decltype(handler)>(std::move(handler));  // a std::function is copyable
        const int call = client.ask(question, [shared](bool ok, std::string answer) {
            auto error = ok ? nullptr : std::make_exception_ptr(std::runtime_error("the client failed"));
            const auto executor = asio::get_associated_executor(*shared);
            asio::post(executor, asio::append(std::move(*shared), std::move(error), std::move(answer)));
        });
        if (slot.is_connected()) {
            slot.assign([&client, call](asio::cancellation_type) { client.cancel(call); });
        }
    };
    co_return co_await asio::async_initiate<const asio::deferred_t&, void(std::exception_ptr, std::string)>(
        start, asio::deferred);
}

TEST_CASE("guide: a client with callbacks is a model", "[readme]") {
    asio::io_context context;
    Client client;
    test::Task<std::string> answered(context.get_executor(), [&] { return ask(client, "one"); });
    test::Task<std::string> cancelled(context.get_executor(), [&] { return ask(client, "never answered"); });
    context.poll();
    cancelled.cancel();
    context.run();
    CHECK(answered.value() == "an answer to one");
    CHECK(cancelled.failed_with<std::runtime_error>());
}

// The guide: models from other code, awaitables of another library.

// An awaitable such as another library's, which resumes on a thread of its own.
struct ForeignReply {
    asio::thread_pool& threads;
    std::string question;

    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> coroutine) {
        asio::post(threads, [coroutine] { coroutine.resume(); });
    }
    std::string await_resume() {
        if (question.empty()) throw std::runtime_error("no question");
        return "an answer to " + question;
    }
};

// A coroutine that can await anything, begins at once, and destroys itself at its end.
struct Bridge {
    struct promise_type {
        Bridge get_return_object() noexcept { return {}; }
        std::suspend_never initial_suspend() noexcept { return {}; }
        std::suspend_never final_suspend() noexcept { return {}; }
        void return_void() noexcept {}
        void unhandled_exception() noexcept { std::terminate(); }
    };
};

template <class Handler, class Foreign>
Bridge forward(Handler handler, Foreign reply) {
    std::exception_ptr error;
    std::string answer;
    try {
        answer = co_await reply;
    } catch (...) {
        error = std::current_exception();
    }
    const auto executor = asio::get_associated_executor(handler);
    asio::post(executor, asio::append(std::move(handler), std::move(error), std::move(answer)));
}

asio::awaitable<std::string> ask(ForeignReply reply) {
    const auto start = [&](auto handler) { forward(std::move(handler), std::move(reply)); };
    co_return co_await asio::async_initiate<const asio::deferred_t&, void(std::exception_ptr, std::string)>(
        start, asio::deferred);
}

TEST_CASE("guide: another library's awaitable is a model", "[readme]") {
    asio::io_context context;
    asio::thread_pool threads(1);
    test::Task<std::string> answered(context.get_executor(), [&] { return ask(ForeignReply{threads, "one"}); });
    const test::Task<std::string> failed(context.get_executor(), [&] { return ask(ForeignReply{threads, ""}); });
    context.run();
    CHECK(answered.value() == "an answer to one");
    CHECK(failed.failed_with<std::runtime_error>());
}

// The guide: extending.

struct Log {
    std::vector<std::string> lines;
    asio::awaitable<void> write(std::string line) {
        lines.push_back(std::move(line));
        co_return;
    }
};

struct AwaitableSink {
    Log& log;

    asio::awaitable<void> put(const sluice::Query& query, const sluice::StageResult<>& why) {
        co_await log.write(query.id.str() + " in " + why.stage.str() + ": " + why.error.message());
    }
};
static_assert(sluice::DeadLetterSink<AwaitableSink>);

TEST_CASE("guide: an awaitable sink", "[readme]") {
    asio::io_context context;
    Log log;
    AwaitableSink sink{log};
    sluice::InferencePipeline pipeline(context.get_executor(), classify, extract, generate,
                                       sluice::StageLimits{4, 2, 1}, sink);
    const test::Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        const sluice::Query query("1", "fail");
        (void)co_await pipeline.process_one(query);
    });
    sluice::testing::run(context);
    CHECK(task.succeeded());
    CHECK(log.lines == std::vector<std::string>{"1 in classify: no"});
}

struct Gauge : sluice::Observer {
    int waiting = 0;  // for a slot, now
    void on_queued(const sluice::StageResult<>&) noexcept override { ++waiting; }
    void on_started(const sluice::StageResult<>&) noexcept override { --waiting; }
    void on_finished(const sluice::StageResult<>&, Outcome, Event last) noexcept override {
        waiting -= last == Event::queued;  // it left the line without a slot
    }
};

TEST_CASE("guide: an observer that counts the queries that wait", "[readme]") {
    asio::io_context context;
    CollectingSink sink;
    Gauge gauge;
    int most = 0;
    auto model = [&](const std::string&) -> asio::awaitable<int> {
        most = std::max(most, gauge.waiting);
        co_await sluice::sleep_for<sluice::testing::VirtualTimer>(1ms);
        co_return 1;
    };
    sluice::InferencePipeline pipeline(sluice::timed_by<sluice::testing::VirtualTimer>(context.get_executor()), model,
                                       model, generate, sluice::StageLimits{1, 1, 1}, sink, {.observer = &gauge});
    test::Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        const std::vector<sluice::Query> queries{{"1", "one"}, {"2", "two"}, {"3", "three"}};
        (void)co_await pipeline.process_batch(queries);
    });
    sluice::testing::run(context);
    CHECK(most == 2);
    CHECK(gauge.waiting == 0);
}

struct ConnectionError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

TEST_CASE("guide: several stages share an endpoint", "[readme]") {
    asio::io_context context;
    const auto executor = context.get_executor();
    auto write_draft = [](const std::string& text) -> asio::awaitable<std::string> { co_return text; };
    auto write_review = [](const std::string& text) -> asio::awaitable<std::size_t> { co_return text.size(); };
    sluice::Endpoint gpt(executor, "gpt", sluice::EndpointOptions{.limit = 8});
    sluice::Stage draft(gpt, "draft", write_draft, sluice::StageOptions{.timeout = 30s});
    sluice::Stage review(gpt, "review", write_review, sluice::StageOptions{.retry = {.max_retries = 3}});
    gpt.set_limit(4);  // of both together
    CHECK(draft.endpoint() == review.endpoint());
    CHECK(review.endpoint().limit() == 4);
}

TEST_CASE("guide: one pipeline feeds another, and a channel feeds a pipeline", "[readme]") {
    asio::io_context context;
    CollectingSink sink;
    auto model = [](const std::string& text) -> asio::awaitable<int> {
        if (text == "fail") throw std::runtime_error("no");
        co_return 1;
    };
    auto shorten = [](int, int, const std::string& text) -> asio::awaitable<std::string> {
        co_return text.substr(0, text.size() - 1);
    };
    const auto executor = context.get_executor();
    sluice::InferencePipeline answer(executor, model, model, shorten, sluice::StageLimits{1, 1, 1}, sink);
    sluice::InferencePipeline summarise(executor, model, model, shorten, sluice::StageLimits{1, 1, 1}, sink);
    auto& pipeline = summarise;
    const std::vector<sluice::Query> questions{{"1", "one"}, {"2", "fail"}, {"3", "three"}};
    const auto to_query = [](auto&& item) -> std::optional<sluice::Query> {
        if (!item.result.completed) return std::nullopt;  // a dead letter of the first pipeline
        return sluice::Query(item.result.query.id, *item.result.response);
    };
    auto summaries = summarise.process_stream(answer.process_stream(questions), to_query);
    asio::experimental::channel<void(boost::system::error_code, sluice::Query)> arrivals(executor, 16);
    auto results = pipeline.process_stream(sluice::ChannelSource(arrivals));
    arrivals.try_send(boost::system::error_code(), sluice::Query("4", "four"));
    arrivals.close();
    std::vector<std::string> texts;
    const auto collect = [](auto& stream, auto& into) -> asio::awaitable<void> {
        while (auto item = co_await stream.next()) {
            into.push_back(*item->result.response);
        }
    };
    asio::co_spawn(context, collect(summaries, texts), asio::detached);
    asio::co_spawn(context, collect(results, texts), asio::detached);
    context.run();
    std::ranges::sort(texts);
    CHECK(texts == std::vector<std::string>{"fou", "o", "thr"});
    CHECK(sink.lost == std::vector<std::string>{"2 in classify: no"});
}

void check_status(int status, std::chrono::nanoseconds retry_after) {
    if (status == 429) throw sluice::ModelError("rate limit", {sluice::Verdict::throttled, retry_after}, status);
    if (status == 400) throw sluice::ModelError("bad request", {sluice::Verdict::invalid}, status);
}

TEST_CASE("guide: the client of a model says what an error means", "[readme]") {
    CHECK_NOTHROW(check_status(200, 0ns));
    try {
        check_status(429, 20s);
    } catch (...) {
        CHECK(sluice::verdict_of(std::current_exception()).retry_after == 20s);
    }
    CHECK_THROWS_AS(check_status(400, 0ns), sluice::ModelError);
}

TEST_CASE("guide: a retry policy decides which errors to retry", "[readme]") {
    const sluice::RetryPolicy policy{.max_retries = 3, .retry_if = sluice::retry_on<ConnectionError>};
    CHECK(policy.should_retry(1, std::make_exception_ptr(ConnectionError("reset"))));
    CHECK_FALSE(policy.should_retry(1, std::make_exception_ptr(std::runtime_error("refused"))));
}

// The headers.

asio::awaitable<std::string> ask(const std::string& question) { co_return question; }

TEST_CASE("headers: the examples of the primitives", "[readme]") {
    asio::io_context context;
    sluice::StageSemaphore semaphore(context.get_executor(), 1);
    sluice::Barrier barrier(context.get_executor(), 1);
    const std::string query = "text";
    const std::string question = "Why?";
    const test::Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        sluice::Slot slot = co_await semaphore.acquire();
        CHECK(slot);
        const bool leader = co_await barrier.arrive_and_wait() == 0;  // true for exactly one party of each phase
        CHECK(leader);
        const auto body = [&](sluice::TaskGroup& group) -> asio::awaitable<void> {
            group.spawn([&] { return classify(query); });
            group.spawn([&] { return extract(query); });
            co_return;
        };
        co_await sluice::with_task_group(body);  // both have ended
        const std::string answer = co_await sluice::with_timeout(1s, [&] { return ask(question); });
        CHECK(answer == question);
    });
    context.run();
    CHECK(task.succeeded());
}

TEST_CASE("headers: the examples of a stream and of run_on", "[readme]") {
    asio::io_context context;
    CollectingSink sink;
    const auto executor = context.get_executor();
    sluice::InferencePipeline pipeline(asio::any_io_executor(executor), classify, extract, generate,
                                       sluice::StageLimits{1, 1, 1}, sink);
    std::vector<sluice::Query> queries{{"1", "one"}, {"2", "two"}};
    const sluice::Query query("3", "three");
    std::size_t used = 0;
    const auto use = [&](std::size_t, const auto&) { ++used; };
    const test::Task<> task(executor, [&]() -> asio::awaitable<void> {
        auto stream = pipeline.process_stream(queries);
        while (auto item = co_await stream.next()) {
            use(item->index, item->result);
        }
        const auto result = co_await sluice::run_on(executor, [&] { return pipeline.process_one(query); });
        CHECK(result.completed);
    });
    context.run();
    CHECK(task.succeeded());
    CHECK(used == 2);
}

TEST_CASE("headers: the examples of options, retries, verdicts and timers", "[readme]") {
    asio::io_context context;
    const auto executor = context.get_executor();
    {
        const sluice::StageOptions options{.timeout = 30s, .retry = {.max_retries = 3}};
        CHECK(options.retry.max_retries == 3);
    }
    {
        const sluice::RetryPolicy policy{.max_retries = 2, .retry_if = sluice::retry_on<sluice::TimeoutError>};
        CHECK(policy.should_retry(1, std::make_exception_ptr(sluice::TimeoutError(1s))));
    }
    sluice::Stage stage(sluice::timed_by<sluice::testing::VirtualTimer>(executor), "classify", 20, classify);
    const std::string question = "Why?";
    const auto throttled = []() -> asio::awaitable<int> {
        throw sluice::ModelError("rate limit reached", {.kind = sluice::Verdict::throttled, .retry_after = 20s}, 429);
        co_return 1;
    };
    const test::Task<> task(executor, [&]() -> asio::awaitable<void> {
        const sluice::RetryPolicy policy{.max_retries = 3};
        const std::string answer = co_await sluice::with_retry(policy, [&] { return ask(question); });
        CHECK(answer == question);
        const auto result = co_await stage.run("1", question);
        CHECK(result.success);
        co_await sluice::with_retry<sluice::testing::VirtualTimer>(policy, throttled);
    });
    CHECK(sluice::testing::run(context) == 60s);  // three times as long as the provider asked
    CHECK(task.failed_with<sluice::ModelError>());
}

TEST_CASE("headers: the examples of sources", "[readme]") {
    asio::io_context context;
    const auto executor = context.get_executor();
    CollectingSink sink;
    sluice::InferencePipeline pipeline(asio::any_io_executor(executor), classify, extract, generate,
                                       sluice::StageLimits{1, 1, 1}, sink);
    auto& answer = pipeline;
    auto& summarise = pipeline;
    const std::vector<sluice::Query> questions{{"1", "one"}, {"2", "fail"}, {"3", "three"}};
    const auto to_query = [](auto&& item) -> std::optional<sluice::Query> {
        if (!item.result.completed) return std::nullopt;
        return sluice::Query(item.result.query.id, *item.result.response);
    };
    std::size_t summarised = 0;
    std::size_t received = 0;
    const test::Task<> task(executor, [&]() -> asio::awaitable<void> {
        auto summaries = summarise.process_stream(answer.process_stream(questions), to_query);
        while (const auto item = co_await summaries.next()) summarised += item->result.completed;

        asio::experimental::channel<void(boost::system::error_code, sluice::Query)> queries(executor, 16);
        auto results = pipeline.process_stream(sluice::ChannelSource(queries));
        queries.try_send(boost::system::error_code(), sluice::Query("4", "four"));
        queries.close();
        while (const auto item = co_await results.next()) received += item->result.completed;
    });
    sluice::testing::run(context);
    CHECK(task.succeeded());
    CHECK(summarised == 2);
    CHECK(received == 1);
}

}  // namespace
