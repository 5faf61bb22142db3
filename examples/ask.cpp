// SPDX-License-Identifier: BSL-1.0
// Asks an OpenAI-compatible server: one question, whose answer is printed as it comes, or a file of prompts, through an
// endpoint with a limit, a rate, retries and a timeout. Ctrl-C drains, and --resume goes on.
#include "openai/ask_batch.hpp"
#include "openai/ask_options.hpp"
#include "openai/ask_question.hpp"
#include "openai/ask_server.hpp"
#include "openai/client.hpp"
#include "openai/scripted_server.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace asio = boost::asio;

namespace {

// The question of the command line or of standard input, where it may end with a line break.
std::string question_of(const openai::AskOptions& options) {
    std::string question = options.question.value_or("-");
    if (question == "-") {
        if (!options.question && isatty(STDIN_FILENO)) throw std::invalid_argument("there is no question (see --help)");
        question.resize(std::size_t{16} << 20);
        std::cin.read(question.data(), static_cast<std::streamsize>(question.size()));
        if (std::ferror(stdin) != 0) throw std::runtime_error("cannot read standard input");
        if (!std::cin.eof()) throw std::runtime_error("the question is longer than 16 MiB");
        question.resize(static_cast<std::size_t>(std::cin.gcount()));
        while (question.ends_with('\n')) question.pop_back();
    }
    if (question.empty()) throw std::invalid_argument("the question is empty");
    return question;
}

int run(const openai::AskOptions& options) {
    openai::ClientOptions client_options;
    client_options.http.max_idle = static_cast<std::size_t>(options.at_once);
    // A server sends nothing before an answer that is not streamed is complete, and a gateway may send its header only.
    client_options.http.first_byte_timeout =
        std::max(client_options.http.first_byte_timeout, std::chrono::nanoseconds(options.timeout));
    client_options.http.idle_timeout = client_options.http.first_byte_timeout;
    if (!options.model.empty()) {
        client_options.api_key = openai::key_from(std::getenv("OPENAI_API_KEY"));
    }
    auto owned_context = std::make_unique<asio::io_context>(1);
    asio::io_context& context = *owned_context;
    const asio::any_io_executor executor = context.get_executor();
    std::optional<openai::ScriptedServer> server;
    if (options.model.empty()) {
        server.emplace(executor, openai::ScriptedServerOptions{.script = openai::demonstrate});
    }
    openai::Client client(executor, server ? server->url() : options.model, client_options);

    // Whatever may be wrong with the files is known before anything is sent.
    std::optional<openai::BatchFiles> files;
    std::string question;
    if (options.batch.empty()) {
        question = question_of(options);
    } else {
        files.emplace(options);
    }
    if (server) std::cerr << "ask: no --model, so a scripted server on " << server->url() << " answers\n";

    // These live until nothing is left to run, or nothing runs any more, even after an exception.
    std::optional<openai::AskBatch> batch;
    std::optional<openai::AskQuestion> asked;
    const auto start = [&] {
        if (files) return batch.emplace(executor, client, options, *files).run();
        return asked.emplace(executor, client, options, std::move(question)).run();
    };
    int status = 0;
    bool ended = false;
    std::exception_ptr failure;
    asio::co_spawn(context, start(), [&](const std::exception_ptr& error, int returned) {
        failure = error;
        status = returned;
        ended = true;
        server.reset();  // so that nothing is left to run
    });
    try {
        while (!ended && context.run_one() != 0) {
        }
        context.run_for(std::chrono::seconds(1));
    } catch (...) {  // of the scripted server
        failure = std::current_exception();
    }
    if (!context.stopped()) {
        // The look-up of a name, which the system does not let us cancel, may take minutes. Its thread ends with us.
        [[maybe_unused]] const auto* const left_to_it = owned_context.release();
    }
    if (failure) std::rethrow_exception(failure);
    return status;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        const auto options = openai::parse_ask(argc, argv);
        if (options.help) {
            std::cout << openai::ask_usage;
            return 0;
        }
        return run(options);
    } catch (const std::exception& error) {
        std::cerr << "ask: " << error.what() << '\n';
        return 2;
    }
}
