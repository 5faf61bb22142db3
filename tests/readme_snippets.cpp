// SPDX-License-Identifier: BSL-1.0
// The code in README.md, examples/README.md and the comments of the headers, compiled and, where possible, run. Code
// marked BAD is only compiled.
#include "support/task.hpp"

#include <sluice/sluice.hpp>
#include <sluice/testing/fuse.hpp>
#include <sluice/testing/interleaving_context.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/scripted_model.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/append.hpp>
#include <boost/asio/as_tuple.hpp>
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
#include <boost/asio/signal_set.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/system/error_code.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <coroutine>
#include <csignal>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <ranges>
#include <sstream>
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

struct Log {
    std::vector<std::string> lines;
    asio::awaitable<void> write(std::string line) {
        lines.push_back(std::move(line));
        co_return;
    }
};

// README: pipelines of any shape.

namespace support_desk {

struct Entities {
    std::vector<std::string> names;
};

asio::awaitable<std::string> classify(const std::string& text) { co_return text == "Buy now!" ? "spam" : "question"; }
asio::awaitable<Entities> extract(const std::string& text) {
    if (text.empty()) throw std::runtime_error("nothing to extract");
    co_return Entities{{text}};
}
asio::awaitable<std::string> generate(const std::string& intent, const Entities& entities) {
    if (entities.names.front() == "Why?") throw sluice::ModelError("too deep", {sluice::Verdict::invalid}, 400);
    co_return "an answer to the " + intent + ' ' + entities.names.front();
}
asio::awaitable<std::string> generate_briefly(const std::string& intent) { co_return "a brief answer to a " + intent; }

struct Ticket {
    std::optional<std::string> intent;
    std::optional<Entities> entities;
    std::optional<std::string> reply;
};

auto make_support(const asio::any_io_executor& executor, auto& dead_letters) {
    sluice::Endpoint gpt(executor, "gpt", sluice::EndpointOptions{.limit = 8});  // one model behind one account
    sluice::Stage reply(gpt, "reply", generate, sluice::StageOptions{.timeout = 30s, .retry = {.max_retries = 3}});
    sluice::Stage classify_stage(gpt, "classify", classify);
    sluice::Stage extract_stage(executor, "extract", 10, extract);
    sluice::Stage small_reply(executor, "small reply", 20, generate_briefly);

    auto route = [=](sluice::Run<Ticket>& run) -> asio::awaitable<void> {
        const std::string& text = run.query().text;
        co_await run.all(run.step(&Ticket::intent, classify_stage, text),  // side by side
                         run.step(&Ticket::entities, extract_stage, text));
        if (*run->intent == "spam") co_return;  // safe: all() has thrown if a step failed
        co_await run.step_or_error(&Ticket::reply, reply, &Ticket::intent, &Ticket::entities);
        co_await run.step(&Ticket::reply, small_reply, &Ticket::intent);  // a fallback: skipped if the field is filled
    };
    return sluice::Pipeline(executor, std::move(route), dead_letters, 64);  // runs up to 64 queries at once
}

struct DeadLetters {
    std::vector<sluice::Checkpoint<Ticket>> letters;

    void put(const sluice::Query& query, const sluice::StageResult<>&, const Ticket& record) {
        letters.emplace_back(query, record);
    }
};

TEST_CASE("readme: a pipeline of any shape", "[readme]") {
    asio::io_context context;
    DeadLetters dead_letters;
    std::vector<std::optional<std::string>> replies;
    const auto use = [&](const std::optional<std::string>& reply) { replies.push_back(reply); };
    const std::vector<sluice::Query> queries{{"1", "Who?"}, {"2", "Why?"}, {"3", "Buy now!"}, {"4", ""}};
    const test::Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        const auto executor = co_await asio::this_coro::executor;
        auto support = make_support(executor, dead_letters);
        const sluice::Query query("5", "");
        Ticket record;
        record.entities.emplace();
        record.reply = "none";

        for (const auto& result : co_await support.process_batch(queries)) use(result.record.reply);
        sluice::Checkpoint<Ticket> letter(query, std::move(record));
        const auto redriven = co_await support.process_one(std::move(letter));
        const auto report = co_await support.drain(25s);  // completed, dead, cancelled, and unfinished

        CHECK(redriven.completed);  // extract, which would fail, was not called
        CHECK(redriven.record.reply == "none");
        CHECK(report.completed == 0);  // nothing was in work
    });
    context.run();
    CHECK(task.succeeded());
    CHECK(replies == std::vector<std::optional<std::string>>{
                         "an answer to the question Who?", "a brief answer to a question", std::nullopt, std::nullopt});
    REQUIRE(dead_letters.letters.size() == 1);
    CHECK(dead_letters.letters[0].query.id == "4");
    CHECK(dead_letters.letters[0].record.intent == "question");
}

// The guide: pipelines of any shape.

[[maybe_unused]] void bad_field(const asio::any_io_executor& executor, DeadLetters& dead_letters) {
    sluice::Stage classify_stage(executor, "classify", 20, classify);
    sluice::Stage small_reply(executor, "small reply", 20, generate_briefly);
    auto route = [=](sluice::Run<Ticket>& run) -> asio::awaitable<void> {
        const std::string& text = run.query().text;
        co_await run.all(run.step(&Ticket::intent, classify_stage, text),
                         run.step(&Ticket::reply, small_reply, *run->intent));  // BAD: the intent is still empty
    };
    sluice::Pipeline pipeline(executor, std::move(route), dead_letters, 20);
}

TEST_CASE("guide: a field is read after the steps that fill it", "[readme]") {
    asio::io_context context;
    DeadLetters dead_letters;
    sluice::Stage classify_stage(context.get_executor(), "classify", 20, classify);
    sluice::Stage extract_stage(context.get_executor(), "extract", 20, extract);
    sluice::Stage small_reply(context.get_executor(), "small reply", 20, generate_briefly);
    auto route = [=](sluice::Run<Ticket>& run) -> asio::awaitable<void> {
        const std::string& text = run.query().text;
        co_await run.all(run.step(&Ticket::intent, classify_stage, text),
                         run.step(&Ticket::entities, extract_stage, text));
        if (*run->intent == "spam") co_return;  // GOOD: all() returns only if each step has filled its field
        co_await run.step(&Ticket::reply, small_reply, &Ticket::intent);  // GOOD: the attempt reads the intent
    };
    sluice::Pipeline pipeline(context.get_executor(), std::move(route), dead_letters, 20);
    test::Task<sluice::RecordResult<Ticket>> task(context.get_executor(),
                                                  [&] { return pipeline.process_one(sluice::Query("1", "Who?")); });
    context.run();
    CHECK(task.value().record.reply == "a brief answer to a question");
}

class Desk {
public:
    Desk(const asio::any_io_executor& executor, DeadLetters& dead_letters)
        : classify_(executor, "classify", 20, &classify), pipeline_(executor, Route{this}, dead_letters, 20) {}
    Desk(const Desk&) = delete;  // the route refers to it
    Desk& operator=(const Desk&) = delete;

    auto answer(sluice::Query query) { return pipeline_.process_one(std::move(query)); }

private:
    struct Route {
        Desk* desk;
        asio::awaitable<void> operator()(sluice::Run<Ticket>& run) const { return desk->route(run); }
    };

    asio::awaitable<void> route(sluice::Run<Ticket>& run) {
        co_await run.step(&Ticket::intent, classify_, run.query().text);
    }

    sluice::Stage<decltype(&classify)> classify_;
    sluice::Pipeline<Route, DeadLetters> pipeline_;
};

TEST_CASE("guide: a class holds a pipeline", "[readme]") {
    asio::io_context context;
    DeadLetters dead_letters;
    Desk desk(context.get_executor(), dead_letters);
    test::Task<sluice::RecordResult<Ticket>> task(context.get_executor(),
                                                  [&] { return desk.answer(sluice::Query("1", "Buy now!")); });
    context.run();
    CHECK(task.value().record.intent == "spam");
}

// The guide: checkpoints.

TEST_CASE("guide: dead letters are tried again", "[readme]") {
    asio::io_context context;
    DeadLetters dead_letters;
    Ticket known;
    known.entities.emplace();
    dead_letters.letters.emplace_back(sluice::Query("1", ""), known);
    dead_letters.letters.emplace_back(sluice::Query("2", ""), Ticket());
    const test::Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        const auto executor = co_await asio::this_coro::executor;
        sluice::Stage extract_stage(executor, "extract", 10, extract);
        auto route = [=](sluice::Run<Ticket>& run) -> asio::awaitable<void> {
            co_await run.step(&Ticket::entities, extract_stage, run.query().text);
        };
        sluice::Pipeline support(executor, std::move(route), dead_letters, 10);
        auto letters = std::exchange(dead_letters.letters, {});  // some may come back
        const auto results = co_await support.process_batch(std::move(letters));
        CHECK(results[0].completed);
        CHECK_FALSE(results[1].completed);
    });
    context.run();
    CHECK(task.succeeded());
    REQUIRE(dead_letters.letters.size() == 1);
    CHECK(dead_letters.letters[0].query.id == "2");
}

std::string to_json(const Ticket& ticket) { return ticket.intent ? "{intent}" : "{}"; }

struct Journal {
    Log& log;

    void put(const sluice::Query&, const sluice::StageResult<>&) {}
    asio::awaitable<void> save(const sluice::Query& query, const Ticket& record) {
        co_await log.write(query.id.str() + ' ' + to_json(record));
    }
};

TEST_CASE("guide: a sink that stores what is known of each query", "[readme]") {
    asio::io_context context;
    Log log;
    Journal journal{log};
    sluice::Stage classify_stage(context.get_executor(), "classify", 1, classify);
    auto route = [=](sluice::Run<Ticket>& run) -> asio::awaitable<void> {
        co_await run.step(&Ticket::intent, classify_stage, run.query().text);
    };
    sluice::Pipeline pipeline(context.get_executor(), std::move(route), journal, 1);
    test::Task<sluice::RecordResult<Ticket>> task(context.get_executor(),
                                                  [&] { return pipeline.process_one(sluice::Query("1", "Who?")); });
    context.run();
    CHECK(task.value().completed);
    CHECK(log.lines == std::vector<std::string>{"1 {intent}"});
}

struct Essay {
    std::optional<std::string> draft;
    std::optional<double> score;
    int rounds = 0;
};

struct Essays {
    std::vector<sluice::Checkpoint<Essay>> letters;
    void put(const sluice::Query& query, const sluice::StageResult<>&, const Essay& record) {
        letters.emplace_back(query, record);
    }
};

// Runs an essay whose second judgement fails the first time. Returns the number of its drafts.
template <class MakeRoute>
int drafts_of_essay(MakeRoute make_route) {
    asio::io_context context;
    Essays dead_letters;
    int drafts = 0;
    int judgements = 0;
    const auto draft = [&](const std::string& text) -> asio::awaitable<std::string> {
        ++drafts;
        co_return text;
    };
    const auto grade = [&](const std::string&) -> asio::awaitable<double> {
        if (++judgements == 2) throw std::runtime_error("the judge is out");
        co_return 0.1;
    };
    sluice::Stage write(context.get_executor(), "write", 1, draft);
    sluice::Stage judge(context.get_executor(), "judge", 1, grade);
    sluice::Pipeline pipeline(context.get_executor(), make_route(write, judge), dead_letters, 1);
    const test::Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        const sluice::Query query("1", "text");
        (void)co_await pipeline.process_one(query);
        auto letters = std::exchange(dead_letters.letters, {});
        const auto results = co_await pipeline.process_batch(std::move(letters));
        CHECK(results.size() == 1);
        CHECK(results[0].completed);
        CHECK(results[0].record.rounds == 3);
    });
    context.run();
    CHECK(task.succeeded());
    return drafts;
}

TEST_CASE("guide: a loop empties its fields at the end of a round", "[readme]") {
    const auto bad = [](auto write, auto judge) {
        return [=](sluice::Run<Essay>& run) -> asio::awaitable<void> {
            for (;;) {
                run->draft.reset();  // BAD: a query that is run again pays for its draft again
                co_await run.step(&Essay::draft, write, run.query().text);
                co_await run.step(&Essay::score, judge, &Essay::draft);
                if (*run->score >= 0.5 || ++run->rounds >= 3) co_return;
                run->score.reset();
            }
        };
    };
    const auto good = [](auto write, auto judge) {
        return [=](sluice::Run<Essay>& run) -> asio::awaitable<void> {
            for (;;) {
                co_await run.step(&Essay::draft, write, run.query().text);
                co_await run.step(&Essay::score, judge, &Essay::draft);
                if (*run->score >= 0.5 || ++run->rounds >= 3) co_return;
                run->draft.reset();  // GOOD: only now is this round over
                run->score.reset();
            }
        };
    };
    CHECK(drafts_of_essay(bad) == 4);
    CHECK(drafts_of_essay(good) == 3);
}

// The guide: stopping in order.

asio::awaitable<void> print(std::string) { co_return; }

asio::awaitable<void> drain_when_told(auto& pipeline, asio::signal_set& signals, auto& store) {
    constexpr auto token = asio::as_tuple(asio::deferred);
    const auto [error, number] = co_await signals.async_wait(token);
    if (error) co_return;  // everything was done before
    const auto report = co_await pipeline.drain(25s);
    for (const auto& checkpoint : report.checkpoints) store.put(checkpoint);
}

asio::awaitable<void> serve(auto& pipeline, auto& arrivals, auto& store) {
    asio::signal_set signals(co_await asio::this_coro::executor, SIGINT, SIGTERM);
    const auto body = [&](sluice::TaskGroup& group) -> asio::awaitable<void> {
        group.spawn([&] { return drain_when_told(pipeline, signals, store); });
        auto results = pipeline.process_stream(arrivals);
        while (auto item = co_await results.next()) co_await print(item->result.query.text);
        signals.cancel();  // the source has ended, or the pipeline has drained
    };
    co_await sluice::with_task_group(body);
}

struct CheckpointStore {
    std::vector<std::string> ids;
    void put(const sluice::Checkpoint<Ticket>& checkpoint) { ids.push_back(checkpoint.query.id.str()); }
};

TEST_CASE("guide: a program drains when it is interrupted, and stores what was left", "[readme]") {
    using sluice::testing::VirtualTimer;
    const bool interrupted = GENERATE(false, true);
    asio::io_context context;
    const auto timed = sluice::timed_by<VirtualTimer>(context.get_executor());
    const auto slow = [](const std::string& text) -> asio::awaitable<std::string> {
        co_await sluice::sleep_for<VirtualTimer>(text == "slow" ? 1h : 1ms);
        co_return text;
    };
    const sluice::Stage stage(timed, "slow", 2, slow);
    auto route = [=](sluice::Run<Ticket>& run) -> asio::awaitable<void> {
        co_await run.step(&Ticket::reply, stage, run.query().text);
    };
    DeadLetters dead_letters;
    CheckpointStore store;
    sluice::Pipeline pipeline(timed, std::move(route), dead_letters, 2);
    asio::experimental::channel<void(boost::system::error_code, sluice::Query)> queries(context.get_executor(), 16);
    sluice::ChannelSource arrivals(queries);
    queries.try_send(boost::system::error_code(), sluice::Query("1", "fast"));
    queries.try_send(boost::system::error_code(), sluice::Query("2", "slow"));
    const test::Task<> task(context.get_executor(), [&] { return serve(pipeline, arrivals, store); });
    context.poll();
    if (interrupted) {
        REQUIRE(std::raise(SIGINT) == 0);
    } else {
        queries.close();
    }
    const auto elapsed = sluice::testing::run(context);
    CHECK(task.succeeded());
    CHECK(elapsed == (interrupted ? std::chrono::nanoseconds(25s) : std::chrono::nanoseconds(1h)));
    CHECK(store.ids == (interrupted ? std::vector<std::string>{"2"} : std::vector<std::string>{}));
}

TEST_CASE("guide: one stream is drained alone", "[readme]") {
    using sluice::testing::VirtualTimer;
    asio::io_context context;
    const auto timed = sluice::timed_by<VirtualTimer>(context.get_executor());
    const auto slow = [](const std::string& text) -> asio::awaitable<std::string> {
        co_await sluice::sleep_for<VirtualTimer>(text == "slow" ? 1h : 1ms);
        co_return text;
    };
    const sluice::Stage stage(timed, "slow", 3, slow);
    auto route = [=](sluice::Run<Ticket>& run) -> asio::awaitable<void> {
        co_await run.step(&Ticket::reply, stage, run.query().text);
    };
    DeadLetters dead_letters;
    sluice::Pipeline pipeline(timed, std::move(route), dead_letters, 3);
    const std::vector<sluice::Query> queries{{"1", "fast"}, {"2", "fast"}, {"3", "slow"}};
    int used = 0;
    const auto use = [&](const Ticket& record) { used += record.reply == "fast" ? 1 : 0; };
    const test::Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        auto stream = pipeline.process_stream(queries);
        const auto first = co_await stream.next();
        use(first->result.record);
        const auto report = co_await stream.drain(5s);
        while (auto item = co_await stream.next()) use(item->result.record);  // what had ended before
        CHECK(report.unfinished == 1);
        CHECK(report.checkpoints.size() == 1);
        const sluice::Query query("4", "fast");
        const auto later = co_await pipeline.process_one(query);
        CHECK(later.completed);
    });
    CHECK(sluice::testing::run(context) == 5s + 2ms);
    CHECK(task.succeeded());
    CHECK(used == 2);
}

// The guide: batches of any coroutine.

asio::awaitable<std::string> fetch(const std::string& address) { co_return "the page of " + address; }

TEST_CASE("guide: a batch and a stream of any coroutine", "[readme]") {
    asio::io_context context;
    const std::vector<std::string> addresses{"one", "two"};
    std::size_t used = 0;
    const auto use = [&](std::size_t, const std::string&) { ++used; };
    const test::Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        {
            const auto pages = co_await sluice::map_batch(addresses, 16, fetch);  // in the order of the addresses
            CHECK(pages == std::vector<std::string>{"the page of one", "the page of two"});
        }
        const auto fetch_in_time = [](const std::string& address) {
            return sluice::with_timeout(5s, [&address] { return fetch(address); });
        };
        auto pages = sluice::map_stream(addresses, 16, fetch_in_time);
        while (auto page = co_await pages.next()) use(page->index, page->result);  // as they complete
    });
    context.run();
    CHECK(task.succeeded());
    CHECK(used == 2);
}

// The guide: objects that g++ 12 destroys twice.

struct Prompt {
    std::string task;
    std::string text;
};

asio::awaitable<Entities> extract_as_told(const Prompt& prompt) { co_return Entities{{prompt.task, prompt.text}}; }

[[maybe_unused]] asio::awaitable<void> bad_pipeline(std::string tag, sluice::Query query,
                                                    std::vector<std::string> texts) {
    DeadLetters dead_letters;
    // BAD: the closure is a temporary in an expression with a co_await, and what it captures is destroyed twice.
    sluice::Pipeline pipeline(
        co_await asio::this_coro::executor,
        [tag](sluice::Run<Ticket>& run) -> asio::awaitable<void> {
            run->intent = tag;
            co_return;
        },
        dead_letters, 8);
    co_await pipeline.process_one({query, Ticket{"order", {}, {}}});  // BAD: the record is a temporary aggregate
    co_await pipeline.process_batch(texts, [tag](auto& text) { return sluice::Query(tag, text); });  // BAD: a closure
}

asio::awaitable<int> good_pipeline(std::string tag, sluice::Query query, std::vector<std::string> texts) {
    DeadLetters dead_letters;
    const auto executor = co_await asio::this_coro::executor;
    auto route = [tag](sluice::Run<Ticket>& run) -> asio::awaitable<void> {
        run->intent = tag;
        co_return;
    };
    sluice::Pipeline pipeline(executor, std::move(route), dead_letters, 8);  // GOOD: no co_await in this expression
    Ticket known{"order", {}, {}};
    sluice::Checkpoint<Ticket> checkpoint(query, std::move(known));
    co_await pipeline.process_one(std::move(checkpoint));  // GOOD: everything has a name
    const auto to_query = [tag](const std::string& text) { return sluice::Query(tag, text); };
    co_await pipeline.process_batch(texts, to_query);  // GOOD
    co_return 1;
}

TEST_CASE("guide: what a pipeline is made of and given has a name", "[readme]") {
    asio::io_context context;
    const std::string tag = "a tag that is too long for the object that holds it";
    test::Task<int> task(context.get_executor(),
                         [&] { return good_pipeline(tag, sluice::Query("1", "one"), {"two", "three"}); });
    context.run();
    CHECK(task.value() == 1);
}

[[maybe_unused]] void bad_steps(const asio::any_io_executor& executor, DeadLetters& dead_letters) {
    sluice::Stage extract_stage(executor, "extract", 10, extract_as_told);
    sluice::Stage small_reply(executor, "small reply", 20, generate_briefly);
    sluice::Stage reply(executor, "reply", 20, generate_briefly);
    auto route = [=](sluice::Run<Ticket>& run) -> asio::awaitable<void> {
        const std::string& text = run.query().text;
        co_await run.step(&Ticket::entities, extract_stage, Prompt{"find names", text});  // BAD: a temporary aggregate
        co_await (text.size() < 80 ? run.step(&Ticket::reply, small_reply, &Ticket::intent)  // BAD: a conditional
                                   : run.step(&Ticket::reply, reply, &Ticket::intent));
    };
    sluice::Pipeline pipeline(executor, std::move(route), dead_letters, 20);
}

TEST_CASE("guide: what a step is given has a name", "[readme]") {
    asio::io_context context;
    DeadLetters dead_letters;
    const auto executor = context.get_executor();
    sluice::Stage extract_stage(executor, "extract", 10, extract_as_told);
    sluice::Stage small_reply(executor, "small reply", 20, generate_briefly);
    sluice::Stage reply(executor, "reply", 20, generate_briefly);
    auto route = [=](sluice::Run<Ticket>& run) -> asio::awaitable<void> {
        const std::string& text = run.query().text;
        run->intent = "question";
        const Prompt prompt{"find names", text};
        co_await run.step(&Ticket::entities, extract_stage, prompt);  // GOOD
        if (text.size() < 80) {
            co_await run.step(&Ticket::reply, small_reply, &Ticket::intent);  // GOOD
        } else {
            co_await run.step(&Ticket::reply, reply, &Ticket::intent);
        }
    };
    sluice::Pipeline pipeline(executor, std::move(route), dead_letters, 20);
    test::Task<sluice::RecordResult<Ticket>> task(executor,
                                                  [&] { return pipeline.process_one(sluice::Query("1", "Who?")); });
    context.run();
    CHECK(task.value().completed);
    CHECK(task.value().record.entities->names == std::vector<std::string>{"find names", "Who?"});
}

// The guide: an error at each point.

TEST_CASE("guide: a test with an error at each point", "[readme]") {
    const std::vector<sluice::Query> queries{{"1", "one"}, {"2", "two"}};
    const int points = sluice::testing::fuse_each([&](const sluice::testing::Fuse& fuse) {
        const auto model = [fuse](const std::string& text) -> asio::awaitable<std::string> {
            fuse.point();
            co_return text;
        };
        asio::io_context context;
        const sluice::Stage first(context.get_executor(), "first", 1, model);
        const sluice::Stage second(context.get_executor(), "second", 1, model);
        CollectingSink sink;
        auto route = [=](sluice::Run<Ticket>& run) -> asio::awaitable<void> {
            co_await run.step(&Ticket::intent, first, run.query().text);
            co_await run.step(&Ticket::reply, second, run.query().text);
        };
        sluice::Pipeline pipeline(context.get_executor(), std::move(route), sink, 2);
        std::size_t completed = 0;
        asio::co_spawn(context, pipeline.process_batch(queries), [&](std::exception_ptr, auto results) {
            for (const auto& result : results) completed += result.completed ? 1 : 0;
        });
        sluice::testing::run(context);
        CHECK(completed + sink.lost.size() == queries.size());  // whatever fails, each query ends in exactly one way
    });
    CHECK(points == 4);  // two queries in two stages
}

}  // namespace support_desk

// README: testing on virtual time.

TEST_CASE("readme: a scripted model and an hour of backoff", "[readme]") {
    const std::string question = "Who?";
    asio::io_context context;
    const auto timed = sluice::timed_by<sluice::testing::VirtualTimer>(context.get_executor());
    const auto busy = std::make_exception_ptr(std::runtime_error("busy"));
    sluice::testing::ScriptedModel<int(const std::string&)> model({{.error = busy}, {.answer = 1, .latency = 150ms}});
    const sluice::RetryPolicy hourly{.max_retries = 1, .backoff = {.initial = 1h, .jitter = 0}};
    const sluice::Stage stage(timed, "classify", 1, model, sluice::StageOptions{.retry = hourly});

    asio::co_spawn(context, stage.run("1", question), [](std::exception_ptr, auto result) { CHECK(result.data == 1); });
    CHECK(sluice::testing::run(context) == 1h + 150ms);  // without any real delay
    CHECK(model.calls() == 2);
}

// The guide: testing.

TEST_CASE("guide: a model that follows a script", "[readme]") {
    asio::io_context context;
    const auto timed = sluice::timed_by<sluice::testing::VirtualTimer>(context.get_executor());
    const auto script = [](std::size_t call, const std::string& text) {
        const auto latency = call == 0 ? 30s : 10ms;  // the first call hangs until its timeout
        return sluice::testing::ScriptedCall<std::string>{.answer = "about " + text, .latency = latency};
    };
    sluice::testing::ScriptedModel<std::string(const std::string&)> model(script, 2);  // at most 2 calls at once
    const sluice::StageOptions options{.timeout = 1s, .retry = {.max_retries = 1}};
    const sluice::Stage stage(timed, "answer", 2, model, options);
    const std::string question = "why";
    test::Task<sluice::StageResult<std::string>> task(context.get_executor(), [&] { return stage.run("1", question); });
    sluice::testing::run(context);
    CHECK(task.value().data == "about why");
    CHECK(task.value().attempts == 2);
    CHECK(model.calls() == 2);
    CHECK(model.most_running() == 1);
}

TEST_CASE("guide: a pipeline is tested on virtual time", "[readme]") {
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
    const auto executor = co_await asio::this_coro::executor;
    sluice::InferencePipeline pipeline(executor, classify, extract, generate, sluice::StageLimits{4, 2, 1}, sink);
    auto stream = pipeline.process_stream(queries);
    if (auto item = co_await stream.next()) co_await print(item->result.query.text);
    // BAD: the queries that were cancelled end later, and the sink and the range are gone by then.
}

asio::awaitable<void> good_stream(std::vector<sluice::Query> queries) {
    CollectingSink sink;
    const auto executor = co_await asio::this_coro::executor;
    sluice::InferencePipeline pipeline(executor, classify, extract, generate, sluice::StageLimits{4, 2, 1}, sink);
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

TEST_CASE("guide: metrics", "[readme]") {
    asio::io_context context;
    const auto executor = context.get_executor();
    struct Answered {
        std::optional<int> answer;
    };
    CollectingSink dead_letters;
    sluice::Endpoint gpt(executor, "gpt", sluice::EndpointOptions{.limit = 8});
    const sluice::Stage classify_stage(gpt, "classify", classify);
    const auto route = [=](sluice::Run<Answered>& run) -> asio::awaitable<void> {
        co_await run.step(&Answered::answer, classify_stage, run.query().text);
    };
    sluice::Metrics metrics;
    sluice::Pipeline support(executor, route, dead_letters, 64, sluice::PipelineOptions{.observer = &metrics});
    metrics.watch(support, "support");
    metrics.watch(gpt);
    const std::vector<sluice::Query> queries{{"1", "one"}, {"2", "fail"}, {"3", "three"}};
    const test::Task<> task(executor, [&]() -> asio::awaitable<void> { co_await support.process_batch(queries); });
    context.run();
    CHECK(task.succeeded());

    const sluice::MetricsSnapshot now = metrics.snapshot();
    const sluice::StageMetrics& stage = now.stages.front();
    const std::chrono::nanoseconds slowest = stage.latency.quantile(0.99);  // of an attempt; off by at most 4.5 %
    const std::string text = sluice::prometheus(metrics.snapshot());

    CHECK(stage.succeeded == 2);
    CHECK(stage.failed == 1);
    CHECK(slowest < 1h);
    CHECK(text.find("sluice_pipeline_queries_total{pipeline=\"support\",outcome=\"completed\"} 2\n") !=
          std::string::npos);
    CHECK(text.find("sluice_endpoint_limit{endpoint=\"gpt\"} 8\n") != std::string::npos);

    sluice::Endpoint claude(
        executor, "claude",
        sluice::EndpointOptions{.limit = 20, .requests = sluice::Rate(50, 1min), .breaker = sluice::BreakerOptions()});
    metrics.watch(claude);
    const sluice::MetricsSnapshot then = metrics.snapshot();
    const sluice::EndpointMetrics& provider = then.endpoints.front();
    const bool is_down = provider.breaker && provider.breaker->open != 0;
    const std::int64_t left = provider.rate(sluice::Rate::requests).periods.front().left;  // negative for a debt

    CHECK_FALSE(is_down);
    CHECK(left == 1);
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

asio::awaitable<std::string> send(std::string text) { co_return text; }

struct AskClaude {
    asio::awaitable<std::string> operator()(const std::string& text) const { return send(text); }
    sluice::Cost cost(const std::string& text) const { return {.input_tokens = std::ssize(text) / 3}; }
};

struct Reply {
    std::string text;
    std::int64_t input_tokens = 7;
    std::int64_t output_tokens = 8;
    std::int64_t requests_left = 0;
    std::chrono::nanoseconds reset = 2s;
};

asio::awaitable<Reply> post(std::string text, std::optional<std::chrono::nanoseconds> time_left) {
    co_return Reply{.text = time_left ? text : ""};
}

asio::awaitable<std::string> ask_claude(std::string text, sluice::Attempt& attempt) {
    const Reply reply = co_await post(text, attempt.time_left());
    attempt.used({.input_tokens = reply.input_tokens, .output_tokens = reply.output_tokens});
    attempt.remaining(reply.requests_left, reply.reset);
    co_return reply.text;
}

asio::awaitable<std::string> ask(std::string text, sluice::Attempt& attempt);

asio::awaitable<std::string> ask(std::string text, sluice::Attempt& attempt) { return ask_claude(text, attempt); }

TEST_CASE("guide: a model reports what its provider says", "[readme]") {
    asio::io_context context;
    const auto executor = sluice::timed_by<sluice::testing::VirtualTimer>(context.get_executor());
    asio::awaitable<std::string> (*const model)(std::string, sluice::Attempt&) = &ask;
    sluice::Stage answer(executor, "answer", 1, model, sluice::StageOptions{.timeout = 60s});
    test::Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        for (const char* const text : {"a", "b"}) {
            const auto result = co_await answer.run("1", std::string(text));
            CHECK(result.data == text);
        }
    });
    CHECK(sluice::testing::run(context) == 2s);
    CHECK(task.succeeded());
}

struct Alarms : sluice::EndpointObserver {
    void on_breaker(const sluice::SharedString& endpoint, sluice::BreakerStatus::State,
                    const sluice::BreakerStatus& after) noexcept override {
        std::clog << endpoint << ": " << to_string(after.state) << ", " << to_string(after.cause) << '\n';
    }
};

TEST_CASE("guide: the limits of a provider", "[readme]") {
    asio::io_context context;
    const auto executor = context.get_executor();
    const sluice::EndpointOptions limits{.limit = 20,
                                         .requests = sluice::Rate(50, 1min),
                                         .input_tokens = sluice::Rate(40'000, 1min),
                                         .breaker = sluice::BreakerOptions{.open_time = 5s},
                                         .retry_budget = sluice::RetryBudget{.ratio = 0.1}};
    sluice::Endpoint claude(executor, "claude", limits);
    sluice::Stage answer(claude, "answer", AskClaude(), sluice::StageOptions{.timeout = 60s});
    claude.set_rate(sluice::Rate::requests, sluice::Rate(100, 1min));  // another tier
    const test::Task<sluice::StageResult<std::string>> task(executor, [&] { return answer.run("1", "question"); });
    context.run();
    CHECK(task.succeeded());
    CHECK(claude.breaker().status().calls == 1);

    std::ostringstream said;
    std::streambuf* const before = std::clog.rdbuf(said.rdbuf());
    Alarms alarms;
    sluice::Endpoint watched(
        executor, "claude",
        sluice::EndpointOptions{.limit = 20, .breaker = sluice::BreakerOptions(), .observer = &alarms});
    watched.breaker().force_open();
    std::clog.rdbuf(before);
    CHECK(said.str() == "claude: open, forced\n");
}

TEST_CASE("guide: a line that is too long", "[readme]") {
    asio::io_context context;
    const auto executor = sluice::timed_by<sluice::testing::VirtualTimer>(context.get_executor());
    const sluice::EndpointOptions bounded{
        .limit = 8, .max_waiting = 100, .max_wait = 5s, .shed_late = true, .order = sluice::LineOrder::furthest_first};
    sluice::Endpoint chat(executor, "chat", bounded);
    const auto model = [](const std::string& text) -> asio::awaitable<std::string> {
        co_await sluice::sleep_for<sluice::testing::VirtualTimer>(3s);
        co_return text;
    };
    const sluice::Stage answer(chat, "answer", model);
    std::deque<test::Task<sluice::StageResult<std::string>>> tasks;
    for (int i = 0; i < 110; ++i) {
        tasks.emplace_back(context.get_executor(), [&] { return answer.run("1", std::string("question")); });
    }
    sluice::testing::run(context);
    std::size_t answered = 0;
    std::size_t refused = 0;
    for (auto& task : tasks) {
        const auto& result = task.value();
        answered += result.success ? 1U : 0U;
        refused += result.reason == sluice::Reason::overloaded ? 1U : 0U;
    }
    CHECK(answered == 16);  // at 0 s and at 3 s; 2 found the line full, and the others have waited for 5 s
    CHECK(refused == 94);
}

TEST_CASE("guide: a query has a timeout", "[readme]") {
    asio::io_context context;
    const auto executor = sluice::timed_by<sluice::testing::VirtualTimer>(context.get_executor());
    CollectingSink sink;
    const auto model = [](const auto&...) -> asio::awaitable<std::string> {
        co_await test::sleep(10s);
        co_return "";
    };
    sluice::InferencePipeline pipeline(executor, model, model, model, sluice::StageLimits{1, 1, 1}, sink);
    test::Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        sluice::Query query("1", "Where is my order?");
        query.timeout = 20s;
        const auto result = co_await pipeline.process_one(query);
        const bool late = result.failure() && result.failure()->reason == sluice::Reason::deadline;
        CHECK(late);
    });
    CHECK(sluice::testing::run(context) == 20s);
    CHECK(task.succeeded());
}

struct ContextTooLong : sluice::ModelError {
    ContextTooLong() : ModelError("too long", {sluice::Verdict::invalid}, 400) {}
};

auto plain_route(const auto& gpt, const auto& claude, const auto& local) {
    using support_desk::Ticket;
    return [=](sluice::Run<Ticket>& run) -> asio::awaitable<void> {
        const sluice::Fallback answer("answer", gpt, claude, local);
        co_await run.step(&Ticket::reply, answer, run.query().text);
    };
}

TEST_CASE("guide: several providers", "[readme]") {
    using support_desk::Ticket;
    asio::io_context context;
    const auto executor = context.get_executor();
    const auto ask_gpt = [](const std::string& text) -> asio::awaitable<std::string> {
        if (text.size() > 10) throw ContextTooLong();
        co_return "As a language model, I cannot tell.";
    };
    const auto ask_local = [](const std::string& text) -> asio::awaitable<std::string> { co_return "re " + text; };
    const sluice::Stage gpt(executor, "gpt", 9, ask_gpt);
    const sluice::Stage claude(executor, "claude", 9, ask_gpt);
    const sluice::Stage local(executor, "local", 9, ask_local);

    const sluice::Fallback answer("answer", gpt, claude, local);
    const auto checked = answer.also_after(sluice::retry_on<ContextTooLong>).accept([](const std::string& reply) {
        return !reply.starts_with("As a language model");
    });
    auto route = [checked](sluice::Run<Ticket>& run) -> asio::awaitable<void> {
        co_await run.step(&Ticket::reply, checked, run.query().text);
    };

    support_desk::DeadLetters dead_letters;
    sluice::Pipeline support(executor, route, dead_letters, 64);
    const std::vector<sluice::Query> queries{{"1", "short"}, {"2", "a long question"}};
    std::vector<sluice::RecordResult<Ticket>> results;
    const test::Task<> task(executor,
                            [&]() -> asio::awaitable<void> { results = co_await support.process_batch(queries); });
    context.run();
    CHECK(task.succeeded());
    REQUIRE(results.size() == 2);
    CHECK(results[0].record.reply == "re short");
    CHECK(results[1].record.reply == "re a long question");
    CHECK(results[1].stage_results.back().stage == "local");
    const auto with_longer = answer.also_after(sluice::retry_on<ContextTooLong>);
    CHECK(with_longer.name() == "answer");

    sluice::Pipeline plain(executor, plain_route(gpt, claude, local), dead_letters, 64);
    const sluice::Query query("3", "a long question");
    test::Task<sluice::RecordResult<Ticket>> long_question(executor, [&] { return plain.process_one(query); });
    context.restart();
    context.run();
    CHECK(long_question.value().failure()->stage == "gpt");
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
    {
        const sluice::Rate requests(500, 1min);
        const sluice::Rate tokens = sluice::Rate(200'000, 1min, 50'000).also(10'000'000, 24h, 200'000);
        CHECK(requests.periods().size() + tokens.periods().size() == 3);
        const sluice::BreakerOptions options{.failure_rate = 1, .minimum_calls = 3, .window_calls = 3};
        CHECK(options.window_calls == 3);
    }
    {
        const sluice::EndpointOptions options{.limit = 8, .retry_budget = sluice::RetryBudget{.ratio = 0.1}};
        CHECK(sluice::Endpoint<>(executor, "gpt", options).retries() == 0);
    }
    {
        const sluice::EndpointOptions options{.limit = 8, .requests = sluice::Rate(500, 1min)};
        const sluice::Endpoint<> endpoint(executor, "gpt", options);
        CHECK(endpoint.limit() == 8);
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
    CHECK(sluice::testing::run(context) == 220s);  // eight and three times as long as the provider asked
    CHECK(task.failed_with<sluice::ModelError>());
}

using Page = std::string;

struct PageClient {
    asio::awaitable<Page> get(const std::string& url) const { return ask(url); }
};

TEST_CASE("headers: the examples of map_batch and map_stream", "[readme]") {
    asio::io_context context;
    const PageClient client;
    const std::vector<std::string> urls{"one", "two"};
    std::size_t used = 0;
    const auto use = [&](std::size_t index, const Page& page) { used += urls[index] == page ? 1 : 0; };
    const test::Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        {
            const auto fetch = [&](const std::string& url) { return client.get(url); };
            const std::vector<Page> pages = co_await sluice::map_batch(urls, 8, fetch);
            CHECK(pages == urls);
        }
        const auto fetch = [&](const std::string& url) { return client.get(url); };
        auto pages = sluice::map_stream(urls, 8, fetch);
        while (auto page = co_await pages.next()) {
            use(page->index, page->result);
        }
    });
    context.run();
    CHECK(task.succeeded());
    CHECK(used == 2);
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

TEST_CASE("headers: the examples of pipelines of any shape", "[readme]") {
    using Entities = int;
    const auto first_word = [](const std::string& text) -> asio::awaitable<std::string> {
        co_return text.substr(0, text.find(' '));
    };
    const auto answer = [](const std::string& intent, const Entities& n) -> asio::awaitable<std::string> {
        if (intent == "fail") throw std::runtime_error("no");
        co_return intent + std::to_string(n);
    };
    asio::io_context context;
    const auto executor = context.get_executor();
    CollectingSink dead_letters;
    const sluice::Stage classify(executor, "classify", 1, first_word);
    const sluice::Stage extract(executor, "extract", 1, ::extract);
    const sluice::Stage generate(executor, "generate", 1, answer);
    struct Ticket {
        std::optional<std::string> intent;
        std::optional<Entities> entities;
        std::optional<std::string> reply;
    };

    const auto route = [=](sluice::Run<Ticket>& run) -> asio::awaitable<void> {
        co_await run.all(run.step(&Ticket::intent, classify, run.query().text),
                         run.step(&Ticket::entities, extract, run.query().text));
        if (*run->intent == "spam") co_return;  // safe: all() has thrown if a step failed
        co_await run.step(&Ticket::reply, generate, &Ticket::intent, &Ticket::entities);
    };
    sluice::Pipeline support(executor, route, dead_letters, 64);
    auto& pipeline = support;
    const test::Task<> task(executor, [&]() -> asio::awaitable<void> {
        const sluice::Query query("1", "fail again");
        auto result = co_await support.process_one(query);
        CHECK_FALSE(result.completed);
        Ticket record = std::move(result.record);
        record.intent = "try";
        sluice::Checkpoint<Ticket> letter(query, std::move(record));  // named: g++ 12 destroys some temporaries twice
        co_await pipeline.process_one(std::move(letter));
    });
    context.run();
    CHECK(task.succeeded());
    CHECK(dead_letters.lost == std::vector<std::string>{"1 in generate: no"});
}

TEST_CASE("headers: the example of a scripted model", "[readme]") {
    asio::io_context context;
    const auto timed = sluice::timed_by<sluice::testing::VirtualTimer>(context.get_executor());
    using Model = sluice::testing::ScriptedModel<std::string(const std::string&)>;
    const auto busy = std::make_exception_ptr(std::runtime_error("busy"));
    Model classify({{.error = busy, .latency = 20ms}, {.answer = "question", .latency = 30ms}}, 1);
    Model echo([](std::size_t, const std::string& text) { return Model::Call{.answer = text, .latency = 5ms}; });
    sluice::Stage stage(timed, "classify", 1, classify, sluice::StageOptions{.retry = {.max_retries = 1}});
    const test::Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        const std::string text = "Why?";
        const auto result = co_await stage.run("1", text);
        CHECK(result.data == "question");
        CHECK(result.latency == 50ms);
        const std::string heard = co_await echo(text);
        CHECK(heard == text);
    });
    sluice::testing::run(context);
    CHECK(task.succeeded());
    CHECK(classify.calls() == 2);
}

TEST_CASE("headers: the example of a fuse", "[readme]") {
    const auto test = [](const sluice::testing::Fuse& fuse) {
        const auto classify = [fuse](const std::string&) -> asio::awaitable<int> {
            fuse.point();
            co_return 1;
        };
        asio::io_context context;
        sluice::Stage stage(context.get_executor(), "classify", 1, classify);
        asio::co_spawn(context, stage.run("1", std::string("Why?")),
                       [&](std::exception_ptr, auto result) { CHECK(result.success != fuse.blown()); });
        context.run();
        CHECK(stage.endpoint().active() == 0);
    };
    CHECK(sluice::testing::fuse_each(test) == 1);
}

}  // namespace
