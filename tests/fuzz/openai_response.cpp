// SPDX-License-Identifier: BSL-1.0
// A libFuzzer target for the bodies and header values that an OpenAI-compatible server may answer with: whatever comes
// is read or refused by a ModelError, whose message is bounded and printable. The first byte chooses what is read. HTTP
// itself is read by Boost.Beast, and has tests of its own.
#include "openai/protocol_probes.hpp"

#include <sluice/stage/verdict.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string_view>

namespace {

void require(bool holds, const char* what) {
    if (!holds) {
        std::cerr << "openai_response: not so: " << what << '\n';
        std::abort();
    }
}

void check_error(const sluice::ModelError& error) {
    const std::string_view message = error.what();
    require(message.size() <= 1024, "a message has at most 1 kB");
    require(test::is_printable(message), "a message is printable");
    require(!message.empty(), "a message says something");
    require(error.code().str().size() <= 64, "a code has at most 64 bytes");
    require(test::is_printable(error.code().str()), "a code is printable");
    const auto wait = error.verdict().retry_after;
    require(!wait || (wait->count() > 0 && *wait <= openai::longest_time), "a wait is positive and bounded");
    require(!wait || !error.verdict().retryable() || *wait <= std::chrono::minutes(2), "no retry waits for long");
}

void check_usage(const std::optional<sluice::Cost>& usage) {
    constexpr std::int64_t most = 1'000'000'000'000'000;
    require(!usage || (usage->input_tokens >= 0 && usage->input_tokens <= most && usage->output_tokens >= 0 &&
                       usage->output_tokens <= most),
            "usage is in range");
}

template <class Read>
void read(Read read) {
    try {
        read();
    } catch (const sluice::ModelError& error) {
        check_error(error);
        require(error.status() == 200 || (error.status() >= 400 && error.status() < 600), "a status is one");
    }
}

void read_chat(std::string_view body) {
    read([&] { check_usage(openai::parse_chat(body).usage); });
}

void read_embeddings(std::string_view body) {
    const std::size_t texts = body.empty() ? 0 : static_cast<unsigned char>(body.front()) % 8U;
    body.remove_prefix(std::min<std::size_t>(body.size(), 1));
    read([&] {
        const auto answer = openai::parse_embeddings(body, texts);
        check_usage(answer.usage);
        require(answer.vectors.size() == texts, "each text has a vector");
        for (const auto& vector : answer.vectors) {
            require(!vector.empty() && vector.size() == answer.vectors.front().size(), "the vectors have one length");
        }
    });
}

// However the body is split, the outcome is the same.
void read_stream(std::string_view body) {
    const auto whole = test::stream_outcome(body);
    require(test::is_printable(whole.error) && whole.error.size() <= 1024 + 100, "an error is bounded and printable");
    require(whole.error.empty() == whole.answer.has_value(), "a stream is an answer or an error");
    require(!whole.answer || (whole.done && whole.answer->text.size() == whole.delivered), "an answer was delivered");
    if (whole.answer) {
        check_usage(whole.answer->usage);
    }
    require(test::stream_outcome(body, [] { return 1; }) == whole, "a stream may come byte by byte");
    std::minstd_rand random(static_cast<unsigned>(body.size()));
    require(test::stream_outcome(body, [&] { return 1 + random() % 40; }) == whole, "a stream may be split anywhere");
}

std::string_view take_line(std::string_view& text) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    return line;
}

// A line for each header, and the body.
void read_failure(std::string_view text) {
    const int status = text.size() < 2 ? 0 : static_cast<unsigned char>(text[0]) * 4 + text[1] % 4;
    text.remove_prefix(std::min<std::size_t>(text.size(), 2));
    openai::Headers headers;
    for (const std::string_view name :
         {"retry-after-ms", "retry-after", "date", "x-should-retry", "location", "content-type",
          "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
          "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"}) {
        if (const std::string_view value = take_line(text); !value.empty()) {
            headers.insert(name, value);
        }
    }
    const std::chrono::sys_seconds now(std::chrono::seconds(784111777));
    const auto error = openai::error_of(status, headers, text, now);
    if (openai::value_of(headers, "x-should-retry").empty()) {
        check_error(error);
    }
    require(error.status() == status && std::string_view(error.what()).size() <= 1024, "an error has its status");
    test::RecordingAttempt attempt;
    openai::report_rates(headers, attempt);
    for (const auto pause : attempt.pauses) {
        require(pause.count() > 0 && pause < openai::longest_time, "a pause is positive and bounded");
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) {
        return 0;
    }
    const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
    switch (data[0] % 4) {
        case 0:
            read_chat(bytes);
            break;
        case 1:
            read_embeddings(bytes);
            break;
        case 2:
            read_stream(bytes);
            break;
        default:
            read_failure(bytes);
    }
    return 0;
}
