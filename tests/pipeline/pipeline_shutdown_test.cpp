// SPDX-License-Identifier: BSL-1.0
// Pipelines whose context, or whose own object, is destroyed while their operations run. AddressSanitizer finds what
// touches something that is gone.
#include <sluice/pipeline/drain.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/sync/slot.hpp>
#include <sluice/sync/stage_semaphore.hpp>
#include <sluice/sync/task_group.hpp>
#include <sluice/testing/run.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::Query;
using sluice::StageOptions;
using test::Model;
using test::Task;
using test::timed;
using test::VirtualTimer;

struct File {
    std::optional<std::string> title;
    std::optional<std::string> body;
};

using FileRun = sluice::Run<File>;
using FileResult = sluice::RecordResult<File>;
using FileResults = std::vector<FileResult>;
using FileStage = sluice::Stage<test::Endpoint, VirtualTimer>;

// Takes some time to put and to save, and calls `on_put` and `on_save` first.
struct Cabinet {
    std::function<void()> on_put = [] {};
    std::function<void()> on_save = [] {};
    int letters = 0;
    int saved = 0;

    asio::awaitable<void> put(const Query&, const sluice::StageResult<>&) { return keep(on_put, letters); }
    asio::awaitable<void> save(const Query&, const File&) { return keep(on_save, saved); }

private:
    static asio::awaitable<void> keep(const std::function<void()>& before, int& counter) {
        before();
        co_await test::sleep(3ms);
        ++counter;
    }
};

using FileRoute = std::function<asio::awaitable<void>(FileRun&)>;
using FilePipeline = sluice::Pipeline<FileRoute, Cabinet, VirtualTimer>;

// A model with a stage, of which t1 fails once and t2 for good, and what is destroyed before it.
struct Registry {
    Model model{"file", 10ms};
    Cabinet cabinet;
    std::optional<asio::io_context> context{std::in_place, 1};
    std::optional<FileStage> stage;
    std::optional<FilePipeline> pipeline;

    Registry() {
        model.failures["t1"] = 1;
        model.failures["t2"] = 9;
        const StageOptions options{.timeout = 1s, .retry = test::retries(1, 5ms)};
        stage.emplace(timed(context->get_executor()), "file", 2, test::Endpoint{&model}, options);
    }

    void set_route(FileRoute route, std::ptrdiff_t window = 2) {
        pipeline.emplace(timed(context->get_executor()), std::move(route), cabinet, window);
    }

    // Title, then body.
    FileRoute plain() const {
        return [s = *stage](FileRun& run) -> asio::awaitable<void> {
            co_await run.step(&File::title, s, run.query().text);
            co_await run.step(&File::body, s, run.query().text);
        };
    }

    template <class T, class Function>
    Task<T> start(Function function) {
        return Task<T>(context->get_executor(), std::move(function));
    }
};

// What may run in a pipeline when it or its context is destroyed; `projection` makes its queries.
struct Running {
    Task<FileResult> one;
    Task<FileResults> batch;
    std::unique_ptr<FilePipeline::Stream> stream;
    Task<std::optional<sluice::StreamItem<FileResult>>> item;

    template <class Projection>
    Running(Registry& registry, Projection projection)
        : one(registry.start<FileResult>([&] { return registry.pipeline->process_one(test::make_query(1)); })),
          batch(registry.start<FileResults>(
              [&registry, projection] { return registry.pipeline->process_batch(test::make_queries(4), projection); })),
          stream(std::make_unique<FilePipeline::Stream>(
              registry.pipeline->process_stream(test::make_queries(4), projection))),
          item(registry.start<std::optional<sluice::StreamItem<FileResult>>>([this] { return stream->next(); })) {}
};

// Is shared by closures. When the last of them is destroyed, it uses what they have kept.
struct Witness {
    FileStage stage;
    Cabinet& cabinet;
    int& ends;

    Witness(FileStage its_stage, Cabinet& its_cabinet, int& counter)
        : stage(std::move(its_stage)), cabinet(its_cabinet), ends(counter) {}
    Witness(const Witness&) = delete;
    Witness& operator=(const Witness&) = delete;
    ~Witness() {
        stage.endpoint().close();
        cabinet.letters += static_cast<int>(stage.endpoint().waiting());
        ++ends;
    }
};

}  // namespace

TEST_CASE("pipeline of any shape: what a route has on its frame may use its run when the context is destroyed",
          "[any_shape][shutdown][stress]") {
    const bool drains = GENERATE(false, true);
    bool cut_short = false;
    test::for_every_step([&](test::Steps& steps) {
        Registry registry;
        int begun = 0;
        int ended = 0;
        registry.set_route([&, s = *registry.stage](FileRun& run) -> asio::awaitable<void> {
            ++begun;
            const test::AtExit at_exit([&] {
                ended += run.query().text.empty() ? 0 : 1;
                run->body = run->title;
            });
            co_await run.all(run.step(&File::title, s, run.query().text), run.step(&File::body, s, run.query().text));
            run->body.reset();
            co_await run.step(&File::body, s, run.query().text);
        });
        const Running running(registry, std::identity());
        test::poll(*registry.context);
        std::optional<Task<sluice::DrainReport<File>>> report;
        if (drains) {
            report = registry.start<sluice::DrainReport<File>>([&] { return registry.pipeline->drain(20ms); });
        }
        steps.take(*registry.context);
        cut_short = cut_short || begun != ended;
        registry.context.reset();
        CHECK(begun == ended);
        CHECK(registry.model.running == 0);
    });
    CHECK(cut_short);
}

TEST_CASE("pipeline of any shape: closures are destroyed with the context or the pipeline, and may use what they keep",
          "[any_shape][shutdown][stress]") {
    enum class First { context, pipeline, stream };
    const First first = GENERATE(First::context, First::pipeline, First::stream);
    test::for_every_step([&](test::Steps& steps) {
        Registry registry;
        int ends = 0;
        const auto witness = [&] { return std::make_shared<Witness>(*registry.stage, registry.cabinet, ends); };
        registry.set_route([w = witness()](FileRun& run) -> asio::awaitable<void> {
            const auto branch = [w](FileRun& same) -> asio::awaitable<void> {
                co_await same.step(&File::title, w->stage, same.query().text);
            };
            co_await run.all(branch(run), run.step(&File::body, w->stage, run.query().text));
        });
        {
            Running running(registry, [w = witness()](Query query) {
                query.text += w->ends == 0 ? "" : "?";
                return query;
            });
            test::poll(*registry.context);
            registry.stage.reset();
            steps.take(*registry.context);
            if (first == First::context) {
                registry.context.reset();
            } else if (first == First::pipeline) {
                registry.pipeline.reset();
            } else {
                running.stream.reset();
            }
            if (registry.context && first == First::pipeline) {
                running.stream.reset();
                sluice::testing::run(*registry.context);
                CHECK(running.one.succeeded());
                CHECK(running.batch.succeeded());
            }
        }
        registry.context.reset();
        registry.pipeline.reset();
        CHECK(ends == 2);
        CHECK(registry.model.running == 0);
    });
}

TEST_CASE("pipeline of any shape: its own route, sink, save or projection may destroy it", "[any_shape][shutdown]") {
    enum class By { route, put, save, projection };
    const By by = GENERATE(By::route, By::put, By::save, By::projection);
    const bool drains = GENERATE(false, true);
    Registry registry;
    registry.model.failures["t0"] = 9;
    int destroyed = 0;
    const auto destroy = [&] {
        destroyed += registry.pipeline ? 1 : 0;
        registry.pipeline.reset();
    };
    registry.set_route([&, s = *registry.stage](FileRun& run) -> asio::awaitable<void> {
        co_await run.step(&File::title, s, run.query().text);
        if (by == By::route) {
            destroy();
        }
        co_await run.step(&File::body, s, run.query().text);
    });
    registry.cabinet.on_put = [&] { by == By::put ? destroy() : void(); };
    registry.cabinet.on_save = [&] { by == By::save ? destroy() : void(); };
    Running running(registry, [&](Query query) {
        if (by == By::projection && query.id == "q2") {
            destroy();
        }
        return query;
    });
    std::optional<Task<sluice::DrainReport<File>>> report;
    if (drains) {
        test::run_until(*registry.context, 5ms);
        REQUIRE(registry.pipeline);
        report = registry.start<sluice::DrainReport<File>>(
            [drain = registry.pipeline->drain(1s)]() mutable { return std::move(drain); });
    }
    sluice::testing::run_until_stalled(*registry.context);
    running.stream.reset();
    sluice::testing::run(*registry.context);
    CHECK(destroyed == 1);
    CHECK(running.one.succeeded());
    REQUIRE(running.batch.succeeded());
    CHECK(running.batch.value().size() == 4);
    CHECK((!report || report->succeeded()));
    CHECK(registry.model.running == 0);
}

TEST_CASE("pipeline of any shape: one that feeds another may be destroyed at every step, with its context or before",
          "[any_shape][source][shutdown][stress]") {
    const bool context_first = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        Registry registry;
        registry.set_route(registry.plain());
        auto first = std::exchange(registry.pipeline, std::nullopt);
        registry.set_route(registry.plain());
        const auto again = [](sluice::StreamItem<FileResult> item) {
            return sluice::Checkpoint<File>(std::move(item.result));
        };
        auto batch = registry.start<FileResults>(
            [&] { return registry.pipeline->process_batch(first->process_stream(test::make_queries(3)), again); });
        test::step(*registry.context);
        first.reset();
        steps.take(*registry.context);
        registry.stage.reset();
        if (context_first) {
            registry.context.reset();
            registry.pipeline.reset();
        } else {
            registry.pipeline.reset();
            sluice::testing::run(*registry.context);
            REQUIRE(batch.succeeded());
            CHECK(batch.value().size() == 3);
        }
        CHECK(registry.model.running == 0);
    });
}

TEST_CASE(
    "pipeline of any shape: models side by side wait when their context, the library's service first, is destroyed",
    "[any_shape][shutdown]") {
    const auto wait = GENERATE(as<int>(), 0, 1, 2);
    Cabinet cabinet;
    int frames = 0;
    int waiting = 0;
    {
        asio::io_context io;
        const sluice::StageSemaphore earlier(io.get_executor(), 1);  // makes the service before that of the strands
        const asio::any_io_executor strand = asio::make_strand(io);
        const auto model = [&](const std::string& text) -> asio::awaitable<std::string> {
            const test::AtExit at_exit([&] { --frames; });
            ++frames;
            ++waiting;
            const auto executor = co_await asio::this_coro::executor;
            if (wait == 0) {
                sluice::StageSemaphore never(executor, 0);
                const sluice::Slot slot = co_await never.acquire();
            } else if (wait == 1) {
                const auto body = [](sluice::TaskGroup&) { return test::sleep(1h); };
                co_await sluice::with_task_group(body);
            } else {
                co_await test::sleep(1h);
            }
            co_return text;
        };
        sluice::Pipeline pipeline(
            timed(strand),
            [&](FileRun& run) -> asio::awaitable<void> {
                const auto executor = timed(co_await asio::this_coro::executor);
                const sluice::Stage title(executor, "title", 1, model);
                const sluice::Stage body(executor, "body", 1, model);
                co_await run.all(run.step(&File::title, title, run.query().text),
                                 run.step(&File::body, body, run.query().text));
            },
            cabinet, 2);
        const Task<FileResult> result(strand, [&] { return pipeline.process_one(test::make_query(1)); });
        test::poll(io);
        CHECK(frames == 2);
    }
    CHECK(frames == 0);
    CHECK(waiting == 2);
}
