// SPDX-License-Identifier: BSL-1.0
// The load of the benchmark over HTTP in sluice, written the obvious way: a client, a stage with the slots as its
// limit, a pipeline of one step, a batch. Prints what load.hpp says.
#include "load.hpp"

#include "../../../examples/openai/client.hpp"

#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/attempt.hpp>
#include <sluice/stage/stage.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/use_future.hpp>

#include <cstddef>
#include <exception>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

namespace asio = boost::asio;

struct Record {
    std::optional<std::string> answer;
};

// Keeps the first.
struct DeadLetters {
    void put(const sluice::Query& query, const sluice::StageResult<>& why) {
        if (first.empty()) {
            first = query.id.str() + " failed: " + why.error.message();
        }
    }

    std::string first;
};

class Load {
public:
    Load(const asio::any_io_executor& executor, const benchmark::LoadOptions& options)
        : slots_(static_cast<std::ptrdiff_t>(options.slots)),
          executor_(executor),
          client_(executor, options.url, {.api_key = "benchmark", .http = {.max_idle = options.slots}}),
          measurement_(options.queries) {}

    asio::awaitable<void> run(std::size_t count) {
        const sluice::Stage answer(
            executor_, "answer", slots_,
            [this](const std::string& text, sluice::Attempt& attempt) { return ask(text, attempt); });
        const auto route = [answer](sluice::Run<Record>& run) -> asio::awaitable<void> {
            co_await run.step(&Record::answer, answer, run.query().text);
        };
        DeadLetters dead_letters;
        sluice::Pipeline pipeline(executor_, route, dead_letters, slots_);

        std::vector<sluice::Query> queries;
        queries.reserve(count);
        for (std::size_t i = 0; i < count; ++i) {
            queries.emplace_back("q-" + std::to_string(i), benchmark::question(i));
        }
        const auto results = co_await pipeline.process_batch(queries);
        if (!dead_letters.first.empty()) {
            throw std::runtime_error(dead_letters.first);
        }
        measurement_.print();
    }

private:
    asio::awaitable<std::string> ask(const std::string& text, sluice::Attempt& attempt) {
        const auto begun = benchmark::Measurement::Clock::now();
        const openai::ChatRequest request{
            .model = "stub",
            .messages = {{"system", benchmark::system_message}, {"user", text}},
            .max_tokens = 128,
        };
        openai::ChatAnswer answer = co_await client_.chat(request, attempt);
        measurement_.count(begun, answer.text.size());
        co_return std::move(answer.text);
    }

    std::ptrdiff_t slots_;
    asio::any_io_executor executor_;
    openai::Client client_;
    benchmark::Measurement measurement_;
};

}  // namespace

int main(int argc, char** argv) {
    try {
        const benchmark::LoadOptions options = benchmark::parse_load(argc, argv);
        asio::io_context context(1);
        Load load(context.get_executor(), options);
        auto done = asio::co_spawn(context, load.run(options.queries), asio::use_future);
        context.run();
        done.get();
    } catch (const std::exception& error) {
        std::cerr << "http_sluice_client: " << error.what() << '\n';
        return 2;
    }
}
