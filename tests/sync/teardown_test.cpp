// SPDX-License-Identifier: BSL-1.0
// While an operation is in progress, its context, primitive, signal and slots are destroyed, after every step and in
// every order. AddressSanitizer finds the errors. (Nothing runs after the signal has been destroyed, since Asio itself
// accesses the slot of the signal when it resumes a coroutine.)
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/sync/barrier.hpp>
#include <sluice/sync/stage_semaphore.hpp>
#include <sluice/sync/task_group.hpp>
#include <sluice/sync/timeout.hpp>
#include <sluice/sync/timer.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/system/error_code.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;
using sluice::Slot;
using test::Steps;
using test::VirtualTimer;
using Void = asio::awaitable<void>;

// An operation and the objects that it needs; outlives its context.
struct Scene {
    Scene() = default;
    virtual ~Scene() = default;
    Scene(const Scene&) = delete;
    Scene& operator=(const Scene&) = delete;

    virtual Void run() = 0;
    virtual void drop_primitive() = 0;
    virtual void drop_slots() { slots.clear(); }
    std::vector<Slot> slots;
};

struct Acquire : Scene {
    std::optional<sluice::StageSemaphore> semaphore;
    explicit Acquire(asio::io_context& context) {
        semaphore.emplace(context.get_executor(), 1);
        slots.push_back(semaphore->try_acquire());
    }
    Void run() override {
        Slot slot = co_await semaphore->acquire();
        co_await test::yield();
    }
    void drop_primitive() override { semaphore.reset(); }
};

struct Arrive : Scene {
    std::optional<sluice::Barrier> barrier;
    explicit Arrive(asio::io_context& context) { barrier.emplace(context.get_executor(), 2); }
    Void run() override { co_await barrier->arrive_and_wait(); }
    void drop_primitive() override { barrier.reset(); }
};

struct Wait : Scene {
    std::optional<VirtualTimer> timer;
    explicit Wait(asio::io_context& context) { timer.emplace(context.get_executor(), 1ms); }
    Void run() override {
        co_await timer->async_wait(asio::deferred);
        co_await sluice::sleep_for<VirtualTimer>(1ms);
    }
    void drop_primitive() override { timer.reset(); }
};

struct Group : Acquire {
    using Acquire::Acquire;
    Void run() override {
        co_await sluice::with_task_group([this](sluice::TaskGroup& group) -> Void {
            group.spawn(semaphore->acquire());
            group.spawn(semaphore->acquire());
            const Slot slot = co_await sluice::with_timeout<VirtualTimer>(2ms, [this] { return semaphore->acquire(); });
        });
    }
};

struct Pipeline : Scene {
    test::Model model{"model", 2ms};
    test::SlowDeadLetters sink;
    std::optional<
        sluice::InferencePipeline<test::Endpoint, test::Endpoint, test::Endpoint, test::SlowDeadLetters, VirtualTimer>>
        pipeline;
    std::optional<sluice::Endpoint<VirtualTimer>> paused;  // a handle to an endpoint of the pipeline's
    std::vector<sluice::Query> queries = test::make_queries(3);

    explicit Pipeline(asio::io_context& context) {
        model.failures["t1"] = 9;
        pipeline.emplace(test::timed(context.get_executor()), test::Endpoint{&model}, test::Endpoint{&model},
                         test::Endpoint{&model}, sluice::StageLimits{2, 1, 1}, sink,
                         test::every_stage({.timeout = 3ms, .retry = test::retries(1, 1ms)}));
        paused = pipeline->extract().endpoint();
        paused->set_limit(0);
    }
    void drop_slots() override {
        paused->set_limit(1);
        paused.reset();
    }
    void drop_primitive() override { pipeline.reset(); }
};

struct Batch : Pipeline {
    using Pipeline::Pipeline;
    Void run() override { co_await pipeline->process_batch(queries); }
};

struct Stream : Pipeline {
    using Pipeline::Pipeline;
    Void run() override {
        auto stream = pipeline->process_stream(queries);
        while (co_await stream.next()) {
        }
        co_await stream.close();
    }
};

// A pipeline with a route: two steps side by side, then one that waits for a stage that is paused.
struct Routed : Scene {
    struct Record {
        std::optional<std::string> first;
        std::optional<std::string> second;
        std::optional<std::string> last;
    };
    struct Route {
        sluice::Stage<test::Endpoint, VirtualTimer> stage;
        sluice::Stage<test::Endpoint, VirtualTimer> paused;

        Void operator()(sluice::Run<Record>& run) const {
            const std::string& text = run.query().text;
            co_await run.all(run.step(&Record::first, stage, text), run.step(&Record::second, stage, text));
            co_await run.step(&Record::last, paused, text);
        }
    };
    struct Sink : test::SlowDeadLetters {
        Void save(const sluice::Query&, const Record&) { return test::sleep(1ms); }
    };

    test::Model model{"model", 2ms};
    Sink sink;
    std::optional<sluice::Pipeline<Route, Sink, VirtualTimer>> pipeline;
    std::optional<sluice::Endpoint<VirtualTimer>> paused;  // a handle to that of the last stage
    std::vector<sluice::Query> queries = test::make_queries(2);

    explicit Routed(asio::io_context& context) {
        model.failures["t1"] = 9;
        const auto executor = test::timed(context.get_executor());
        const sluice::StageOptions options{.timeout = 3ms, .retry = test::retries(1, 1ms)};
        Route route{{executor, "stage", 2, test::Endpoint{&model}, options},
                    {executor, "paused", 1, test::Endpoint{&model}, options}};
        paused = route.paused.endpoint();
        paused->set_limit(0);
        pipeline.emplace(executor, std::move(route), sink, 2);
    }
    void drop_slots() override {
        paused->set_limit(1);
        paused.reset();
    }
    void drop_primitive() override { pipeline.reset(); }
};

struct RoutedBatch : Routed {
    using Routed::Routed;
    Void run() override { co_await pipeline->process_batch(queries); }
};

struct RoutedStream : Routed {
    using Routed::Routed;
    Void run() override {
        auto stream = pipeline->process_stream(queries);
        while (co_await stream.next()) {
        }
        co_await stream.close();
    }
};

struct RoutedDrain : Routed {
    using Routed::Routed;
    Void run() override {
        co_await sluice::with_task_group([this](sluice::TaskGroup& group) -> Void {
            group.spawn([this] { return pipeline->process_batch(queries); });
            group.spawn([this] { return pipeline->process_one(test::make_query(0)); });
            co_await test::sleep(1ms);
            co_await pipeline->drain(4ms);
        });
    }
};

// The same with steps that run in place, and a pipeline whose stages do.
struct InPlace : Scene {
    using Record = Routed::Record;
    using Model = std::function<asio::awaitable<std::string>(const std::string&)>;
    using Generate =
        std::function<asio::awaitable<std::string>(const std::string&, const std::string&, const std::string&)>;
    using Stage = sluice::Stage<Model, VirtualTimer>;
    struct Route {
        Stage stage;
        Stage paused;

        Void operator()(sluice::Run<Record>& run) const {
            const std::string& text = run.query().text;
            co_await run.all(run.step(&Record::first, stage, text), run.step(&Record::second, stage, text));
            co_await run.step(&Record::last, paused, text);
        }
    };

    test::Model model{"model", 2ms};
    test::SlowDeadLetters sink;
    std::optional<sluice::Pipeline<Route, test::SlowDeadLetters, VirtualTimer>> pipeline;
    std::optional<sluice::InferencePipeline<Model, Model, Generate, test::SlowDeadLetters, VirtualTimer>> inference;
    std::vector<sluice::Endpoint<VirtualTimer>> paused;  // handles to endpoints of the pipelines
    std::vector<sluice::Query> queries = test::make_queries(2);

    explicit InPlace(asio::io_context& context) {
        model.failures["t1"] = 1;
        const auto executor = test::timed(context.get_executor());
        const test::Endpoint call{&model};
        Route route{{executor, "stage", 1, call}, {executor, "paused", 1, call}};
        paused.push_back(route.paused.endpoint());
        pipeline.emplace(executor, std::move(route), sink, 2);
        inference.emplace(executor, call, call, call, sluice::StageLimits{1, 1, 1}, sink);
        paused.push_back(inference->generate().endpoint());
        for (auto& endpoint : paused) {
            endpoint.set_limit(0);
        }
    }
    Void run() override {
        co_await sluice::with_task_group([this](sluice::TaskGroup& group) -> Void {
            group.spawn([this] { return pipeline->process_batch(queries); });
            group.spawn([this] { return inference->process_batch(queries); });
            co_return;
        });
    }
    void drop_slots() override {
        for (auto& endpoint : paused) {
            endpoint.set_limit(1);
        }
        paused.clear();
    }
    void drop_primitive() override {
        pipeline.reset();
        inference.reset();
    }
};

struct Play {
    std::optional<asio::io_context> context{std::in_place};
    std::optional<asio::cancellation_signal> signal{std::in_place};
    std::unique_ptr<Scene> scene;

    template <class Kind>
    explicit Play(std::in_place_type_t<Kind>) {
        scene = std::make_unique<Kind>(*context);
        asio::co_spawn(
            *context, [this] { return scene->run(); },
            asio::bind_cancellation_slot(signal->slot(), [](const std::exception_ptr&) {}));
    }
    Play(const Play&) = delete;
    Play& operator=(const Play&) = delete;
    ~Play() { context.reset(); }  // before the objects that its coroutines refer to

    void drop(int object) {
        switch (object) {
            case 0:
                context.reset();
                break;
            case 1:
                scene->drop_primitive();
                break;
            case 2:
                signal.reset();
                break;
            default:
                scene->drop_slots();
        }
    }
};

template <class Kind>
void destroy_in_every_order() {
    test::for_every_step([](Steps& steps) {
        std::array<int, 4> order{0, 1, 2, 3};
        do {
            for (const bool emit : {false, true}) {
                Play play{std::in_place_type<Kind>};
                steps.take(*play.context);
                if (emit && steps.count() != 0) {  // before it begins, Asio lets a cancellation escape into the loop
                    play.signal->emit(asio::cancellation_type::terminal);
                }
                for (const int object : order) {
                    play.drop(object);
                }
            }
        } while (std::ranges::next_permutation(order).found);
    });
}

}  // namespace

TEMPLATE_TEST_CASE("teardown: context, primitive, signal and slots may be destroyed in any order, after any step",
                   "[teardown][shutdown][stress]", Acquire, Arrive, Wait, Group, Batch, Stream, RoutedBatch,
                   RoutedStream, RoutedDrain, InPlace) {
    destroy_in_every_order<TestType>();
}

TEST_CASE("teardown: a signal may belong to a handler that is destroyed with the context", "[teardown][shutdown]") {
    struct Session {
        asio::steady_timer timer;
        asio::cancellation_signal signal;
        explicit Session(asio::io_context& context) : timer(context, 1h) {}
    };
    const bool timer_first = GENERATE(false, true);  // the service that is created last is shut down first
    asio::io_context context;
    std::shared_ptr<Session> session;
    if (timer_first) {
        session = std::make_shared<Session>(context);
    }
    sluice::StageSemaphore semaphore(context.get_executor(), 0);
    if (!session) {
        session = std::make_shared<Session>(context);
    }
    const auto wait = [&]() -> Void { const Slot slot = co_await semaphore.acquire(); };
    asio::co_spawn(context, wait, asio::bind_cancellation_slot(session->signal.slot(), asio::detached));
    session->timer.async_wait(
        [session](boost::system::error_code) { session->signal.emit(asio::cancellation_type::terminal); });
    session.reset();
    context.poll();
    CHECK(semaphore.waiting() == 1);
}

TEST_CASE("teardown: a cancellation slot that another operation takes over cancels only the new one",
          "[teardown][cancellation]") {
    asio::io_context context;
    asio::cancellation_signal signal;
    VirtualTimer timer(context.get_executor(), 1ms);
    int first = 0;
    int second = 0;
    const auto count = [](int& ends) { return [&ends](boost::system::error_code error) { ends += error ? 100 : 1; }; };
    timer.async_wait(asio::bind_cancellation_slot(signal.slot(), count(first)));
    timer.async_wait(asio::bind_cancellation_slot(signal.slot(), count(second)));
    signal.emit(asio::cancellation_type::terminal);
    sluice::testing::run(context);
    CHECK(first == 1);
    CHECK(second == 100);
}
