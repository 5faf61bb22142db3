// SPDX-License-Identifier: BSL-1.0
// The pictures that support_pipeline draws, parsed by Boost.JSON and Boost.PropertyTree (XML).
#include "../../examples/timeline.hpp"
#include "../../examples/observers.hpp"
#include "../../examples/progress.hpp"
#include "../../examples/svg_writer.hpp"
#include "../../examples/trace_writer.hpp"

#include "support/models.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/json/src.hpp>
#include <boost/property_tree/ptree.hpp>
#include <boost/property_tree/xml_parser.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace json = boost::json;
using namespace std::chrono_literals;
using sluice::StageError;
using sluice::StageResult;
using support::Timeline;
using test::retries;
using test::StageOptions;
using test::Task;
using Ending = Timeline::Ending;

namespace {

// The timeline of a pipeline in virtual time. Some queries fail once, and some for good.
struct Recorded {
    test::Rig<> rig;
    Timeline timeline{[this] { return test::now(rig.context); }, {{"classify", 4}, {"extract", 3}, {"generate", 2}}};

    explicit Recorded(std::size_t queries = 30, bool stream = false) {
        rig.classify.failures = {{"t3", 1}, {"t11", 2}};
        rig.extract.failures = {{"t5", 1}, {"t17", 2}, {"t20", 1}};
        rig.generate.failures = {{"t8", 2}};
        auto pipeline = rig.pipeline({4, 3, 2}, test::every_stage(StageOptions{.retry = retries(1, 20ms)}, &timeline));
        Task<> task(rig.context.get_executor(), [&]() -> test::asio::awaitable<void> {
            if (stream) {
                auto results = pipeline.process_stream(test::make_queries(queries));
                while (co_await results.next()) {
                }
            } else {
                co_await pipeline.process_batch(test::make_queries(queries));
            }
        });
        rig.run();
        CHECK(task.succeeded());
    }
};

// Events and times that a test sets by hand.
struct ByHand {
    std::chrono::nanoseconds now{};
    Timeline timeline{[this] { return now; }};
    StageResult<> a{"a", "s"};
    StageResult<> b{"b", "s"};

    void start(StageResult<>& run) {
        timeline.on_queued(run);
        ++run.attempts;
        timeline.on_started(run);
    }
    void succeed(StageResult<>& run) {
        run.success = true;
        timeline.on_finished(run, Timeline::Outcome::succeeded, Timeline::Event::started);
    }
    static StageError error(const std::string& text) { return std::make_exception_ptr(std::runtime_error(text)); }
};

std::string trace(const Timeline& timeline) {
    std::ostringstream out;
    support::write_trace(out, timeline);
    return out.str();
}

std::string svg(const Timeline& timeline) {
    std::ostringstream out;
    support::write_svg(out, timeline);
    return out.str();
}

// The events of the trace that have the given phase.
std::vector<json::object> events(const Timeline& timeline, const std::string& phase) {
    const json::value whole = json::parse(trace(timeline));
    std::vector<json::object> result;
    for (const json::value& event : whole.at("traceEvents").as_array()) {
        if (event.at("ph").as_string() == phase) {
            result.push_back(event.as_object());
        }
    }
    return result;
}

// Converts microseconds with three decimals to nanoseconds.
std::int64_t to_nanoseconds(const json::value& microseconds) {
    return std::llround(microseconds.to_number<double>() * 1000);
}

std::size_t count(const std::string& text, const std::string& part) {
    std::size_t n = 0;
    for (std::size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) {
        ++n;
    }
    return n;
}

}  // namespace

TEST_CASE("timeline: an attempt gets the lowest slot that is free, so that overlapping ones have different slots",
          "[timeline]") {
    ByHand hand;
    hand.start(hand.a);
    hand.now = 5ms;
    hand.start(hand.b);
    hand.now = 7ms;
    hand.succeed(hand.a);
    StageResult<> c{"c", "s"};
    hand.start(c);
    hand.now = 9ms;
    hand.succeed(c);
    hand.succeed(hand.b);
    const auto& attempts = hand.timeline.attempts();
    REQUIRE(attempts.size() == 3);
    CHECK(attempts[0].slot == 0);
    CHECK(attempts[1].query == "c");
    CHECK(attempts[1].slot == 0);
    CHECK(attempts[1].begin == 7ms);
    CHECK(attempts[1].end == 9ms);
    CHECK(attempts[2].slot == 1);
    CHECK(hand.timeline.stages()[0].slots == 2);
}

TEST_CASE("timeline: a failed attempt is a retried one, unless its stage run ends with it", "[timeline]") {
    ByHand hand;
    hand.start(hand.a);
    hand.timeline.on_attempt_failed(hand.a, ByHand::error("once"));
    hand.start(hand.a);
    hand.timeline.on_attempt_failed(hand.a, ByHand::error("twice"));
    hand.timeline.on_finished(hand.a, Timeline::Outcome::failed, Timeline::Event::attempt_failed);
    hand.start(hand.b);
    hand.timeline.on_finished(hand.b, Timeline::Outcome::cancelled, Timeline::Event::started);
    const auto& attempts = hand.timeline.attempts();
    REQUIRE(attempts.size() == 3);
    CHECK(attempts[0].ending == Ending::retried);
    CHECK(attempts[0].number == 1);
    CHECK(attempts[0].error == "once");
    CHECK(attempts[1].ending == Ending::failed);
    CHECK(attempts[1].number == 2);
    CHECK(attempts[1].error == "twice");
    CHECK(attempts[2].ending == Ending::cancelled);
}

TEST_CASE("timeline: a query that leaves the line without a slot no longer counts as waiting", "[timeline]") {
    ByHand hand;
    hand.timeline.on_queued(hand.a);
    hand.now = 5ms;
    hand.timeline.on_queued(hand.b);
    hand.now = 6ms;
    hand.timeline.on_finished(hand.a, Timeline::Outcome::cancelled, Timeline::Event::queued);
    const auto& queue = hand.timeline.stages()[0].queue;
    REQUIRE(queue.size() == 3);
    CHECK(queue[0].waiting == 1);
    CHECK(queue[1].waiting == 2);
    CHECK(queue[2].waiting == 1);
    CHECK(queue[2].at == 6ms);
    CHECK(hand.timeline.attempts().empty());
}

TEST_CASE("timeline: it has every attempt and every dead letter of a pipeline, and no query waits at the end",
          "[timeline]") {
    const Recorded recorded(30, GENERATE(false, true));
    std::map<Ending, int> endings;
    for (const auto& attempt : recorded.timeline.attempts()) {
        ++endings[attempt.ending];
        const std::size_t limits[] = {4, 3, 2};
        CHECK(attempt.slot < limits[attempt.stage]);
        CHECK(attempt.begin < attempt.end);
    }
    CHECK(static_cast<int>(recorded.timeline.attempts().size()) == recorded.rig.calls());
    CHECK(endings ==
          std::map<Ending, int>{{Ending::succeeded, 29 + 28 + 27}, {Ending::retried, 6}, {Ending::failed, 3}});
    CHECK(recorded.timeline.dead_letters().size() == 3);
    for (const auto& stage : recorded.timeline.stages()) {
        CHECK(stage.queue.back().waiting == 0);
    }
    CHECK(recorded.timeline.end() == test::now(const_cast<test::Rig<>&>(recorded.rig).context));
}

TEST_CASE("timeline: no two attempts on one track of a trace overlap", "[timeline]") {
    const Recorded recorded;
    std::map<std::pair<std::int64_t, std::int64_t>, std::vector<std::pair<std::int64_t, std::int64_t>>> tracks;
    for (const json::object& event : events(recorded.timeline, "X")) {
        const auto begin = to_nanoseconds(event.at("ts"));
        const auto duration = to_nanoseconds(event.at("dur"));
        CHECK(begin >= 0);
        CHECK(duration >= 0);
        tracks[{event.at("pid").as_int64(), event.at("tid").as_int64()}].emplace_back(begin, begin + duration);
    }
    CHECK(tracks.size() == 4 + 3 + 2);
    for (auto& [track, spans] : tracks) {
        std::ranges::sort(spans);
        for (std::size_t i = 1; i < spans.size(); ++i) {
            CHECK(spans[i - 1].second <= spans[i].first);
        }
    }
}

TEST_CASE("timeline: each slot is a named thread of a trace, in the process of its stage", "[timeline]") {
    const Recorded recorded;
    std::map<std::int64_t, std::string> processes;
    std::map<std::int64_t, std::pair<std::int64_t, std::string>> threads;
    std::map<std::string, int> kinds;
    for (const json::object& event : events(recorded.timeline, "M")) {
        const std::string kind(event.at("name").as_string());
        ++kinds[kind];
        const auto pid = event.at("pid").as_int64();
        if (kind == "process_name") {
            processes[pid] = event.at("args").at("name").as_string();
        } else if (kind == "thread_name") {
            CHECK(threads
                      .emplace(event.at("tid").as_int64(),
                               std::pair(pid, std::string(event.at("args").at("name").as_string())))
                      .second);
        }
    }
    CHECK(processes == std::map<std::int64_t, std::string>{
                           {1, "classify (4 slots)"}, {2, "extract (3 slots)"}, {3, "generate (2 slots)"}});
    CHECK(kinds == std::map<std::string, int>{
                       {"process_name", 3}, {"process_sort_index", 3}, {"thread_name", 9}, {"thread_sort_index", 9}});
    for (const auto& [tid, thread] : threads) {
        CHECK_FALSE(processes.contains(tid));  // a viewer takes a thread with the id of its process for the main thread
    }
    for (const json::object& event : events(recorded.timeline, "X")) {
        CHECK(threads.at(event.at("tid").as_int64()).first == event.at("pid").as_int64());
    }
}

TEST_CASE("timeline: a trace counts the queries that wait, and marks failures and dead letters", "[timeline]") {
    const Recorded recorded;
    std::map<std::int64_t, std::pair<std::int64_t, std::int64_t>> last;  // by process: the time and the count
    for (const json::object& event : events(recorded.timeline, "C")) {
        auto& [at, waiting] = last.try_emplace(event.at("pid").as_int64(), -1, 0).first->second;
        CHECK(to_nanoseconds(event.at("ts")) > at);
        at = to_nanoseconds(event.at("ts"));
        waiting = event.at("args").at("queries").as_int64();
        CHECK(waiting >= 0);
    }
    CHECK(last.size() == 3);
    for (const auto& [pid, counter] : last) {
        CHECK(counter.second == 0);
    }
    std::map<std::string, int> marks;
    for (const json::object& event : events(recorded.timeline, "i")) {
        ++marks[std::string(event.at("name").as_string()) + ' ' + std::string(event.at("s").as_string())];
        CHECK(event.at("args").at("error").as_string().starts_with("cannot "));
    }
    CHECK(marks == std::map<std::string, int>{{"failed, retried t", 6},
                                              {"failed t", 3},
                                              {"dead letter q11 p", 1},
                                              {"dead letter q17 p", 1},
                                              {"dead letter q8 p", 1}});
}

TEST_CASE("timeline: a trace is exact to the nanosecond, and names and errors may have any characters", "[timeline]") {
    ByHand hand;
    const std::string odd = "a \"b\" \\ \n\t\x01 < & > \xc3\xa9";
    StageResult<> run{odd, "s"};
    hand.now = 3ns;
    hand.start(run);
    hand.now = 1234567ns;
    hand.timeline.on_attempt_failed(run, ByHand::error(odd));
    run.error = ByHand::error(odd);
    hand.timeline.on_finished(run, Timeline::Outcome::failed, Timeline::Event::attempt_failed);
    hand.timeline.on_dead_letter(sluice::Query(odd, ""), run, {});
    CHECK(trace(hand.timeline).find("\"ts\":0.003,\"dur\":1234.564,") != std::string::npos);
    CHECK(events(hand.timeline, "X")[0].at("args").at("query").as_string() == odd);
    CHECK(events(hand.timeline, "i")[1].at("args").at("error").as_string() == odd);

    boost::property_tree::ptree tree;
    std::istringstream in(svg(hand.timeline));
    boost::property_tree::read_xml(in, tree);
    CHECK(tree.get<std::string>("svg.rect").empty());
}

TEST_CASE("timeline: a picture is well-formed, and has a bar for every attempt and a mark for every failure",
          "[timeline]") {
    const Recorded recorded(30, GENERATE(false, true));
    const std::string text = svg(recorded.timeline);
    boost::property_tree::ptree tree;
    std::istringstream in(text);
    boost::property_tree::read_xml(in, tree);

    CHECK(tree.get<std::string>("svg.title") == "30 queries in 7.7 s: 27 completed, 3 dead letters");
    std::map<std::string, std::size_t> bars;
    double right = 0;
    for (const auto& [kind, child] : tree.get_child("svg")) {
        if (kind == "rect" && child.get_child_optional("title")) {
            ++bars[child.get<std::string>("<xmlattr>.class")];
            CHECK(child.get<double>("<xmlattr>.width") >= 1);
            right = std::max(right, child.get<double>("<xmlattr>.x") + child.get<double>("<xmlattr>.width"));
        }
    }
    CHECK(bars == std::map<std::string, std::size_t>{{"ok", 84}, {"again", 6}, {"lost", 3}});
    CHECK(right <= tree.get<double>("svg.<xmlattr>.width"));
    CHECK(count(text, "class=\"cross\"") == 3 + 1);  // and the legend
    CHECK(count(text, "class=\"queue\" d=") == 3);
    CHECK(text.size() < 60'000);
}

TEST_CASE("timeline: no events at all, and one attempt at time zero, can be drawn", "[timeline]") {
    ByHand hand;
    for (int i = 0; i != 2; ++i) {
        CHECK(json::parse(trace(hand.timeline)).at("traceEvents").is_array());
        boost::property_tree::ptree tree;
        std::istringstream in(svg(hand.timeline));
        boost::property_tree::read_xml(in, tree);
        CHECK(count(svg(hand.timeline), "nan") == 0);
        CHECK(count(svg(hand.timeline), ">0 s<") == 1);
        hand.start(hand.a);
        hand.succeed(hand.a);
    }
}

TEST_CASE("timeline: one of anything is in the singular", "[timeline]") {
    ByHand hand;
    hand.start(hand.a);
    hand.timeline.on_attempt_failed(hand.a, ByHand::error("no"));
    hand.timeline.on_finished(hand.a, Timeline::Outcome::failed, Timeline::Event::attempt_failed);
    hand.timeline.on_dead_letter({}, hand.a, {});
    const std::string text = svg(hand.timeline);
    CHECK(count(text, ">1 query in 0.0 s: 0 completed, 1 dead letter<") == 2);
    CHECK(count(text, ">1 slot<") == 1);
    CHECK(count(trace(hand.timeline), "s (1 slot)\"") == 1);
}

TEST_CASE("progress: the line is rewritten at most ten times a second, and erased at the end", "[timeline]") {
    std::ostringstream terminal;
    std::chrono::nanoseconds now{};
    StageResult<> extract{"q", "extract"};
    StageResult<> generate{"q", "generate"};
    const auto succeed = [](sluice::Observer& observer, const StageResult<>& run) {
        observer.on_finished(run, sluice::Observer::Outcome::succeeded, sluice::Observer::Event::started);
    };
    {
        support::Progress progress(terminal, 40, "generate", [&] { return now; });
        for (int i = 0; i != 30; ++i) {
            now += 10ms;
            succeed(progress, extract);
            succeed(progress, generate);
        }
        CHECK(terminal.str() ==
              "\r10/40 queries (25 %), 0 dead letters\r20/40 queries (50 %), 0 dead letters"
              "\r30/40 queries (75 %), 0 dead letters");
        terminal.str("");
        for (int i = 0; i != 8; ++i) {
            succeed(progress, generate);
        }
        CHECK(terminal.str().empty());
        now += 100ms;
        progress.on_dead_letter({}, generate, {});
        CHECK(terminal.str() == "\r39/40 queries (97 %), 1 dead letter ");
        terminal.str("");
        succeed(progress, generate);
        CHECK(terminal.str() == '\r' + std::string(35, ' ') + '\r');
        terminal.str("");
    }
    CHECK(terminal.str().empty());  // it has already been erased
}

TEST_CASE("progress: a run that ends early leaves no line behind, and a short one shows none", "[timeline]") {
    std::ostringstream terminal;
    std::chrono::nanoseconds now = GENERATE(50ms, 1s);
    {
        support::Progress progress(terminal, 40, "generate", [&] { return now; });
        progress.on_dead_letter({}, {}, {});
        CHECK(terminal.str().empty() == (now == 50ms));
    }
    CHECK((terminal.str().empty() || terminal.str().ends_with("   \r")));
}

TEST_CASE("progress: several observers each get every event", "[timeline]") {
    ByHand first;
    ByHand second;
    support::Observers both;
    CHECK(both.empty());
    both.add(first.timeline);
    both.add(second.timeline);
    StageResult<> run{"q", "s"};
    both.on_queued(run);
    ++run.attempts;
    both.on_started(run);
    both.on_attempt_failed(run, ByHand::error("no"));
    both.on_finished(run, Timeline::Outcome::failed, Timeline::Event::attempt_failed);
    both.on_dead_letter({}, run, {});
    CHECK(trace(first.timeline) == trace(second.timeline));
    CHECK(first.timeline.attempts().at(0).ending == Ending::failed);
    CHECK(first.timeline.dead_letters().size() == 1);
}
