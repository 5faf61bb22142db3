// SPDX-License-Identifier: BSL-1.0
// Stage runs that run in place, without a coroutine of their own. What becomes of one, and what its observer sees, is
// the same as for a stage with a retry, which goes on in a coroutine after an attempt in place, and as for one with a
// timeout that is never reached, which has a coroutine from the start.
#include <sluice/observer.hpp>
#include <sluice/pipeline/drain.hpp>
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/stage/with_retry.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/slot.hpp>
#include <sluice/sync/stage_semaphore.hpp>
#include <sluice/sync/task_group.hpp>
#include <sluice/sync/timeout.hpp>
#include <sluice/testing/run.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/system_error.hpp>
#include <boost/version.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::Observer;
using sluice::Query;
using sluice::StageError;
using sluice::StageOptions;
using sluice::StageResult;
using test::Task;
using test::timed;
using test::VirtualTimer;

struct Slip {
    std::optional<std::string> first;
    std::optional<std::string> second;
    std::optional<std::string> third;
};

using SlipRun = sluice::Run<Slip>;
using Words = asio::awaitable<std::string>;
using Writer = std::function<Words(const std::string&)>;  // has one signature, so that its calls may run in place
using WriterStage = sluice::Stage<Writer, VirtualTimer>;
using SlipStep =
    decltype(std::declval<SlipRun&>().step(&Slip::first, std::declval<WriterStage&>(), std::declval<std::string&>()));

static_assert(std::convertible_to<SlipStep, asio::awaitable<void>>);
#if BOOST_VERSION >= 108300 && BOOST_VERSION <= 109200 && !defined(SLUICE_PORTABLE_AWAIT)
constexpr bool runs_in_place = true;
#else
constexpr bool runs_in_place = false;
#endif
static_assert(sluice::Awaitable<SlipStep> != runs_in_place);

// How a stage run goes.
enum class Way { in_place, with_retries, with_timeout, repeated, repeated_with_timeout };

std::string words_of(const StageResult<>& run) {
    return run.query_id.str() + ' ' + std::to_string(run.attempts) + '/' + std::to_string(run.latency / 1ms) + '/' +
           std::to_string(run.queue_time / 1ms) + (run.late ? " late" : "") +
           (run.reason == sluice::Reason::none ? "" : ' ' + std::string(to_string(run.reason))) +
           (run.error ? ": " + run.error.message() : "");
}

std::string words_of(const sluice::QueryResult& result) {
    std::string words = result.completed ? "completed" : result.unfinished ? "unfinished" : "dead";
    for (const auto& run : result.stage_results) {
        words += "; " + run.stage.str() + (run.success ? " + " : " - ") + words_of(run);
    }
    return words + "; " + std::to_string(result.failed);
}

// What happens in a scene.
struct Diary {
    std::vector<std::string> events;          // time, event, query, attempts / latency / queue time, reason and error
    std::map<std::string, std::string> ends;  // of the queries

    bool operator==(const Diary&) const = default;
};

// An observed stage with one slot on virtual time, whose model sleeps for 10 ms, and queries through it.
class ObservedScene : public Observer {
public:
    asio::io_context context{1};
    Writer writer = [](const std::string& text) { return write(text); };
    std::map<std::string, std::function<void()>> at;  // what else happens at an event, such as "queued a"
    const StageResult<>* place = nullptr;             // of the result of a run in place
    int in_place = 0;                                 // runs that began there
    int elsewhere = 0;

    ObservedScene() = default;
    ~ObservedScene() override = default;

    static Words write(std::string text) {
        co_await test::sleep(10ms);
        co_return "about " + text;
    }

    virtual sluice::Endpoint<VirtualTimer> endpoint() = 0;

    // Begins a query, whose text is its id too. Maybe in a coroutine that goes on after it was cancelled.
    void start(const std::string& text, bool after_cancellation = false) {
        queries_.emplace(text, Task<>(context.get_executor(), [this, text, after_cancellation] {
                             return run_query(*this, text, after_cancellation);
                         }));
    }
    void cancel(const std::string& text) { queries_.at(text).cancel(); }
    void run_until(std::chrono::milliseconds time) { test::run_until(context, time); }

    // Runs everything to its end.
    Diary diary() {
        sluice::testing::run(context);
        CHECK(open_.empty());
        CHECK(endpoint().active() == 0);
        CHECK(endpoint().waiting() == 0);
        return diary_;
    }

    void on_queued(const StageResult<>& run) noexcept override {
        ++(&run == place ? in_place : elsewhere);
        begin("queued ", run, Event::queued);
    }
    void on_started(const StageResult<>& run) noexcept override { begin("started ", run, Event::started); }
    void on_attempt_failed(const StageResult<>& run, const StageError& error) noexcept override {
        begin("tried ", run, Event::attempt_failed, " " + error.message());
    }
    void on_finished(const StageResult<>& run, Outcome outcome, Event last) noexcept override {
        CHECK(open_.at(&run) == last);
        CHECK(run.success == (outcome == Outcome::succeeded));
        open_.erase(&run);
        const char* const names[] = {"succeeded ", "failed ", "cancelled "};
        add(names[static_cast<int>(outcome)], run);
    }

protected:
    StageOptions options(Way way) {
        StageOptions options;
        options.observer = this;
        if (way == Way::with_retries) {
            options.retry = test::retries(1, {}, [](const std::exception_ptr&) { return false; });
        } else if (way == Way::repeated || way == Way::repeated_with_timeout) {
            options.retry = test::retries(2, 5ms);
        }
        if (way == Way::with_timeout || way == Way::repeated_with_timeout) {
            options.timeout = 1h;
        }
        return options;
    }

private:
    // Returns what became of it.
    virtual Words process(std::string text) = 0;

    static asio::awaitable<void> run_query(ObservedScene& scene, std::string text, bool after_cancellation) {
        if (after_cancellation) {
            co_await asio::this_coro::throw_if_cancelled(false);
            const bool cancelled = co_await test::cancelled_within(1h);
            CHECK(cancelled);
        }
        // In Boost 1.83 the cancellation of a coroutine that has not been suspended escapes into the event loop.
        co_await asio::post(co_await asio::this_coro::executor, asio::deferred);
        std::exception_ptr error;
        try {
            scene.diary_.ends[text] = co_await scene.process(text);
        } catch (...) {
            error = std::current_exception();
        }
        if (error) {
            CHECK(test::is_aborted(error));
            scene.diary_.ends[text] = "aborted";
        }
    }

    void begin(const std::string& event, const StageResult<>& run, Event last, const std::string& rest = "") {
        open_[&run] = last;  // a run has one address
        add(event, run, rest);
    }

    void add(const std::string& event, const StageResult<>& run, const std::string& rest = "") {
        diary_.events.push_back(std::to_string(test::now(context) / 1ms) + ' ' + event + words_of(run) + rest);
        if (const auto found = at.find(event + run.query_id.str()); found != at.end()) {
            std::exchange(found->second, [] {})();
        }
    }

    Diary diary_;
    std::map<const StageResult<>*, Event> open_;
    std::map<std::string, Task<>> queries_;
};

// A step of a Pipeline, in a route that takes just this one unless it is changed.
class StepScene : public ObservedScene {
public:
    std::function<asio::awaitable<void>(SlipRun&, WriterStage&)> route = [](SlipRun& run, WriterStage& stage) {
        return take_one_step(run, stage);
    };

    explicit StepScene(Way way)
        : stage_(
              timed(context.get_executor()), "write", 1, [this](const std::string& text) { return writer(text); },
              options(way)),
          pipeline_(timed(context.get_executor()), [this](SlipRun& run) { return route(run, stage_); }, sink_, 9) {}

    sluice::Endpoint<VirtualTimer> endpoint() override { return stage_.endpoint(); }

    Task<sluice::DrainReport<Slip>> drain(std::chrono::nanoseconds grace) {
        return Task<sluice::DrainReport<Slip>>(context.get_executor(),
                                               [this, grace] { return pipeline_.drain(grace); });
    }

private:
    using Route = std::function<asio::awaitable<void>(SlipRun&)>;

    static asio::awaitable<void> take_one_step(SlipRun& run, WriterStage& stage) {
        co_await run.step(&Slip::first, stage, run.query().text);
    }

    Words process(std::string text) override {
        const Query query(text, text);
        const sluice::RecordResult<Slip> result = co_await pipeline_.process_one(query);
        const Slip& slip = result.record;
        std::string words = words_of(result);
        for (const auto& field : {slip.first, slip.second, slip.third}) {
            words += ", " + field.value_or("none");
        }
        co_return words;
    }

    test::DeadLetters sink_;
    WriterStage stage_;
    sluice::Pipeline<Route, test::DeadLetters, VirtualTimer> pipeline_;
};

// The first stage of an InferencePipeline.
class FirstStageScene : public ObservedScene {
public:
    explicit FirstStageScene(Way way)
        : pipeline_(
              timed(context.get_executor()), [this](const std::string& text) { return writer(text); }, writer,
              [this](const std::string& intent, const std::string&, const std::string&) { return writer(intent); },
              sluice::StageLimits{1, 9, 9}, sink_, {.classify = options(way)}) {}

    sluice::Endpoint<VirtualTimer> endpoint() override { return pipeline_.classify().endpoint(); }

private:
    using Generate = std::function<Words(const std::string&, const std::string&, const std::string&)>;

    Words process(std::string text) override {
        const Query query(text, text);
        const auto result = co_await pipeline_.process_one(query);
        co_return words_of(result) + ", " + result.response.value_or("none");
    }

    test::DeadLetters sink_;
    sluice::InferencePipeline<Writer, Writer, Generate, test::DeadLetters, VirtualTimer> pipeline_;
};

// The diary of `play`, which is the same in the other ways.
template <class SceneType, class Play>
Diary diary_of(Play play, const std::vector<Way>& others = {Way::with_retries, Way::with_timeout},
               Way first = Way::in_place) {
    const auto by = [&](Way way) {
        SceneType scene(way);
        play(scene);
        return scene.diary();
    };
    const Diary diary = by(first);
    for (const Way way : others) {
        const Diary other = by(way);
        CHECK(other.events == diary.events);
        CHECK(other.ends == diary.ends);
    }
    return diary;
}

// (g++ 12 cannot compile this enumerator in a template.)
[[noreturn]] void refuse() { throw sluice::ModelError("out of order", {.kind = sluice::Verdict::overloaded}); }

using Events = std::vector<std::string>;

const std::string was_closed = " closed: the endpoint was closed: Operation canceled [system:125]";
const std::string was_cancelled = ": Stage::run: Operation canceled [system:125]";

}  // namespace

TEMPLATE_TEST_CASE("in place: a stage run succeeds, at once or after a wait for its slot", "[in_place]", StepScene,
                   FirstStageScene) {
    const Diary diary = diary_of<TestType>([](TestType& scene) {
        scene.start("a");
        scene.start("b");
    });
    CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "0 queued b 0/0/0", "10 succeeded a 1/10/0",
                                 "10 started b 1/0/10", "20 succeeded b 1/10/10"});
    CHECK(diary.ends.at("b").starts_with("completed; "));
}

TEST_CASE("in place: the results of steps and of the first stage have the same fields", "[in_place]") {
    const auto play = [](ObservedScene& scene) {
        scene.start("a");
        scene.start("b");
    };
    CHECK(diary_of<StepScene>(play).ends.at("b") == "completed; write + b 1/10/10; -1, about b, none, none");
    CHECK(diary_of<FirstStageScene>(play).ends.at("b") ==
          "completed; classify + b 1/10/10; extract + b 1/10/0; generate + b 1/10/0; -1, about about b");
}

TEMPLATE_TEST_CASE("in place: a model may succeed without suspending", "[in_place]", StepScene, FirstStageScene) {
    const Diary diary = diary_of<TestType>([](TestType& scene) {
        scene.writer = [](const std::string& text) -> Words { co_return text; };
        scene.start("a");
    });
    CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "0 succeeded a 1/0/0"});
}

TEMPLATE_TEST_CASE("in place: a model fails, and the next query has its slot", "[in_place]", StepScene,
                   FirstStageScene) {
    const Diary diary = diary_of<TestType>([](TestType& scene) {
        scene.writer = [](const std::string&) -> Words {
            co_await test::sleep(5ms);
            throw std::runtime_error("no");
        };
        scene.start("a");
        scene.start("b");
    });
    CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "0 queued b 0/0/0", "5 tried a 1/5/0 no",
                                 "5 failed a 1/5/0 model: no", "5 started b 1/0/5", "10 tried b 1/5/5 no",
                                 "10 failed b 1/5/5 model: no"});
    CHECK(diary.ends.at("a").starts_with("dead; "));
}

TEMPLATE_TEST_CASE("in place: a model function throws before it returns an awaitable, at once and after a wait",
                   "[in_place]", StepScene, FirstStageScene) {
    const Diary diary = diary_of<TestType>([](TestType& scene) {
        scene.writer = [](const std::string& text) {
            if (text == "first" || text == "b") {
                throw std::runtime_error("no");
            }
            return ObservedScene::write(text);
        };
        scene.start("first");
        scene.run_until(1ms);
        scene.start("a");
        scene.start("b");
        scene.start("c");
    });
    CHECK(diary.events == Events{"0 queued first 0/0/0", "0 started first 1/0/0", "0 tried first 1/0/0 no",
                                 "0 failed first 1/0/0 model: no", "1 queued a 0/0/0", "1 started a 1/0/0",
                                 "1 queued b 0/0/0", "1 queued c 0/0/0", "11 succeeded a 1/10/0", "11 started b 1/0/10",
                                 "11 tried b 1/0/10 no", "11 failed b 1/0/10 model: no", "11 started c 1/0/10",
                                 "21 succeeded c 1/10/10"});
}

TEMPLATE_TEST_CASE("in place: an attempt that fails is repeated", "[in_place][retry]", StepScene, FirstStageScene) {
    const bool suspends = GENERATE(false, true);
    // What happens in the backoff before the second attempt of `a`, or while that waits for its slot.
    enum class Then { nothing, cancel_in_backoff, cancel_in_line, close };
    const Then then = GENERATE(Then::nothing, Then::cancel_in_backoff, Then::cancel_in_line, Then::close);
    CAPTURE(suspends, then);
    const auto play = [=](TestType& scene) {
        scene.writer = [suspends, calls = std::make_shared<int>()](const std::string& text) -> Words {
            if (text != "a" || ++*calls == 3) {
                return ObservedScene::write(text);
            }
            if (!suspends) {
                refuse();
            }
            return [](int call) -> Words {
                co_await test::sleep(1ms);
                throw std::runtime_error("failure " + std::to_string(call));
            }(*calls);
        };
        scene.start("a");
        scene.start("b");  // has the slot when the backoff of `a` ends
        scene.run_until(then == Then::cancel_in_line ? 8ms : 3ms);
        if (then == Then::cancel_in_backoff || then == Then::cancel_in_line) {
            scene.cancel("a");
        } else if (then == Then::close) {
            scene.endpoint().close();
        }
    };
    const Diary diary = diary_of<TestType>(play, {Way::repeated_with_timeout}, Way::repeated);
    CHECK(diary.ends.at("a").starts_with(then == Then::nothing ? "completed"
                                         : then == Then::close ? "dead"
                                                               : "aborted"));
    if (then == Then::nothing && suspends) {
        CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "0 queued b 0/0/0",
                                     "1 tried a 1/1/0 failure 1", "1 started b 1/0/1", "6 queued a 1/1/0",
                                     "11 succeeded b 1/10/1", "11 started a 2/1/5", "12 tried a 2/2/5 failure 2",
                                     "17 queued a 2/2/5", "17 started a 3/2/5", "27 succeeded a 3/12/5"});
    }
}

TEMPLATE_TEST_CASE("in place: the endpoint is closed, before, while one waits, or by the observer", "[in_place]",
                   StepScene, FirstStageScene) {
    SECTION("before") {
        const Diary diary = diary_of<TestType>([](TestType& scene) {
            scene.endpoint().close();
            scene.start("a");
        });
        CHECK(diary.events == Events{"0 queued a 0/0/0", "0 failed a 0/0/0" + was_closed});
    }
    SECTION("while one waits") {
        const Diary diary = diary_of<TestType>([](TestType& scene) {
            scene.start("a");
            scene.start("b");
            scene.run_until(5ms);
            scene.endpoint().close();
        });
        CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "0 queued b 0/0/0",
                                     "5 failed b 0/0/5" + was_closed, "10 succeeded a 1/10/0"});
    }
    SECTION("by the observer, as it hears of the run") {
        const Diary diary = diary_of<TestType>([](TestType& scene) {
            scene.at["queued a"] = [&] { scene.endpoint().close(); };
            scene.start("a");
        });
        CHECK(diary.events == Events{"0 queued a 0/0/0", "0 failed a 0/0/0" + was_closed});
    }
    SECTION("once the slot is granted, which is too late") {
        const Diary diary = diary_of<TestType>([](TestType& scene) {
            scene.at["succeeded a"] = [&] { scene.endpoint().close(); };
            scene.start("a");
            scene.start("b");
        });
        CHECK(diary.events.back() == "20 succeeded b 1/10/10");
    }
}

TEMPLATE_TEST_CASE("in place: the observer pauses the endpoint as it hears of the run", "[in_place]", StepScene,
                   FirstStageScene) {
    const Diary diary = diary_of<TestType>([](TestType& scene) {
        scene.at["queued a"] = [&] { scene.endpoint().set_limit(0); };
        scene.start("a");
        scene.run_until(5ms);
        scene.endpoint().set_limit(1);
    });
    CHECK(diary.events == Events{"0 queued a 0/0/0", "5 started a 1/0/5", "15 succeeded a 1/10/5"});
}

TEMPLATE_TEST_CASE("in place: a query is cancelled", "[in_place][cancellation]", StepScene, FirstStageScene) {
    SECTION("by the observer, before it would wait for a slot") {
        const Diary diary = diary_of<TestType>([](TestType& scene) {
            scene.at["queued b"] = [&] { scene.cancel("b"); };
            scene.start("a");
            scene.start("b");
        });
        CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "0 queued b 0/0/0",
                                     "0 cancelled b 0/0/0" + was_cancelled, "10 succeeded a 1/10/0"});
    }
    SECTION("while it waits for its slot") {
        const Diary diary = diary_of<TestType>([](TestType& scene) {
            scene.start("a");
            scene.start("b");
            scene.start("c");
            scene.run_until(5ms);
            scene.cancel("b");
        });
        CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "0 queued b 0/0/0", "0 queued c 0/0/0",
                                     "5 cancelled b 0/0/5" + was_cancelled, "10 succeeded a 1/10/0",
                                     "10 started c 1/0/10", "20 succeeded c 1/10/10"});
        CHECK(diary.ends.at("b") == "aborted");
    }
    SECTION("while it waits, and the endpoint is closed before it resumes") {
        const Diary diary = diary_of<TestType>([](TestType& scene) {
            scene.start("a");
            scene.start("b");
            scene.run_until(5ms);
            scene.cancel("b");
            scene.endpoint().close();
        });
        CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "0 queued b 0/0/0",
                                     "5 cancelled b 0/0/5" + was_cancelled, "10 succeeded a 1/10/0"});
    }
    SECTION("when its slot is granted, and it has not resumed") {
        const Diary diary = diary_of<TestType>([](TestType& scene) {
            scene.start("a");
            scene.start("b");
            scene.start("c");
            scene.at["succeeded a"] = [&] { scene.cancel("b"); };
        });
        CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "0 queued b 0/0/0", "0 queued c 0/0/0",
                                     "10 succeeded a 1/10/0", "10 cancelled b 0/0/10" + was_cancelled,
                                     "10 started c 1/0/10", "20 succeeded c 1/10/10"});
    }
    SECTION("by its observer, before its model is awaited") {
        const Diary diary = diary_of<TestType>([](TestType& scene) {
            scene.start("a");
            scene.start("b");
            scene.at["started b"] = [&] { scene.cancel("b"); };
        });
        CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "0 queued b 0/0/0",
                                     "10 succeeded a 1/10/0", "10 started b 1/0/10",
                                     "10 cancelled b 1/0/10" + was_cancelled});
    }
    SECTION("while its model runs") {
        const Diary diary = diary_of<TestType>([](TestType& scene) {
            scene.start("a");
            scene.start("b");
            scene.run_until(5ms);
            scene.cancel("a");
        });
        CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "0 queued b 0/0/0",
                                     "5 cancelled a 1/5/0" + was_cancelled, "5 started b 1/0/5",
                                     "15 succeeded b 1/10/5"});
    }
    SECTION("while its model runs, which ignores that") {
        const Diary diary = diary_of<TestType>([](TestType& scene) {
            scene.writer = [](const std::string& text) -> Words {
                const bool cancelled = co_await test::cancelled_within(10ms);
                co_return text + (cancelled ? " cancelled" : "");
            };
            scene.start("a");
            scene.run_until(5ms);
            scene.cancel("a");
        });
        CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "5 succeeded a 1/5/0"});
    }
    SECTION("while its model runs, which throws something else") {
        const Diary diary = diary_of<TestType>([](TestType& scene) {
            scene.writer = [](const std::string&) -> Words {
                static_cast<void>(co_await test::cancelled_within(10ms));
                throw std::runtime_error("no");
            };
            scene.start("a");
            scene.run_until(5ms);
            scene.cancel("a");
        });
        CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "5 cancelled a 1/5/0" + was_cancelled});
    }
}

TEMPLATE_TEST_CASE("in place: a model that throws operation_aborted unasked fails", "[in_place][cancellation]",
                   StepScene, FirstStageScene) {
    const Diary diary = diary_of<TestType>([](TestType& scene) {
        scene.writer = [](const std::string&) -> Words {
            co_await test::sleep(5ms);
            throw boost::system::system_error(asio::error::operation_aborted);
        };
        scene.start("a");
    });
    CHECK(diary.events.back() == "5 failed a 1/5/0 model: Operation canceled [system:125]");
}

TEMPLATE_TEST_CASE("in place: a coroutine that goes on after it was cancelled may process a query",
                   "[in_place][cancellation]", StepScene, FirstStageScene) {
    SECTION("and is not cancelled again") {
        const Diary diary = diary_of<TestType>([](TestType& scene) {
            scene.start("a", true);
            scene.start("b", true);
            scene.run_until(5ms);
            scene.cancel("a");
            scene.cancel("b");
        });
        CHECK(diary.events == Events{"5 queued a 0/0/0", "5 started a 1/0/0", "5 queued b 0/0/0",
                                     "15 succeeded a 1/10/0", "15 started b 1/0/10", "25 succeeded b 1/10/10"});
    }
    SECTION("and is cancelled again while it waits") {
        const Diary diary = diary_of<TestType>([](TestType& scene) {
            scene.start("a", true);
            scene.start("b", true);
            scene.run_until(5ms);
            scene.cancel("a");
            scene.cancel("b");
            scene.run_until(7ms);
            scene.cancel("b");
        });
        CHECK(diary.ends.at("b") == "aborted");
        CHECK(diary.events.at(3).starts_with("7 cancelled b 0/0/2"));
    }
    SECTION("whose model fails") {
        const Diary diary = diary_of<TestType>([](TestType& scene) {
            scene.writer = [](const std::string&) -> Words { throw std::runtime_error("no"); };
            scene.start("a", true);
            scene.run_until(5ms);
            scene.cancel("a");
        });
        CHECK(diary.events.back() == "5 failed a 1/0/0 model: no");
    }
}

TEST_CASE("in place: without a timeout, a second cancellation while the model runs is a failure of the model",
          "[in_place][cancellation]") {
    const auto play = [](ObservedScene& scene) {
        scene.start("a", true);
        scene.run_until(5ms);
        scene.cancel("a");
        scene.run_until(7ms);
        scene.cancel("a");
    };
    const Diary diary = diary_of<FirstStageScene>(play, {Way::with_retries});
    CHECK(diary.events.back().starts_with("7 failed a 1/2/0 model"));
}

TEST_CASE("in place: a route that goes on after it was cancelled may take a step, which may fail",
          "[in_place][cancellation]") {
    const bool fails = GENERATE(false, true);
    const Diary diary = diary_of<StepScene>([&](StepScene& scene) {
        scene.route = [](SlipRun& run, WriterStage& stage) -> asio::awaitable<void> {
            co_await asio::this_coro::throw_if_cancelled(false);
            static_cast<void>(co_await test::cancelled_within(1h));
            const StageError error = co_await run.step_or_error(&Slip::first, stage, run.query().text);
            CHECK(static_cast<bool>(error) == !run->first);
        };
        if (fails) {
            scene.writer = [](const std::string&) -> Words { throw std::runtime_error("no"); };
        }
        scene.start("a");
        scene.run_until(5ms);
        scene.cancel("a");
    });
    CHECK(diary.events.back() == (fails ? "5 failed a 1/0/0 model: no" : "15 succeeded a 1/10/0"));
    CHECK(diary.ends.at("a").starts_with("completed; "));
}

TEST_CASE("in place: a field that is emptied while the step waits is missing, and the slot is returned", "[in_place]") {
    const Diary diary = diary_of<StepScene>([](StepScene& scene) {
        const auto runs = std::make_shared<std::map<std::string, SlipRun*>>();
        scene.route = [runs](SlipRun& run, WriterStage& stage) -> asio::awaitable<void> {
            (*runs)[run.query().text] = &run;
            run->first = run.query().text;
            co_await run.step(&Slip::second, stage, &Slip::first);
        };
        scene.start("a");
        scene.start("b");
        scene.start("c");
        scene.run_until(5ms);
        (**runs->at("b")).first.reset();
    });
    CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "0 queued b 0/0/0", "0 queued c 0/0/0",
                                 "10 succeeded a 1/10/0",
                                 "10 failed b 0/0/10 missing: a field that the stage reads is empty",
                                 "10 started c 1/0/10", "20 succeeded c 1/10/10"});
    CHECK(diary.ends.at("b").starts_with("dead; "));
}

TEST_CASE("in place: a field that is empty when the step begins is missing", "[in_place]") {
    const Diary diary = diary_of<StepScene>([](StepScene& scene) {
        scene.route = [](SlipRun& run, WriterStage& stage) -> asio::awaitable<void> {
            const StageError error = co_await run.step_or_error(&Slip::second, stage, &Slip::first);
            run->first = error.message();
        };
        scene.start("a");
    });
    CHECK(diary.events ==
          Events{"0 queued a 0/0/0", "0 failed a 0/0/0 missing: a field that the stage reads is empty"});
    CHECK(diary.ends.at("a").starts_with("completed; "));
}

TEST_CASE("in place: coroutines of one route step at the same time", "[in_place][all]") {
    const bool cancel = GENERATE(false, true);
    const Diary diary = diary_of<StepScene>([&](StepScene& scene) {
        scene.route = [](SlipRun& run, WriterStage& stage) -> asio::awaitable<void> {
            const auto two = [&]() -> asio::awaitable<void> {
                co_await run.step(&Slip::first, stage, run.query().text);
                co_await run.step(&Slip::third, stage, &Slip::first);
            };
            const auto one = [&]() -> asio::awaitable<void> {
                co_await run.step(&Slip::second, stage, run.query().text);
            };
            co_await run.all(two(), one());
        };
        scene.start("a");
        if (cancel) {
            scene.run_until(15ms);
            scene.cancel("a");
        }
    });
    if (cancel) {
        CHECK(diary.ends.at("a") == "aborted");
    } else {
        CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "0 queued a 0/0/0",
                                     "10 succeeded a 1/10/0", "10 queued a 0/0/0", "10 started a 1/0/10",
                                     "20 succeeded a 1/10/10", "20 started a 1/0/10", "30 succeeded a 1/10/10"});
        CHECK(diary.ends.at("a") ==
              "completed; write + a 1/10/0; write + a 1/10/10; write + a 1/10/10; -1, about a, "
              "about a, about about a");
    }
}

TEST_CASE("in place: a step is cut short by a drain, while it waits or while its model runs", "[in_place][drain]") {
    const bool waits = GENERATE(false, true);
    const Diary diary = diary_of<StepScene>([waits](StepScene& scene) {
        scene.endpoint().set_limit(waits ? 0 : 1);
        scene.start("a");
        scene.run_until(5ms);
        const auto report = scene.drain(2ms);
        sluice::testing::run(scene.context);
        CHECK(report.succeeded());
    });
    CHECK(diary.events.back() == (waits ? "7 cancelled a 0/0/7" : "7 cancelled a 1/7/0") + was_cancelled);
    CHECK(diary.ends.at("a").starts_with("unfinished; "));
}

TEST_CASE("in place: a step may be awaited in each way that an awaitable may", "[in_place]") {
    enum class Form { plain, awaitable, timeout, retry, group, group_of_a_step, all, coroutine, error };
    const Form form = GENERATE(Form::plain, Form::awaitable, Form::timeout, Form::retry, Form::group,
                               Form::group_of_a_step, Form::all, Form::coroutine, Form::error);
    const Diary diary = diary_of<StepScene>([&](StepScene& scene) {
        scene.route = [form](SlipRun& run, WriterStage& stage) -> asio::awaitable<void> {
            const auto step = [&] { return run.step(&Slip::first, stage, run.query().text); };
            const auto in_group = [&](sluice::TaskGroup& group) -> asio::awaitable<void> {
                if (form == Form::group) {
                    group.spawn(step);
                } else {
                    group.spawn(step());
                }
                co_return;
            };
            const auto coroutine = [&]() -> asio::awaitable<void> { return step(); };
            if (form == Form::plain) {
                co_await step();
            } else if (form == Form::awaitable) {
                asio::awaitable<void> awaitable = step();
                co_await std::move(awaitable);
            } else if (form == Form::timeout) {
                co_await sluice::with_timeout<VirtualTimer>(1s, step);
            } else if (form == Form::retry) {
                co_await sluice::with_retry<VirtualTimer>({.max_retries = 1}, step);
            } else if (form == Form::group || form == Form::group_of_a_step) {
                co_await sluice::with_task_group(in_group);
            } else if (form == Form::all) {
                co_await run.all(step());
            } else if (form == Form::coroutine) {
                co_await coroutine();
            } else {
                asio::awaitable<StageError> awaitable = run.step_or_error(&Slip::first, stage, run.query().text);
                const StageError error = co_await std::move(awaitable);
                CHECK_FALSE(error);
            }
        };
        scene.start("a");
        scene.start("b");
    });
    CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "0 queued b 0/0/0", "10 succeeded a 1/10/0",
                                 "10 started b 1/0/10", "20 succeeded b 1/10/10"});
    CHECK(diary.ends.at("b") == "completed; write + b 1/10/10; -1, about b, none, none");
}

TEST_CASE("in place: a step times out in a route that goes on, and another is repeated", "[in_place]") {
    const Diary diary = diary_of<StepScene>([](StepScene& scene) {
        scene.writer = [tries = 0](const std::string& text) mutable -> Words {
            if (text == "again" && ++tries == 1) {
                throw std::runtime_error("once");
            }
            return ObservedScene::write(text);
        };
        scene.route = [](SlipRun& run, WriterStage& stage) -> asio::awaitable<void> {
            const auto wait = [&] { return run.step(&Slip::first, stage, run.query().text); };
            const auto repeat = [&] { return run.step(&Slip::second, stage, std::string("again")); };
            if (run.query().text == "b") {
                bool timed_out = false;
                try {
                    co_await sluice::with_timeout<VirtualTimer>(5ms, wait);
                } catch (const sluice::TimeoutError&) {
                    timed_out = true;
                }
                CHECK(timed_out);
                co_await sluice::with_retry<VirtualTimer>({.max_retries = 1, .backoff = {.initial = 0s}}, repeat);
            } else {
                co_await wait();
            }
        };
        scene.start("a");
        scene.start("b");
    });
    CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "0 queued b 0/0/0",
                                 "5 cancelled b 0/0/5" + was_cancelled, "5 queued b 0/0/0", "10 succeeded a 1/10/0",
                                 "10 started b 1/0/5", "10 tried b 1/0/5 once", "10 failed b 1/0/5 model: once",
                                 "10 queued b 0/0/0", "10 started b 1/0/0", "20 succeeded b 1/10/0"});
}

TEST_CASE("in place: awaitables and steps run side by side", "[in_place][all]") {
    const Diary diary = diary_of<StepScene>([](StepScene& scene) {
        scene.route = [](SlipRun& run, WriterStage& stage) -> asio::awaitable<void> {
            asio::awaitable<void> awaitable = run.step(&Slip::first, stage, run.query().text);
            co_await run.all(std::move(awaitable), run.step(&Slip::second, stage, run.query().text), test::sleep(1ms),
                             run.step_or_error(&Slip::third, stage, run.query().text));
        };
        scene.start("a");
    });
    CHECK(diary.ends.at("a") ==
          "completed; write + a 1/10/0; write + a 1/10/10; write + a 1/10/20; -1, about a, about a, about a");
}

TEST_CASE("in place: a step that is made and dropped keeps a query that is cancelled from completing",
          "[in_place][cancellation]") {
    enum class Drop { never, at_once, after_a_move, as_awaitable, with_others };
    const Drop drop = GENERATE(Drop::never, Drop::at_once, Drop::after_a_move, Drop::as_awaitable, Drop::with_others);
    enum class End { by_itself, cancelled, drained };
    const End end = GENERATE(End::by_itself, End::cancelled, End::drained);
    const Diary diary = diary_of<StepScene>([&](StepScene& scene) {
        scene.route = [drop](SlipRun& run, WriterStage& stage) -> asio::awaitable<void> {
            if (drop == Drop::at_once) {
                static_cast<void>(run.step(&Slip::first, stage, run.query().text));
            } else if (drop == Drop::after_a_move) {
                auto step = run.step(&Slip::first, stage, run.query().text);
                const auto moved = std::move(step);
            } else if (drop == Drop::as_awaitable) {
                const asio::awaitable<void> awaitable = run.step(&Slip::first, stage, run.query().text);
            } else if (drop == Drop::with_others) {
                static_cast<void>(run.all(run.step(&Slip::first, stage, run.query().text), test::sleep(1ms)));
            }
            static_cast<void>(co_await test::cancelled_within(10ms));
        };
        scene.start("a");
        scene.run_until(5ms);
        if (end == End::cancelled) {
            scene.cancel("a");
        } else if (end == End::drained) {
            const auto report = scene.drain(0ms);
            sluice::testing::run(scene.context);
            CHECK(report.succeeded());
        }
    });
    CHECK(diary.events.empty());
    const bool incomplete = drop != Drop::never && end != End::by_itself;
    CHECK(diary.ends.at("a") == (!incomplete             ? "completed; -1, none, none, none"
                                 : end == End::cancelled ? "aborted"
                                                         : "unfinished; -1, none, none, none"));
}

TEST_CASE(
    "in place: of steps of one route at the same time, each has its result in one place, in the order of their ends",
    "[in_place][task_group]") {
    const Diary diary = diary_of<StepScene>([](StepScene& scene) {
        scene.writer = [](const std::string& text) -> Words {
            co_await test::sleep(text == "slow" ? 10ms : 1ms);
            co_return text;
        };
        scene.endpoint().set_limit(2);
        scene.route = [](SlipRun& run, WriterStage& stage) -> asio::awaitable<void> {
            const std::string slow = "slow";
            const std::string fast = "fast";
            const auto body = [&](sluice::TaskGroup& group) -> asio::awaitable<void> {
                group.spawn([&] { return run.step(&Slip::first, stage, slow); });
                group.spawn([&] { return run.step(&Slip::second, stage, fast); });
                co_return;
            };
            co_await sluice::with_task_group(body);
        };
        scene.start("a");
    });
    CHECK(diary.events == Events{"0 queued a 0/0/0", "0 started a 1/0/0", "0 queued a 0/0/0", "0 started a 1/0/0",
                                 "1 succeeded a 1/1/0", "10 succeeded a 1/10/0"});
    CHECK(diary.ends.at("a") == "completed; write + a 1/1/0; write + a 1/10/0; -1, slow, fast, none");
}

TEST_CASE("in place: a field that is filled is not paid for, and its step is over at once", "[in_place]") {
    const Diary diary = diary_of<StepScene>([](StepScene& scene) {
        scene.route = [](SlipRun& run, WriterStage& stage) -> asio::awaitable<void> {
            run->first = run->second = "known";
            co_await run.step(&Slip::first, stage, run.query().text);
            const StageError error = co_await run.step_or_error(&Slip::second, stage, run.query().text);
            CHECK_FALSE(error);
            co_await run.all(run.step(&Slip::first, stage, run.query().text),
                             run.step(&Slip::third, stage, run.query().text));
        };
        scene.start("a");
    });
    CHECK(diary.ends.at("a") == "completed; write + a 1/10/0; -1, known, known, about a");
}

TEST_CASE("in place: a model function may return another operation", "[in_place]") {
    struct Permit {
        std::optional<sluice::Slot> slot;
    };
    const std::optional<std::chrono::nanoseconds> timeout =
        GENERATE(std::optional<std::chrono::nanoseconds>(), std::optional<std::chrono::nanoseconds>(1h));
    asio::io_context context{1};
    sluice::StageSemaphore semaphore(context.get_executor(), 1);
    sluice::Slot held = semaphore.try_acquire();
    const sluice::Stage stage(
        timed(context.get_executor()), "permit", 1, [&](int) { return semaphore.acquire(); },
        StageOptions{.timeout = timeout});
    test::DeadLetters sink;
    sluice::Pipeline pipeline(
        timed(context.get_executor()),
        [stage](sluice::Run<Permit>& run) -> asio::awaitable<void> {
            const int number = 1;
            co_await run.step(&Permit::slot, stage, number);
        },
        sink, 1);
    Task<sluice::RecordResult<Permit>> task(context.get_executor(), [&] { return pipeline.process_one({"a", "a"}); });
    test::run_until(context, 5ms);
    CHECK(semaphore.waiting() == 1);
    const bool cancel = GENERATE(false, true);
    if (cancel) {
        task.cancel();
    } else {
        held.release();
    }
    sluice::testing::run(context);
    CHECK(semaphore.waiting() == 0);
    CHECK(stage.endpoint().active() == 0);
    if (cancel) {
        CHECK(task.aborted());
    } else {
        REQUIRE(task.succeeded());
        CHECK(task.value().stage_results.at(0).latency == 5ms);
        REQUIRE(task.value().record.slot);
        CHECK(*task.value().record.slot);
    }
}

#if BOOST_VERSION >= 108300 && BOOST_VERSION <= 109200 && !defined(SLUICE_PORTABLE_AWAIT)

TEST_CASE("in place: however a step has ended, the next runs in place too", "[in_place]") {
    StepScene scene(Way::in_place);
    scene.writer = [](const std::string& text) -> Words {
        if (text == "throw") {
            throw std::runtime_error("no");
        }
        return ObservedScene::write(text);
    };
    scene.route = [&scene](SlipRun& run, WriterStage& stage) -> asio::awaitable<void> {
        scene.place = &state_of(run).in_place;
        const auto step = [&] { return run.step_or_error(&Slip::first, stage, run.query().text); };
        const StageError thrown = co_await run.step_or_error(&Slip::first, stage, std::string("throw"));
        CHECK(thrown);
        const StageError missing = co_await run.step_or_error(&Slip::first, stage, &Slip::second);
        CHECK(missing);
        const auto cancel_step = [&](sluice::TaskGroup& group) -> asio::awaitable<void> {
            group.spawn(step);
            co_await test::sleep(1ms);
            group.cancel();
        };
        co_await sluice::with_task_group(cancel_step);  // while its model runs
        scene.endpoint().set_limit(0);
        co_await sluice::with_task_group(cancel_step);  // while it waits
        scene.endpoint().set_limit(1);
        const StageError none = co_await step();
        CHECK_FALSE(none);
        run->first.reset();
        scene.endpoint().close();
        const StageError closed = co_await step();  // not in place
        CHECK(closed);
    };
    scene.start("a");
    static_cast<void>(scene.diary());
    CHECK(scene.in_place == 5);
    CHECK(scene.elsewhere == 1);
}

TEST_CASE("in place: after a step that was repeated, the next runs in place", "[in_place][retry]") {
    StepScene scene(Way::repeated);
    scene.writer = [calls = std::make_shared<int>()](const std::string& text) -> Words {
        if (++*calls < 3) {
            throw std::runtime_error("again");
        }
        return ObservedScene::write(text);
    };
    scene.route = [&scene](SlipRun& run, WriterStage& stage) -> asio::awaitable<void> {
        scene.place = &state_of(run).in_place;
        co_await run.step(&Slip::first, stage, run.query().text);
        co_await run.step(&Slip::second, stage, run.query().text);
    };
    scene.start("a");
    static_cast<void>(scene.diary());
    CHECK(scene.in_place == 4);  // three attempts and one
    CHECK(scene.elsewhere == 0);
}

#endif

namespace {

// A batch to destroy at some step, with its context. Each query takes two steps, of a stage with one slot.
struct Ruin {
    enum class Steps { in_line, side_by_side, of_late_stage };

    int frames = 0;  // of routes and models
    std::optional<asio::io_context> context{std::in_place, 1};
    test::DeadLetters sink;
    std::optional<asio::any_io_executor> executor;
    std::optional<WriterStage> stage;
    std::optional<sluice::Pipeline<std::function<asio::awaitable<void>(SlipRun&)>, test::DeadLetters, VirtualTimer>>
        pipeline;
    std::optional<Task<std::vector<sluice::RecordResult<Slip>>>> batch;

    // The service of strands is shut down before that of what waits. After that Asio destroys frames immediately.
    Ruin(Steps steps, bool on_strand) {
        const sluice::StageSemaphore earlier(context->get_executor(), 1);
        executor = on_strand ? asio::any_io_executor(asio::make_strand(*context)) : context->get_executor();
        stage.emplace(make_stage(*this));
        auto captured = [this, steps, own = *stage](SlipRun& run) { return route(*this, run, own, steps); };
        pipeline.emplace(timed(*executor), std::move(captured), sink, 2);
        batch.emplace(*executor, [this] { return pipeline->process_batch(test::make_queries(3)); });
    }
    Ruin(const Ruin&) = delete;
    Ruin& operator=(const Ruin&) = delete;
    ~Ruin() { destroy_context(); }

    void destroy_context() {
        executor.reset();
        context.reset();
    }

private:
    static WriterStage make_stage(Ruin& ruin) {
        return WriterStage(timed(*ruin.executor), "write", 1,
                           [&ruin](const std::string& text) { return write(ruin, text); });
    }

    static Words write(Ruin& ruin, const std::string& text) {
        const test::Live frame(ruin.frames);
        co_await test::sleep(1ms);
        co_return text;
    }

    static asio::awaitable<void> route(Ruin& ruin, SlipRun& run, const WriterStage& shared, Steps steps) {
        const test::Live frame(ruin.frames);
        const std::string& text = run.query().text;
        if (steps == Steps::in_line) {
            co_await run.step(&Slip::first, shared, text);
            co_await run.step(&Slip::second, shared, text);
        } else if (steps == Steps::side_by_side) {
            co_await run.all(run.step(&Slip::first, shared, text), run.step(&Slip::second, shared, text));
        } else {
            std::optional<WriterStage> late;
            const auto branch = [&]() -> asio::awaitable<void> {
                late.emplace(make_stage(ruin)).endpoint().set_limit(0);
                co_await run.step(&Slip::first, *late, text);
                co_await run.step(&Slip::second, *late, text);
            };
            const auto resume = [&]() -> asio::awaitable<void> {
                co_await test::sleep(1ms);
                late->endpoint().set_limit(1);
            };
            co_await run.all(branch(), resume());
        }
    }
};

}  // namespace

TEST_CASE("in place: the context is destroyed at every step, with steps that wait and steps in their model",
          "[in_place][shutdown][stress]") {
    const auto form = GENERATE(Ruin::Steps::in_line, Ruin::Steps::side_by_side, Ruin::Steps::of_late_stage);
    const bool on_strand = GENERATE(false, true);
    const bool pipeline_first = GENERATE(false, true);
    int waiting = 0;
    test::for_every_step([&](test::Steps& steps) {
        Ruin ruin(form, on_strand);
        steps.take(*ruin.context);
        waiting += ruin.stage->endpoint().waiting() != 0;
        if (pipeline_first) {
            ruin.pipeline.reset();
            ruin.stage.reset();
        }
        ruin.destroy_context();
        CHECK(ruin.frames == 0);
        if (!pipeline_first) {
            CHECK(ruin.stage->endpoint().active() == 0);
            CHECK(ruin.stage->endpoint().waiting() == 0);
        }
    });
    CHECK((waiting != 0) == (form != Ruin::Steps::of_late_stage));
}

TEST_CASE("in place: a query may be destroyed before the coroutine that awaits its model",
          "[in_place][shutdown][all]") {
    int models = 0;
    test::DeadLetters sink;
    auto context = std::make_optional<asio::io_context>(1);
    {  // The service of timers is older than that of what waits, and so shut down later: what awaits the models goes
       // last.
        const asio::steady_timer timer(*context);
    }
    const auto executor = context->get_executor();
    const sluice::Stage stage(executor, "wait", 2, Writer([&models](const std::string& text) -> Words {
                                  return [](int& count, std::string copy) -> Words {
                                      ++count;
                                      const test::AtExit at_exit([&count] { --count; });
                                      asio::steady_timer timer(co_await asio::this_coro::executor, 1h);
                                      co_await timer.async_wait(asio::deferred);
                                      co_return copy;
                                  }(models, text);
                              }));
    auto route = [stage](SlipRun& run) -> asio::awaitable<void> {
        const auto branch = [&](std::optional<std::string> Slip::* field) -> asio::awaitable<void> {
            co_await run.step(field, stage, run.query().text);  // one of them in place
        };
        co_await run.all(branch(&Slip::first), branch(&Slip::second));
    };
    std::optional pipeline(sluice::Pipeline(executor, route, sink, 1));
    const std::optional batch(Task<std::vector<sluice::RecordResult<Slip>>>(
        executor, [&] { return pipeline->process_batch(test::make_queries(2)); }));
    context->poll();
    CHECK(models == 2);
    const bool context_first = GENERATE(false, true);
    if (!context_first) {
        pipeline.reset();
    }
    context.reset();
    CHECK(models == 0);
}
