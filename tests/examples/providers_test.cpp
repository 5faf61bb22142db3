// SPDX-License-Identifier: BSL-1.0
// The simulated providers of the example `providers`, its log, and the picture that it draws.
#include "../../examples/provider_log.hpp"
#include "../../examples/provider_picture.hpp"
#include "../../examples/simulated_providers.hpp"

#include "support/models.hpp"
#include "support/task.hpp"

#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/deadline_error.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/sync/timeout.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/property_tree/ptree.hpp>
#include <boost/property_tree/xml_parser.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <exception>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using namespace std::chrono_literals;
using support::ProviderLog;
using support::Trouble;

namespace {

// Events and times that a test sets by hand, of a provider `p` and another one.
struct LogByHand {
    std::chrono::nanoseconds now{};
    ProviderLog log{[this] { return now; }, {"other", "p"}};
    sluice::StageResult<> run{"q", "p"};

    void start() {
        log.on_queued(run);
        ++run.attempts;
        log.on_started(run);
    }

    void succeed() {
        log.on_finished(run, ProviderLog::Outcome::succeeded, ProviderLog::Event::started);
        run.attempts = 0;
    }

    template <class Error>
    void fail(const Error& error) {
        log.on_attempt_failed(run, std::make_exception_ptr(error));
    }

    void breaker(ProviderLog::State before, ProviderLog::State after) {
        sluice::BreakerStatus status;
        status.state = after;
        log.on_breaker("p", before, status);
    }

    const ProviderLog::Entry& entry() const { return log.of("p"); }
};

struct ServerReply {
    std::string text;
    int status = 200;
    std::optional<std::chrono::nanoseconds> retry_after;
    std::chrono::nanoseconds took{};
};

// Calls a simulated provider, on virtual time.
struct ProviderServer {
    test::asio::io_context context;
    support::SimulatedProvider provider;

    explicit ProviderServer(support::Provider its) : provider(std::move(its)) {}

    ServerReply call() {
        ServerReply reply;
        test::Task<> task(context.get_executor(), [&]() -> test::asio::awaitable<void> {
            try {
                reply.text = co_await provider.answer("why?");
            } catch (const sluice::ModelError& error) {
                reply.status = error.status();
                reply.retry_after = error.verdict().retry_after;
            }
        });
        reply.took = sluice::testing::run(context);
        return reply;
    }
};

support::Provider quick_provider(std::vector<Trouble> troubles) {
    return {
        .name = "p", .allowed = 3, .lowered = 1, .quickest = 100ms, .slowest = 101ms, .troubles = std::move(troubles)};
}

std::string provider_picture(const ProviderLog& log, std::size_t queries, const std::vector<Trouble>& troubles = {}) {
    std::ostringstream out;
    support::Provider other = quick_provider({});
    other.name = "other";
    support::ProviderPicture(out, log, {quick_provider(troubles), other}).write(queries);
    return out.str();
}

bool includes_text(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// It is XML, and no rectangle is wider than the whole.
void check_provider_picture(const std::string& text) {
    std::istringstream in(text);
    boost::property_tree::ptree tree;
    boost::property_tree::read_xml(in, tree);
    for (const auto& [name, element] : tree.get_child("svg")) {
        if (name == "rect") {
            const auto width = element.get<double>("<xmlattr>.width");
            CHECK(width >= 0);
            CHECK(element.get<double>("<xmlattr>.x") + width < 960);
        }
    }
}

}  // namespace

TEST_CASE("provider log: a call ended as its error says", "[providers]") {
    LogByHand hand;
    const auto fails = [&](const auto& error) {
        hand.start();
        hand.now += 1s;
        hand.fail(error);
        return hand.entry().calls.back().ending;
    };
    using Ending = ProviderLog::Ending;
    CHECK(fails(std::runtime_error("no")) == Ending::failed);
    CHECK(fails(sluice::ModelError("no", {sluice::Verdict::overloaded}, 503)) == Ending::failed);
    CHECK(fails(sluice::ModelError("no", {sluice::Verdict::throttled}, 429)) == Ending::throttled);
    CHECK(fails(sluice::TimeoutError(1s)) == Ending::timed_out);
    CHECK(fails(sluice::DeadlineError(1s)) == Ending::timed_out);
    hand.start();
    hand.now += 2s;
    hand.succeed();
    CHECK(hand.entry().calls.back().ending == Ending::answered);
    CHECK(hand.entry().calls.back().begin == 5s);
    CHECK(hand.entry().calls.back().end == 7s);
    hand.start();
    hand.log.on_finished(hand.run, ProviderLog::Outcome::cancelled, ProviderLog::Event::started);
    CHECK(hand.entry().count(Ending::cancelled) == 1);
    CHECK(hand.entry().count(Ending::failed) == 2);
    CHECK(hand.log.of("other").calls.empty());
    CHECK(hand.log.end() == 7s);
}

TEST_CASE("provider log: it counts the waits, the retries, the skips, and the reasons of failures", "[providers]") {
    LogByHand hand;
    hand.log.on_skipped("q", "p", sluice::Reason::breaker_open);
    CHECK(hand.entry().skipped == 1);
    CHECK(hand.log.of("other").skipped == 0);
    hand.start();  // at once
    hand.fail(std::runtime_error("no"));
    hand.log.on_retry(hand.run, {}, 1s);
    hand.log.on_queued(hand.run);
    hand.now = 2s;
    ++hand.run.attempts;
    hand.log.on_started(hand.run);
    hand.now = 3s;
    hand.succeed();
    CHECK(hand.entry().waits == 1);
    CHECK(hand.entry().longest_wait == 2s);
    CHECK(hand.entry().calls.back().begin == 2s);
    CHECK(hand.entry().retries == 1);

    hand.log.on_queued(hand.run);
    hand.now = 6s;
    hand.run.reason = sluice::Reason::overloaded;
    hand.log.on_finished(hand.run, ProviderLog::Outcome::failed, ProviderLog::Event::queued);
    CHECK(hand.entry().waits == 2);
    CHECK(hand.entry().longest_wait == 3s);
    CHECK(hand.entry().calls.size() == 2);

    hand.start();
    hand.fail(std::runtime_error("no"));
    hand.run.reason = sluice::Reason::model;
    hand.run.retries_withheld = true;
    hand.log.on_finished(hand.run, ProviderLog::Outcome::failed, ProviderLog::Event::attempt_failed);
    CHECK(hand.entry().withheld == 1);
    CHECK(hand.entry().failed(sluice::Reason::overloaded) == 1);
    CHECK(hand.entry().failed(sluice::Reason::model) == 1);
    CHECK(hand.entry().failed(sluice::Reason::timeout) == 0);
}

TEST_CASE("provider log: the most calls begun in an interval, which does not include its end", "[providers]") {
    LogByHand hand;
    CHECK(hand.entry().most_begun_in(1s) == 0);
    for (const auto at : {0ms, 500ms, 999ms, 1000ms, 1400ms, 3000ms}) {
        hand.now = at;
        hand.start();
        hand.succeed();
    }
    CHECK(hand.entry().most_begun_in(1s) == 4);  // from 500 ms to 1400 ms
    CHECK(hand.entry().most_begun_in(500ms) == 3);
    CHECK(hand.entry().most_begun_in(1ms) == 1);
    CHECK(hand.entry().most_begun_in(1h) == 6);
}

TEST_CASE("provider log: pauses and the states of the breaker last until the next event, or until the end",
          "[providers]") {
    LogByHand hand;
    hand.now = 1s;
    hand.breaker(ProviderLog::State::closed, ProviderLog::State::open);
    hand.now = 11s;
    hand.breaker(ProviderLog::State::open, ProviderLog::State::half_open);
    hand.now = 12s;
    hand.breaker(ProviderLog::State::half_open, ProviderLog::State::open);
    hand.now = 32s;
    hand.breaker(ProviderLog::State::open, ProviderLog::State::closed);
    CHECK(hand.entry().openings == 2);
    CHECK(hand.entry().open_until(1h) == 30s);
    CHECK(hand.entry().open_until(15s) == 13s);
    CHECK(hand.entry().breaker.size() == 3);
    CHECK(hand.entry().breaker[1].to == 12s);

    hand.now = 40s;
    hand.breaker(ProviderLog::State::closed, ProviderLog::State::open);
    CHECK(hand.entry().open_until(42s) == 32s);

    hand.log.on_paused("p", 5s, 0s);
    hand.now = 41s;
    hand.log.on_paused("p", 7s, 4s);  // until 48 s
    hand.now = 50s;
    hand.log.on_paused("p", 1s, 0s);
    CHECK(hand.entry().pauses.size() == 2);
    CHECK(hand.entry().paused_until(1h) == 9s);
    CHECK(hand.entry().paused_until(45s) == 5s);
    CHECK(hand.log.of("other").pauses.empty());
}

TEST_CASE("simulated provider: it answers up to its limit, and then asks to wait for the next period", "[providers]") {
    ProviderServer server(quick_provider({{Trouble::Kind::lowered, 10s, 20s}}));
    for (int i = 0; i != 3; ++i) {
        const ServerReply reply = server.call();
        CHECK(reply.text == "p on: why?");
        CHECK(reply.took == 100ms);
    }
    ServerReply refused = server.call();
    CHECK(refused.status == 429);
    CHECK(refused.took == 200ms);
    CHECK(refused.retry_after == 9500ms);  // until 10 s, as of 500 ms

    test::run_until(server.context, 10s);
    CHECK(server.call().status == 200);  // the limit is lowered to this one
    refused = server.call();
    CHECK(refused.status == 429);
    test::run_until(server.context, 19'900ms);
    refused = server.call();
    CHECK(refused.retry_after == 200ms);  // the period ends while the refusal is on its way
    test::run_until(server.context, 20s + 1ms);
    for (int i = 0; i != 3; ++i) {
        CHECK(server.call().status == 200);
    }
}

TEST_CASE("simulated provider: its troubles begin and end when they should", "[providers]") {
    ProviderServer server(quick_provider({{Trouble::Kind::down, 1s, 2s}, {Trouble::Kind::slow, 10s, 11s}}));
    CHECK(server.call().status == 200);
    test::run_until(server.context, 1s);
    const ServerReply down = server.call();
    CHECK(down.status == 503);
    CHECK(down.took == 200ms);
    CHECK_FALSE(down.retry_after);
    test::run_until(server.context, 2s);
    CHECK(server.call().took == 100ms);
    test::run_until(server.context, 10s);
    CHECK(server.call().took == 1s);
    CHECK(server.call().took == 100ms);
}

TEST_CASE("picture of providers: it can be parsed, and says what was lost", "[providers]") {
    LogByHand hand;
    check_provider_picture(provider_picture(hand.log, 0, {{Trouble::Kind::down, 1s, 2s}}));
    CHECK(includes_text(provider_picture(hand.log, 0), "0 answered by p, 0 by other, none lost"));

    hand.now = 1s;
    hand.start();
    hand.now = 9s;
    hand.succeed();
    hand.start();
    hand.fail(std::runtime_error("no"));
    hand.breaker(ProviderLog::State::closed, ProviderLog::State::open);
    hand.now = 60s;
    hand.breaker(ProviderLog::State::open, ProviderLog::State::half_open);
    hand.log.on_paused("p", 1h, 0s);  // longer than the picture
    const std::string text =
        provider_picture(hand.log, 3, {{Trouble::Kind::down, 9s, 70s}, {Trouble::Kind::lowered, 80s, 90s}});
    check_provider_picture(text);
    CHECK(includes_text(text, "3 queries in 60 s: 1 answered by p, 0 by other, 2 lost"));
    CHECK(includes_text(text, R"(class="down")"));
    CHECK_FALSE(includes_text(text, R"(class="lowered")"));  // after the end
    CHECK(includes_text(text, R"(<path class="first")"));
    CHECK(includes_text(text, R"(<path class="failed")"));
    CHECK_FALSE(includes_text(text, R"(<path class="late")"));
    CHECK(includes_text(text, ">open</text>"));
    CHECK(includes_text(text, ">pause</text>"));
    CHECK_FALSE(includes_text(text, "nan"));
    CHECK_FALSE(includes_text(text, "inf"));
}
