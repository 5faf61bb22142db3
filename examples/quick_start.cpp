// SPDX-License-Identifier: BSL-1.0
#include <boost/asio.hpp>
#include <iostream>
#include <sluice/pipeline/inference_pipeline.hpp>

namespace asio = boost::asio;

asio::awaitable<std::string> classify(const std::string& text) { co_return text.back() == '?' ? "question" : "remark"; }
asio::awaitable<int> extract(const std::string& text) { co_return static_cast<int>(text.size()); }
asio::awaitable<std::string> generate(const std::string& intent, int length, const std::string&) {
    if (length > 20) throw std::runtime_error("too long for me");
    co_return "a short " + intent;
}

struct DeadLetters {
    void put(const sluice::Query& query, const sluice::StageResult<>& why) {
        std::cout << query.id << ": " << why.stage << " failed: " << why.error.message() << '\n';
    }
};

asio::awaitable<void> run() {
    DeadLetters dead_letters;
    const auto executor = co_await asio::this_coro::executor;
    sluice::InferencePipeline pipeline(executor, classify, extract, generate,
                                       sluice::StageLimits{.classify = 20, .extract = 10, .generate = 5}, dead_letters);

    std::vector<sluice::Query> queries{
        {"1", "Who?"}, {"2", "It rains."}, {"3", "Are you quite sure?!?!"}, {"4", "Why?"}};
    int completed = 0;
    for (const auto& result : co_await pipeline.process_batch(queries)) {
        if (result.completed) std::cout << result.query.id << ": " << *result.response << '\n';
        completed += result.completed;
    }
    std::cout << completed << " of " << queries.size() << " completed\n";
}

int main(int argc, char**) {
    if (argc > 1) return std::cerr << "quick_start takes no arguments\n", 2;
    asio::io_context context;
    auto done = asio::co_spawn(context, run(), asio::use_future);
    context.run();
    done.get();
}
