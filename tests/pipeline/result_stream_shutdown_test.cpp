// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/pipeline/result_stream.hpp>
#include <sluice/testing/run.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/pipeline_runs.hpp"
#include "support/probes.hpp"
#include "support/streams.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <memory>
#include <optional>
#include <utility>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using test::drain;
using test::endless;
using test::Endpoint;
using test::first_numbers;
using test::idle;
using test::Indexes;
using test::Item;
using test::make_queries;
using test::next;
using test::Rig;
using test::run_until;
using test::sorted;
using test::Source;
using test::start_drain;
using test::Stream;
using test::Task;
using test::with_window;

TEST_CASE("stream: after its context is destroyed, next() in another context returns the end", "[stream][shutdown]") {
    auto rig = std::make_unique<Rig<>>();
    auto stream = rig->pipeline({1, 1, 1}).process_stream(test::make_queries(3));
    {
        auto task = next(*rig, stream);
        test::steps(rig->context, 3);
    }
    rig.reset();
    asio::io_context elsewhere;
    bool ended = false;
    const Task<> asker(elsewhere.get_executor(), [&]() -> asio::awaitable<void> {
        ended = !co_await stream.next();
        co_await stream.close();
    });
    sluice::testing::run(elsewhere);
    CHECK(asker.succeeded());
    CHECK(ended);
}

TEST_CASE("stream: it keeps what it needs of its pipeline alive", "[stream][shutdown]") {
    const auto when = GENERATE(0ms, 100ms, 600ms);
    Rig<> rig;
    std::optional<Rig<>::Pipeline> pipeline(rig.pipeline({2, 2, 2}));
    auto stream = pipeline->process_stream(make_queries(5));
    Indexes indexes;
    auto consumer = start_drain(rig, stream, indexes);
    run_until(rig.context, when);
    pipeline.reset();
    rig.run();
    CHECK(consumer.succeeded());
    CHECK(sorted(indexes) == first_numbers(5));
}

TEST_CASE("stream: destroying a stream after its pipeline still cancels its work", "[stream][shutdown]") {
    Rig<> rig;
    std::optional<Rig<>::Pipeline> pipeline(rig.pipeline({2, 2, 2}));
    Source source(endless);
    std::optional<Stream> stream(pipeline->process_stream(source));
    auto task = next(rig, *stream);
    run_until(rig.context, 100ms);
    pipeline.reset();
    stream.reset();
    const int calls = rig.calls();
    CHECK(rig.run() == 0ms);
    CHECK(rig.calls() == calls);
    CHECK(rig.running() == 0);
    CHECK_FALSE(task.value());
}

TEST_CASE("stream: the context may be destroyed at any step, before or after the pipeline and the stream",
          "[stream][shutdown][stress]") {
    const int order = GENERATE(0, 1, 2, 3);
    const int wanted = GENERATE(1, 9);  // results, by the consumer that then closes the stream
    test::for_every_step([&](test::Steps& steps) {
        test::DestructibleRig rig;
        auto& [models, context, pipeline] = rig;
        Source source(6);
        auto stream = std::make_unique<test::DestructibleRig::Pipeline::Stream>(pipeline->process_stream(source));
        const auto consume = [&](int most) -> asio::awaitable<void> {
            for (Item item; stream && most != 0; --most) {
                item = co_await stream->next();
                if (!item) {
                    break;
                }
            }
            if (stream) {
                co_await stream->close();
            }
        };
        Task<> consumer(context->get_executor(), [&] { return consume(wanted); });
        Task<> second(context->get_executor(), [&] { return consume(9); });
        steps.take(*context);
        if (order == 0) {
            context.reset();
            CHECK(idle(*pipeline));
        } else if (order == 1) {
            pipeline.reset();
            context.reset();
        } else if (order == 2) {
            stream.reset();
            context.reset();
        } else {
            pipeline.reset();
            stream.reset();
            test::step(*context);
            context.reset();
        }
        CHECK(models.running() == 0);
    });
}

TEST_CASE("stream: the context may be destroyed while it owns the stream", "[stream][shutdown][stress]") {
    test::for_every_step([](test::Steps& steps) {
        Rig<> rig;
        std::optional<asio::io_context> context(std::in_place, 1);
        Rig<>::Pipeline pipeline(context->get_executor(), Endpoint{&rig.classify}, Endpoint{&rig.extract},
                                 Endpoint{&rig.generate}, {2, 2, 1}, rig.dead_letters, with_window(3));
        Task<> consumer(context->get_executor(), [&]() -> asio::awaitable<void> {
            auto stream = pipeline.process_stream(make_queries(6));
            Indexes indexes;
            co_await drain(stream, indexes);
        });
        steps.take(*context);
        context.reset();
        CHECK(rig.running() == 0);
        CHECK(idle(pipeline));
    });
}
