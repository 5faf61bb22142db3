// SPDX-License-Identifier: BSL-1.0
// 100,000 calls through client, endpoint and stage, with troubles on the way: the last 90,000 leave nothing behind that
// the first 10,000 have not. A program of its own, since it counts every allocation.
#include "openai/client.hpp"
#include "openai/scripted_server.hpp"

#include <sluice/stage/attempt.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>

#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;

// The bytes in use, and the most since it was last set.
struct HeapUse {
    std::size_t bytes = 0;
    std::size_t most = 0;

    void* allocate(std::size_t size, std::size_t alignment) {
        const std::size_t rounded = (std::max<std::size_t>(size, 1) + alignment - 1) / alignment * alignment;
        void* const block = std::aligned_alloc(alignment, rounded);
        if (block == nullptr) {
            throw std::bad_alloc();
        }
        bytes += malloc_usable_size(block);
        most = std::max(most, bytes);
        return block;
    }
    void release(void* block) noexcept {
        bytes -= malloc_usable_size(block);
        std::free(block);
    }
} heap_use;

}  // namespace

void* operator new(std::size_t size) { return heap_use.allocate(size, __STDCPP_DEFAULT_NEW_ALIGNMENT__); }
void* operator new(std::size_t size, std::align_val_t alignment) {
    return heap_use.allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* block) noexcept { heap_use.release(block); }
void operator delete(void* block, std::size_t) noexcept { heap_use.release(block); }
void operator delete(void* block, std::align_val_t) noexcept { heap_use.release(block); }
void operator delete(void* block, std::size_t, std::align_val_t) noexcept { heap_use.release(block); }

namespace {

// Of 25 calls one is streamed and five embed something; the others are chats.
struct MixedModel {
    openai::Client* client;

    asio::awaitable<std::size_t> operator()(std::size_t number, sluice::Attempt& attempt) const {
        return call(*client, number, attempt);
    }

    static asio::awaitable<std::size_t> call(openai::Client& client, std::size_t number, sluice::Attempt& attempt) {
        const std::string text = "question " + std::to_string(number % 10);
        if (number % 5 == 0) {
            const std::vector<std::string> texts{text, text};
            const auto embeddings = co_await client.embed("m", texts, attempt);
            co_return embeddings.vectors.size();
        }
        const openai::ChatRequest request{.model = "m", .messages = {{"user", text}}};
        if (number % 25 == 1) {
            openai::OnPiece on_piece = [](std::string_view) {};
            const auto answer = co_await client.chat_stream(request, std::move(on_piece), attempt);
            co_return answer.text.size();
        }
        const auto answer = co_await client.chat(request, attempt);
        co_return answer.text.size();
    }
};

openai::Behaviour with_trouble(const openai::ScriptedRequest& request) {
    switch (request.number % 100) {
        case 10:
            return openai::Behaviour::error(500, "internal", "broken");
        case 20:
            return {.close = true};
        case 30:
            return {.stop_after = 100};
        case 40:
            return {.body = "<html>"};
        default:
            return {};
    }
}

struct Calls {
    std::size_t begun = 0;
    std::size_t failed = 0;
    std::size_t tries = 0;
};

asio::awaitable<void> call_until(const sluice::Stage<MixedModel>& stage, Calls& calls, std::size_t end) {
    while (calls.begun < end) {
        const std::size_t number = ++calls.begun;
        const auto result = co_await stage.run("q", number);
        calls.failed += result.success ? 0 : 1;
        calls.tries += static_cast<std::size_t>(result.attempts);
    }
}

}  // namespace

TEST_CASE("Client: memory is flat over 100,000 calls", "[openai][memory]") {
    asio::io_context context(1);
    openai::ScriptedServer server(context.get_executor(), {.script = with_trouble});
    openai::Client client(context.get_executor(), server.url());
    const sluice::Endpoint endpoint(context.get_executor(), "server", sluice::EndpointOptions{.limit = 8});
    const sluice::StageOptions options{.timeout = 20s, .retry = {.max_retries = 5, .backoff = {.initial = 0ns}}};
    const sluice::Stage stage(endpoint, "ask", MixedModel{&client}, options);
    Calls calls;
    const auto run_until = [&](std::size_t end) {
        std::size_t working = 8;
        for (std::size_t i = working; i != 0; --i) {
            asio::co_spawn(context, call_until(stage, calls, end), [&](const std::exception_ptr& error) {
                --working;
                if (error) {
                    std::rethrow_exception(error);
                }
            });
        }
        heap_use.most = heap_use.bytes;
        while (working != 0 || server.counts().working != 0) {
            context.run_one();
        }
        context.poll();
    };

    run_until(10'000);
    const HeapUse first = heap_use;
    run_until(100'000);
    const HeapUse last = heap_use;
    CAPTURE(first.bytes, last.bytes, first.most, last.most);
    CHECK(calls.begun == 100'000);
    CHECK(calls.failed == 0);
    CHECK(calls.tries > 102'000);  // three troubles of a hundred requests are tried again
    CHECK(last.bytes < first.bytes + 10'000);
    CHECK(last.most < first.most + 100'000);
}
