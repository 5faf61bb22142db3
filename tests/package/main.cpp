// SPDX-License-Identifier: BSL-1.0
// An external program that has only the headers of sluice. Both of its files include every header, so they would not
// link if a header defined something that is not inline.
#include <sluice/sluice.hpp>
#include <sluice/testing/interleaving_context.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <chrono>
#include <cstddef>
#include <exception>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

std::size_t met();  // phases.cpp

namespace {

asio::awaitable<bool> classify(const std::string& text) { co_return text.back() == '?'; }
asio::awaitable<std::size_t> extract(const std::string& text) { co_return text.size(); }
asio::awaitable<std::string> generate(bool question, std::size_t length, const std::string&) {
    if (length > 20) throw std::runtime_error("too long");
    co_return question ? "yes" : "indeed";
}

struct DeadLetters {
    std::size_t count = 0;

    void put(const sluice::Query&, const sluice::StageResult<>&) { ++count; }
};

std::size_t answered() {
    asio::io_context context;
    DeadLetters dead_letters;
    sluice::InferencePipeline pipeline(sluice::timed_by<sluice::testing::VirtualTimer>(context.get_executor()),
                                       classify, extract, generate, sluice::StageLimits{2, 2, 2}, dead_letters);
    const std::vector<sluice::Query> queries{{"1", "Who?"}, {"2", "It rains."}, {"3", "Are you quite sure?!?!"}};
    std::size_t completed = 0;
    asio::co_spawn(context, pipeline.process_batch(queries), [&](std::exception_ptr, auto results) {
        for (const auto& result : results) completed += result.completed ? 1 : 0;
    });
    sluice::testing::run(context);
    return dead_letters.count == 1 ? completed : 0;
}

struct Notes {
    std::optional<bool> question;
    std::optional<std::size_t> length;
    std::optional<std::string> reply;
};

struct Archive {
    std::size_t letters = 0;
    std::size_t saved = 0;

    void put(const sluice::Query&, const sluice::StageResult<>&, const Notes&) { ++letters; }
    asio::awaitable<void> save(const sluice::Query&, const Notes&) { return count(*this); }

private:
    static asio::awaitable<void> count(Archive& archive) {
        ++archive.saved;
        co_return;
    }
};

auto make_pipeline(const asio::any_io_executor& executor, Archive& archive) {
    const auto home = sluice::timed_by<sluice::testing::VirtualTimer>(executor);
    const sluice::Stage first(home, "classify", 2, classify);
    const sluice::Stage second(home, "extract", 2, extract);
    const sluice::Stage third(home, "generate", 2, generate);
    auto route = [=](sluice::Run<Notes>& run) -> asio::awaitable<void> {
        const std::string& text = run.query().text;
        co_await run.all(run.step(&Notes::question, first, text), run.step(&Notes::length, second, text));
        co_await sluice::sleep_for<sluice::testing::VirtualTimer>(std::chrono::seconds(1));
        co_await run.step(&Notes::reply, third, &Notes::question, &Notes::length, text);
    };
    return sluice::Pipeline(home, std::move(route), archive, 2);
}

// The queries that a drain cuts short, and another pipeline completes.
std::size_t resumed() {
    asio::io_context context;
    Archive archive;
    auto pipeline = make_pipeline(context.get_executor(), archive);
    const std::vector<sluice::Query> queries{{"1", "Who?"}, {"2", "Are you quite sure?!?!"}};
    std::vector<sluice::Checkpoint<Notes>> rest;
    asio::co_spawn(context, pipeline.process_batch(queries), [&](std::exception_ptr, auto results) {
        for (auto& result : results) {
            if (result.unfinished) rest.emplace_back(std::move(result));
        }
    });
    context.poll();
    asio::co_spawn(context, pipeline.drain(std::chrono::nanoseconds(0)), [](std::exception_ptr, const auto&) {});
    sluice::testing::run(context);
    auto again = make_pipeline(context.get_executor(), archive);
    std::size_t completed = 0;
    asio::co_spawn(context, again.process_batch(std::move(rest)), [&](std::exception_ptr, const auto& results) {
        for (const auto& result : results) completed += result.record.reply == "yes" ? 1U : 0U;
    });
    sluice::testing::run(context);
    return archive.letters == 1 && archive.saved == 3 ? completed : 0;
}

}  // namespace

int main() {
    const bool works = answered() == 2 && met() == 3 && resumed() == 1;
    std::cout << (works ? "works\n" : "does not work\n");
    return works ? 0 : 1;
}
