// SPDX-License-Identifier: BSL-1.0
// Takes a step in an expression in which g++ 12 makes a bitwise copy of it, together with its argument. Either
// completes the query, as with other compilers, or terminates with a message, but never goes on with the copy. The
// argument of the program is `stage` or `fallback`.
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/fallback.hpp>
#include <sluice/stage/stage.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <cstdio>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace asio = boost::asio;

namespace {

struct Note {
    std::optional<std::string> text;
};

struct Sink {
    void put(const sluice::Query&, const sluice::StageResult<>&) const {}
};

// Runs a query through a step of a stage or of a fallback.
template <class Stage>
void run(asio::io_context& context, const Stage& stage) {
    const auto executor = context.get_executor();
    const auto route = [stage](sluice::Run<Note>& run) -> asio::awaitable<void> {
        const auto text = std::make_shared<std::string>(run.query().text);
        const auto step = [&] { return run.step(&Note::text, stage, std::shared_ptr(text)); };
        co_await (text->empty() ? step() : step());
        run->text = run->text.value() + " " + std::to_string(text.use_count());
    };
    Sink sink;
    sluice::Pipeline pipeline(executor, route, sink, 1);
    asio::co_spawn(
        context, pipeline.process_one(sluice::Query("1", "held")),
        [](const std::exception_ptr&, const auto& result) { std::puts(result.record.text.value().c_str()); });
    context.run();
}

}  // namespace

int main(int argc, char** argv) {
    asio::io_context context;
    const auto executor = context.get_executor();
    const auto echo = [](const std::shared_ptr<std::string>& text) -> asio::awaitable<std::string> { co_return *text; };
    const sluice::Stage stage(executor, "echo", 1, echo);
    if (argc == 2 && std::string_view(argv[1]) == "fallback") {
        run(context, sluice::Fallback("either", stage, stage));
    } else {
        run(context, stage);
    }
}
