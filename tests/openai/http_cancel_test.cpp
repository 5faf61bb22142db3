// SPDX-License-Identifier: BSL-1.0
#include "http_probes.hpp"
#include "support/task.hpp"

#include <openai/http_client.hpp>
#include <openai/url.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using test::answer_with;
using test::fetch;
using test::HttpBench;

namespace {

const std::string unfinished_answer = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart";

template <class Condition>
void run_until(asio::io_context& context, Condition condition) {
    while (!condition() && context.run_one() != 0) {
    }
    REQUIRE(condition());
}

// A connection that is kept, then one that waits for an answer, and then an answer that comes in two steps.
std::vector<test::RawScene> scenes_of_a_busy_client() {
    return {{.answers = {answer_with("1"), answer_with("2")}}, {.answers = {answer_with("3")}, .piece = 7}};
}

}  // namespace

TEST_CASE("Cancelling a request that waits for its answer closes its connection, and no other") {
    const auto type = GENERATE(asio::cancellation_type::terminal, asio::cancellation_type::all);
    HttpBench bench({{.answers = {answer_with("1")}}, {.answers = {answer_with("2")}}});
    const auto& requests = bench.server.requests();
    test::Task<std::string> first(bench.context.get_executor(), [&] { return fetch(*bench.client); });
    test::Task<std::string> second(bench.context.get_executor(), [&] { return fetch(*bench.client); });
    run_until(bench.context, [&] { return first.done() && second.done(); });
    CHECK(bench.client->idle() == 2);
    test::Task<std::string> waiting(bench.context.get_executor(), [&] { return fetch(*bench.client); });
    run_until(bench.context, [&] { return requests.size() == 3; });
    CHECK(bench.client->idle() == 1);
    waiting.cancel(type);
    run_until(bench.context, [&] { return waiting.done(); });
    CHECK(waiting.aborted());
    run_until(bench.context, [&] { return bench.server.open() == 1; });
    CHECK(bench.client->idle() == 1);
    CHECK(requests.size() == 3);
    bench.server.close();
    bench.context.run();
}

TEST_CASE("Cancelling while a body comes closes the connection") {
    HttpBench bench({{.answers = {unfinished_answer}}});
    std::string got;
    test::Task<> task(bench.context.get_executor(), [&]() -> asio::awaitable<void> {
        auto post = bench.client->post("/x", "{}");
        openai::HttpResponse response = co_await std::move(post);
        for (;;) {
            const std::string_view piece = co_await response.read_some();
            got += piece;
        }
    });
    run_until(bench.context, [&] { return got == "part"; });
    while (bench.context.poll() != 0) {
    }
    CHECK_FALSE(task.done());
    task.cancel();
    run_until(bench.context, [&] { return task.done() && bench.server.open() == 0; });
    CHECK(task.aborted());
    CHECK(bench.client->idle() == 0);
    bench.server.close();
    bench.context.run();
}

TEST_CASE("Cancelling while a request is sent, or a connection made, closes it") {
    asio::io_context context(1);
    const test::DeafServer server(context);
    openai::HttpClient client(context.get_executor(), openai::parse_url(server.url()), {.connect_timeout = 1h});
    const std::string body(std::size_t{16} << 20, 'x');
    const auto attempt = [&]() -> asio::awaitable<void> {
        auto post = client.post("/x", body);
        const openai::HttpResponse response = co_await std::move(post);
    };
    // One or two are connected, and send; the others knock.
    std::vector<test::Task<>> tasks;
    for (int i = 0; i < 4; ++i) {
        tasks.emplace_back(context.get_executor(), attempt);
    }
    while (context.poll() != 0) {
    }
    for (auto& task : tasks) {
        CHECK_FALSE(task.done());
        task.cancel();
    }
    context.run();
    for (const auto& task : tasks) {
        CHECK(task.aborted());
    }
    CHECK(client.idle() == 0);
}

// The name of the next tests is no address to the client, and so looked up; the system asks nobody.
TEST_CASE("Cancelling does not wait for the look-up of a name") {
    asio::io_context context(1);
    openai::HttpClient client(context.get_executor(), openai::parse_url("http://127.1:1"));
    test::Task<std::string> task(context.get_executor(), [&] { return fetch(client); });
    context.run_one();
    CHECK_FALSE(task.done());
    task.cancel();
    context.run();
    CHECK(task.aborted());
}

TEST_CASE("A client that is cancelled after any number of steps keeps or closes each connection") {
    std::size_t succeeded = 0;
    std::size_t aborted = 0;
    for (std::size_t steps = 0; succeeded == 0; ++steps) {
        HttpBench bench(scenes_of_a_busy_client());
        bool begun = false;
        test::Task<std::string> task(bench.context.get_executor(), [&]() -> asio::awaitable<std::string> {
            begun = true;
            const std::string first = co_await fetch(*bench.client);
            const std::string second = co_await fetch(*bench.client);
            co_return first + second;
        });
        run_until(bench.context, [&] { return begun; });
        for (std::size_t i = 0; i < steps && !task.done(); ++i) {
            bench.context.run_one();
        }
        const bool done_before = task.done();
        task.cancel();
        run_until(bench.context, [&] { return task.done(); });
        CHECK((task.aborted() || task.succeeded()));
        (task.aborted() ? aborted : succeeded) += done_before || task.aborted() ? 1u : 0u;
        while (bench.context.poll() != 0) {
        }
        CHECK(bench.server.open() == bench.client->idle());
        bench.client.reset();
        run_until(bench.context, [&] { return bench.server.open() == 0; });
        bench.server.close();
        bench.context.run();
    }
    CHECK(aborted > 5);
}

TEST_CASE("A context may be destroyed after any number of steps") {
    bool done = false;
    for (std::size_t steps = 0; !done; ++steps) {
        std::optional<asio::io_context> context(1);
        std::optional<test::RawServer> server(std::in_place, *context, scenes_of_a_busy_client());
        std::optional<openai::HttpClient> client(std::in_place, context->get_executor(),
                                                 openai::parse_url(server->url("127.1")));
        const test::Task<std::string> task(context->get_executor(), [&]() -> asio::awaitable<std::string> {
            const std::string first = co_await fetch(*client);
            const std::string second = co_await fetch(*client);
            co_return first + second;
        });
        for (std::size_t i = 0; i < steps && !task.done(); ++i) {
            context->run_one();
        }
        done = task.done();
        client.reset();
        server.reset();
        context.reset();
        CHECK(task.ends() == (done ? 1 : 0));
    }
}

TEST_CASE("A response and a request may outlive their client, and nothing is kept then") {
    HttpBench bench({{.answers = {"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"}}, {.answers = {answer_with("2")}}});
    bench.run([&]() -> asio::awaitable<void> {
        auto post = bench.client->post("/x", "{}");
        auto later = bench.client->post("/x", "{}");
        {
            openai::HttpResponse response = co_await std::move(post);
            bench.client.reset();
            CHECK(bench.server.open() == 1);
        }
        co_await test::until([&] { return bench.server.open() == 0; });
        openai::HttpResponse response = co_await std::move(later);
        const std::string body = co_await response.read();
        CHECK(body == "2");
        co_await test::until([&] { return bench.server.open() == 0; });
    });
}

TEST_CASE("Destroying a client closes the connections that it has kept") {
    HttpBench bench({{.answers = {answer_with("1")}}});
    bench.run([&]() -> asio::awaitable<void> {
        co_await fetch(*bench.client);
        CHECK(bench.server.open() == 1);
        bench.client.reset();
        co_await test::until([&] { return bench.server.open() == 0; });
    });
}
