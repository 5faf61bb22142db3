// SPDX-License-Identifier: BSL-1.0
// An external program that has only the headers of sluice. Both of its files include every header, so they would not
// link if a header defined something that is not inline.
#include <sluice/sluice.hpp>
#include <sluice/testing/interleaving_context.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <cstddef>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
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

}  // namespace

int main() {
    const bool works = answered() == 2 && met() == 3;
    std::cout << (works ? "works\n" : "does not work\n");
    return works ? 0 : 1;
}
