// SPDX-License-Identifier: BSL-1.0
// Two providers with limits, outages and slow phases: 2,000 queries through a fallback, breakers and rates, on virtual
// time. Prints what each policy did.
#include "arguments.hpp"
#include "counted.hpp"
#include "dead_letter_queue.hpp"
#include "observers.hpp"
#include "output.hpp"
#include "provider_log.hpp"
#include "provider_picture.hpp"
#include "simulated_providers.hpp"

#include <sluice/metrics/metrics.hpp>
#include <sluice/metrics/prometheus.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/endpoint_observer.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/fallback.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/retry.hpp>
#include <sluice/stage/retry_budget.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/sync/timed_by.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/use_future.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <exception>
#include <iomanip>
#include <iostream>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {

constexpr std::string_view usage = R"(usage: providers [options]

  --queries N      the number of queries (default 2000)
  --svg FILE       draw what happened as an SVG
  --metrics FILE   write what was counted as a text that Prometheus reads
  -h, --help       print this text
)";

struct Options {
    std::size_t queries = 2000;
    std::string svg;
    std::string metrics;
    bool help = false;
};

Options parse(int argc, char** argv) {
    Options options;
    for (support::Arguments arguments(argc, argv); arguments.next();) {
        const std::string& option = arguments.option();
        if (option == "--queries") {
            options.queries = arguments.number<std::size_t>(0, 100'000);
        } else if (option == "--svg") {
            options.svg = arguments.value("a file name");
        } else if (option == "--metrics") {
            options.metrics = arguments.value("a file name");
        } else if (option == "--help") {
            options.help = true;
        } else {
            arguments.unknown();
        }
    }
    support::require_two_files("--svg", options.svg, "--metrics", options.metrics);
    return options;
}

// The truth about the providers, which the program does not know. Alpha is quick, and has most of the trouble.
support::Provider alpha_provider() {
    using Kind = support::Trouble::Kind;
    return {.name = "alpha",
            .allowed = 100,
            .lowered = 40,
            .quickest = 1000ms,
            .slowest = 1500ms,
            .troubles = {{Kind::down, 30s, 90s}, {Kind::lowered, 130s, 170s}, {Kind::slow, 200s, 240s}}};
}

support::Provider beta_provider() {
    return {.name = "beta",
            .allowed = 40,
            .quickest = 1200ms,
            .slowest = 2000ms,
            .troubles = {{support::Trouble::Kind::slow, 60s, 80s}}};
}

// What the program knows. A breaker opens when half of the last 20 calls have failed, and probes at least every 20 s.
// The rates are those of the contracts, evenly. No query waits for alpha for more than 3 s, since beta can answer it,
// too.
constexpr sluice::BreakerOptions breaker{.window_calls = 20, .open_time = 10s, .open_cap = 20s, .seed = 1};
constexpr sluice::Backoff backoff{.initial = 500ms, .seed = 1};

sluice::EndpointOptions alpha_options(sluice::EndpointObserver& observer) {
    return {.limit = 20,
            .requests = sluice::Rate(10, 1s, 1),
            .breaker = breaker,
            .retry_budget = sluice::RetryBudget{},
            .observer = &observer,
            .max_wait = 3s};
}

sluice::EndpointOptions beta_options(sluice::EndpointObserver& observer) {
    return {.limit = 8, .requests = sluice::Rate(4, 1s, 1), .breaker = breaker, .observer = &observer};
}

// Few retries, since beta can answer; but behind beta there is nobody.
constexpr sluice::StageOptions alpha_stage{.timeout = 4s, .retry = {.max_retries = 1, .backoff = backoff}};
constexpr sluice::StageOptions beta_stage{.timeout = 6s, .retry = {.max_retries = 3, .backoff = backoff}};

struct Record {
    std::optional<std::string> answer;
};

std::string in_seconds(std::chrono::nanoseconds time) {
    std::ostringstream text;
    text << std::fixed << std::setprecision(1) << std::chrono::duration<double>(time).count() << " s";
    return std::move(text).str();
}

constexpr int label_width = 46;

// Prints a line with a value for each provider.
template <class Value>
void print(const std::string& label, const support::ProviderLog& log, Value value) {
    std::cout << std::left << std::setw(label_width) << label << std::right;
    for (const auto& provider : log.entries()) {
        std::cout << std::setw(9) << value(provider);
    }
    std::cout << '\n';
}

void print(const std::string& label, std::size_t value) {
    std::cout << std::left << std::setw(label_width) << label << std::right << std::setw(9) << value << '\n';
}

void print(const support::ProviderLog& log) {
    using Entry = support::ProviderLog::Entry;
    using Ending = support::ProviderLog::Ending;
    const auto number_of = [](Ending ending) { return [=](const Entry& its) { return its.count(ending); }; };
    const auto end = log.end();

    print("", log, [](const Entry& its) { return its.name; });
    print("calls", log, [](const Entry& its) { return its.calls.size(); });
    print("  answered", log, number_of(Ending::answered));
    print("  failed, with status 503", log, number_of(Ending::failed));
    print("  timed out", log, number_of(Ending::timed_out));
    print("  throttled, with status 429", log, number_of(Ending::throttled));
    print("rate: calls begun in one second, at most", log, [](const Entry& its) { return its.most_begun_in(1s); });
    print("line: calls that waited", log, [](const Entry& its) { return its.waits; });
    print("  at most for", log, [](const Entry& its) { return in_seconds(its.longest_wait); });
    print("pause: times", log, [](const Entry& its) { return its.pauses.size(); });
    print("  in all for", log, [=](const Entry& its) { return in_seconds(its.paused_until(end)); });
    print("breaker: times open", log, [](const Entry& its) { return its.openings; });
    print("  in all for", log, [=](const Entry& its) { return in_seconds(its.open_until(end)); });
    print("retries", log, [](const Entry& its) { return its.retries; });
    print("  withheld by the retry budget", log, [](const Entry& its) { return its.withheld; });

    const Entry& alpha = log.of("alpha");
    const std::size_t refused = alpha.failed(sluice::Reason::breaker_open);
    const std::size_t waited = alpha.failed(sluice::Reason::overloaded);
    std::size_t passed_on = alpha.skipped;
    for (const auto& [reason, stage_runs] : alpha.failures) {
        passed_on += stage_runs;
    }
    print("fallback: queries passed on to beta", passed_on);
    print("  alpha's breaker was open", alpha.skipped);
    print("  it opened while they were in the line", refused);
    print("  they had been in the line for 3 s", waited);
    print("  their calls of alpha had failed", passed_on - alpha.skipped - refused - waited);
}

std::vector<sluice::Query> make_queries(std::size_t number) {
    std::vector<sluice::Query> queries;
    for (std::size_t i = 1; i <= number; ++i) {
        queries.emplace_back("q-" + std::to_string(i), "question " + std::to_string(i));
        queries.back().timeout = 1min;
    }
    return queries;
}

void run(const Options& options) {
    support::Output svg(options.svg);
    support::Output text(options.metrics);

    asio::io_context context(1);
    const auto executor = sluice::timed_by<sluice::testing::VirtualTimer>(context.get_executor());
    support::SimulatedProvider alpha(alpha_provider());
    support::SimulatedProvider beta(beta_provider());
    support::ProviderLog log([&] { return sluice::testing::VirtualTimer::now(context).time_since_epoch(); },
                             {"alpha", "beta"});
    sluice::Metrics metrics;
    support::Observers observers;
    observers.add(log);
    observers.add(metrics);

    const sluice::Endpoint alpha_endpoint(executor, "alpha", alpha_options(log));
    const sluice::Endpoint beta_endpoint(executor, "beta", beta_options(log));
    const auto ask_alpha = [&](const std::string& question) { return alpha.answer(question); };
    const auto ask_beta = [&](const std::string& question) { return beta.answer(question); };
    const sluice::Fallback answer("answer", sluice::Stage(alpha_endpoint, "alpha", ask_alpha, alpha_stage),
                                  sluice::Stage(beta_endpoint, "beta", ask_beta, beta_stage));
    // NOLINTNEXTLINE(cppcoreguidelines-avoid-capturing-lambda-coroutines): the pipeline stores it
    const auto route = [answer](sluice::Run<Record>& run) -> asio::awaitable<void> {
        co_await run.step(&Record::answer, answer, run.query().text);
    };
    support::DeadLetterQueue dead_letters;
    sluice::Pipeline pipeline(executor, route, dead_letters, 30, sluice::PipelineOptions{.observer = &observers});
    metrics.watch(alpha_endpoint);
    metrics.watch(beta_endpoint);
    metrics.watch(pipeline, "providers");

    auto done = asio::co_spawn(context, pipeline.process_batch(make_queries(options.queries)), asio::use_future);
    const auto took = sluice::testing::run(context);
    const auto results = done.get();
    const auto answered = std::ranges::count_if(results, [](const auto& result) { return result.completed; });
    std::cout << support::counted(results.size(), "query", "queries") << " in " << in_seconds(took)
              << " of virtual time: " << answered << " answered, " << dead_letters.size() << " lost\n\n";
    print(log);

    svg.write([&](std::ostream& out) {
        support::ProviderPicture(out, log, {alpha.provider(), beta.provider()}).write(options.queries);
    });
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
        std::cerr << "providers: " << error.what() << '\n';
        return 2;
    }
}
