// SPDX-License-Identifier: BSL-1.0
// Customer support: runs 50 queries through classify, extract and generate, with limits of 20, 10 and 5, and prints how
// they ended.
#include "arguments.hpp"
#include "counted.hpp"
#include "dead_letter_queue.hpp"
#include "observers.hpp"
#include "output.hpp"
#include "progress.hpp"
#include "simulated_models.hpp"
#include "svg_writer.hpp"
#include "timeline.hpp"
#include "trace_writer.hpp"

#include <sluice/metrics/metrics.hpp>
#include <sluice/metrics/prometheus.hpp>
#include <sluice/observer.hpp>
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_future.hpp>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>

namespace asio = boost::asio;

namespace {

constexpr std::string_view usage = R"(usage: support_pipeline [options]

  --queries N      the number of queries (default 50)
  --seed N         the seed of the queries and of the models' behaviour (default 7)
  --retries N      the number of retries that each stage allows a query (default 0)
  --stream         print each result as it completes
  --virtual-time   jump from one event to the next instead of waiting
  --trace FILE     write what each slot did as a trace for https://ui.perfetto.dev
  --timeline FILE  draw the same as an SVG, for a few hundred queries at most
  --metrics FILE   write what was counted as a text that Prometheus reads
  -h, --help       print this text
)";

struct Options {
    std::size_t queries = 50;
    std::uint64_t seed = 7;
    int retries = 0;
    bool stream = false;
    bool virtual_time = false;
    std::string trace;
    std::string timeline;
    std::string metrics;
    bool help = false;
};

Options parse(int argc, char** argv) {
    Options options;
    for (support::Arguments arguments(argc, argv); arguments.next();) {
        const std::string& option = arguments.option();
        if (option == "--queries") {
            options.queries = arguments.number<std::size_t>(0, 100'000'000);
        } else if (option == "--seed") {
            options.seed = arguments.number<std::uint64_t>(0, UINT64_MAX);
        } else if (option == "--retries") {
            options.retries = arguments.number(0, 1000);
        } else if (option == "--stream") {
            options.stream = true;
        } else if (option == "--virtual-time") {
            options.virtual_time = true;
        } else if (option == "--trace") {
            options.trace = arguments.value("a file name");
        } else if (option == "--timeline") {
            options.timeline = arguments.value("a file name");
        } else if (option == "--metrics") {
            options.metrics = arguments.value("a file name");
        } else if (option == "--help") {
            options.help = true;
        } else {
            arguments.unknown();
        }
    }
    support::require_two_files("--trace", options.trace, "--timeline", options.timeline);
    support::require_two_files("--trace", options.trace, "--metrics", options.metrics);
    support::require_two_files("--timeline", options.timeline, "--metrics", options.metrics);
    return options;
}

constexpr sluice::StageLimits limits{.classify = 20, .extract = 10, .generate = 5};

template <class Timer>
asio::awaitable<void> run(Options options, sluice::Observer* observer, sluice::Metrics& metrics) {
    using namespace std::chrono_literals;
    support::SimulatedModels<Timer> models(options.seed);
    support::DeadLetterQueue dead_letters;

    const sluice::StageOptions stage{
        .retry = {.max_retries = options.retries, .backoff = {.initial = 50ms, .cap = 2s, .seed = options.seed}}};
    sluice::InferencePipeline pipeline(
        sluice::timed_by<Timer>(co_await asio::this_coro::executor),
        [&](const std::string& text) { return models.classify_intent(text); },
        [&](const std::string& text) { return models.extract_entities(text); },
        [&](support::Intent intent, const support::Entities& entities, const std::string& text) {
            return models.generate_response(intent, entities, text);
        },
        limits, dead_letters, {.classify = stage, .extract = stage, .generate = stage, .observer = observer});
    metrics.watch(pipeline, "support");
    metrics.watch(pipeline.classify().endpoint());
    metrics.watch(pipeline.extract().endpoint());
    metrics.watch(pipeline.generate().endpoint());

    const auto queries = support::generate_test_queries(options.queries, options.seed);
    std::ptrdiff_t completed = 0;
    if (options.stream) {
        auto stream = pipeline.process_stream(queries);
        while (const auto item = co_await stream.next()) {
            const auto& result = item->result;
            completed += result.completed;
            std::cout << result.query.id << "  "
                      << (result.completed ? *result.response : "failed in " + result.stage_results.back().stage.str())
                      << std::endl;  // flushed, so that it appears at once even in a pipe
        }
    } else {
        const auto results = co_await pipeline.process_batch(queries);
        completed = std::ranges::count_if(results, [](const auto& result) { return result.completed; });
    }

    std::cout << "Completed: " << completed << '/' << queries.size() << '\n'
              << "Dead letter queue: " << support::counted(dead_letters.size(), "failed query", "failed queries")
              << '\n';
    for (const auto& [query, reason] : dead_letters.drain()) {
        std::cout << "  " << query.id << "  " << reason.stage << ": " << reason.error.type() << ": "
                  << reason.error.message() << " ("
                  << support::counted(static_cast<std::size_t>(reason.attempts), "attempt") << ")\n";
    }
}

void run(const Options& options, asio::io_context& context, sluice::Observer* observer, sluice::Metrics& metrics) {
    if (options.virtual_time) {
        auto done =
            asio::co_spawn(context, run<sluice::testing::VirtualTimer>(options, observer, metrics), asio::use_future);
        sluice::testing::run(context);
        done.get();
    } else {
        auto done = asio::co_spawn(context, run<asio::steady_timer>(options, observer, metrics), asio::use_future);
        context.run();
        done.get();
    }
}

void run(const Options& options) {
    support::Output trace(options.trace);
    support::Output svg(options.timeline);
    support::Output text(options.metrics);
    sluice::Metrics metrics;
    asio::io_context context(1);

    const auto begin = std::chrono::steady_clock::now();
    const auto real_time = [=] { return std::chrono::nanoseconds(std::chrono::steady_clock::now() - begin); };
    support::Timeline timeline(
        [&] {
            return options.virtual_time ? sluice::testing::VirtualTimer::now(context.get_executor()).time_since_epoch()
                                        : real_time();
        },
        {{"classify", limits.classify}, {"extract", limits.extract}, {"generate", limits.generate}});
    support::Progress progress(std::cerr, options.queries, "generate", real_time);

    support::Observers observers;
    if (!options.trace.empty() || !options.timeline.empty()) {
        observers.add(timeline);
    }
    if (!options.metrics.empty()) {
        observers.add(metrics);
    }
    if (isatty(STDERR_FILENO) && !(options.stream && isatty(STDOUT_FILENO))) {  // results that are printed show it, too
        observers.add(progress);
    }
    run(options, context, observers.empty() ? nullptr : &observers, metrics);

    trace.write([&](std::ostream& out) { support::write_trace(out, timeline); });
    svg.write([&](std::ostream& out) { support::write_svg(out, timeline); });
    text.write([&](std::ostream& out) { out << sluice::prometheus(metrics.snapshot()); });
}

}  // namespace

int main(int argc, char** argv) {
    try {
        const Options options = parse(argc, argv);
        if (options.help) {
            std::cout << usage;
            return 0;
        }
        run(options);
        return 0;
    } catch (const std::exception& error) {
        std::cerr << "support_pipeline: " << error.what() << '\n';
        return 2;
    }
}
