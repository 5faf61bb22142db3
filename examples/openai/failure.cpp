// SPDX-License-Identifier: BSL-1.0
#include "failure.hpp"

#include "answer.hpp"
#include "retry_after.hpp"
#include "text.hpp"

#include <boost/beast/core/string.hpp>
#include <boost/beast/http/status.hpp>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <boost/system/error_code.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>

namespace beast = boost::beast;
namespace json = boost::json;

namespace openai {

namespace {

using sluice::Verdict;

constexpr std::size_t max_code = 64;
constexpr std::chrono::nanoseconds max_wait = std::chrono::minutes(2);

// The server's words.
struct Report {
    std::string message;
    std::string code;
    std::string type;
    std::optional<int> status;  // if the code is a number

    std::string name() const {
        const bool nameless = code.empty() || number_of(code);
        return printable(nameless && !type.empty() ? type : code, max_code);
    }
};

// A word that is part of a code or type, and its meaning.
struct Meaning {
    std::string_view word;
    Verdict::Kind kind;
};

constexpr Meaning whatever_the_status[] = {{"insufficient_quota", Verdict::exhausted},
                                           {"insufficient_balance", Verdict::exhausted},
                                           {"insufficient_credit", Verdict::exhausted},
                                           {"insufficient_funds", Verdict::exhausted},
                                           {"exceeded_current_quota", Verdict::exhausted},
                                           {"credit_balance", Verdict::exhausted},
                                           {"billing", Verdict::exhausted},
                                           {"spend", Verdict::exhausted},
                                           {"usage_limit", Verdict::exhausted},
                                           {"context_length", Verdict::invalid},
                                           {"context_size", Verdict::invalid},
                                           {"content_filter", Verdict::invalid},
                                           {"content_policy", Verdict::invalid},
                                           {"moderation", Verdict::invalid},
                                           {"overloaded", Verdict::overloaded}};

constexpr Meaning without_status[] = {{"rate_limit", Verdict::throttled},   {"authentication", Verdict::exhausted},
                                      {"api_key", Verdict::exhausted},      {"permission", Verdict::exhausted},
                                      {"unavailable", Verdict::overloaded}, {"not_found", Verdict::invalid},
                                      {"invalid_request", Verdict::invalid}};

std::string lower_case(std::string text) {
    std::ranges::transform(text, text.begin(),
                           [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    return text;
}

std::optional<Verdict::Kind> kind_of(const Report& report, std::span<const Meaning> meanings) {
    const std::string words = lower_case(report.code + '\n' + report.type);
    const auto found = std::ranges::find_if(
        meanings, [&](const auto& meaning) { return words.find(meaning.word) != std::string::npos; });
    return found == meanings.end() ? std::nullopt : std::optional(found->kind);
}

Verdict::Kind kind_of(int status) noexcept {
    switch (status) {
        case 429:
            return Verdict::throttled;
        case 503:
        case 529:
            return Verdict::overloaded;
        case 401:
        case 402:
        case 403:
            return Verdict::exhausted;
        case 408:
        case 409:
        case 425:
            return Verdict::transient;
        case 501:
            return Verdict::invalid;
        default:
            return status >= 300 && status < 500 ? Verdict::invalid : Verdict::transient;
    }
}

// Returns a string as it is, and anything else as JSON; empty if there is none.
std::string words_of(const json::value* value) {
    return !value ? std::string() : value->is_string() ? std::string(text_of(value)) : json::serialize(*value);
}

Report report_of(const json::object& body) {
    // Some servers have the message, code and type at the top.
    const json::value* reported = member(body, "error");
    const json::object& error = reported && reported->is_object() ? reported->get_object() : body;
    Report report;
    report.code = words_of(member(error, "code"));
    report.type = words_of(member(error, "type"));
    const auto number = number_of(report.code);
    if (number && *number >= 400 && *number < 600) {
        report.status = static_cast<int>(*number);
    }
    for (const json::value* words : {member(error, "message"), member(error, "detail"), reported}) {
        if (report.message.empty()) {
            report.message = words_of(words);
        }
    }
    return report;
}

// Returns the object of a body that is one, or an array that begins with one, as some servers send; otherwise null.
const json::object* object_in(const json::value& body) noexcept {
    const json::array* array = body.if_array();
    return array && !array->empty() ? array->front().if_object() : body.if_object();
}

Report report_of(int status, const Headers& headers, std::string_view body) {
    const std::size_t begin = std::min(body.find_first_not_of(" \t\r\n"), body.size());
    body.remove_prefix(begin);
    Report report;
    if (body.starts_with('{') || body.starts_with('[')) {
        boost::system::error_code error;
        const json::value value = json::parse(body, error);
        if (const json::object* object = error ? nullptr : object_in(value)) {
            report = report_of(*object);
        }
    }
    if (!report.message.empty()) {
        return report;
    }
    constexpr std::size_t excerpt = 200;
    if (status >= 300 && status < 400) {
        report.message = "the server redirects to '" + printable(value_of(headers, "location"), excerpt * 2) +
                         "', which is not followed";
    } else if (body.empty()) {
        const auto known = beast::http::int_to_status(static_cast<unsigned>(status));
        report.message = known == beast::http::status::unknown ? "no more is known"
                                                               : std::string_view(beast::http::obsolete_reason(known));
    } else if (body.starts_with('<') ||
               lower_case(std::string(value_of(headers, "content-type"))).find("html") != std::string::npos) {
        report.message = "a page of HTML, which begins with " + printable(body, excerpt);
    } else {
        report.message = body.substr(0, max_message + 1);
    }
    return report;
}

// Returns the kind of an error that the server says is worth a retry, or is not.
Verdict::Kind overruled(Verdict verdict, int status, bool retry) noexcept {
    if (verdict.retryable() == retry) {
        return verdict.kind;
    }
    if (retry) {
        const Verdict::Kind usual = kind_of(status);
        return Verdict{usual}.retryable() ? usual : Verdict::transient;
    }
    return verdict.kind == Verdict::throttled ? Verdict::exhausted : Verdict::invalid;
}

sluice::ModelError make_error(const std::string& subject, const Report& report, Verdict verdict, int status) {
    const std::string name = report.name();
    const std::string before = subject + (name.empty() ? "" : " (" + name + ")") + ": ";
    return sluice::ModelError(before + printable(report.message, max_message - before.size()), verdict, status, name);
}

}  // namespace

sluice::ModelError error_of(int status, const Headers& headers, std::string_view body,
                            std::chrono::system_clock::time_point now) {
    const Report report = report_of(status, headers, body);
    Verdict verdict{.kind = kind_of(report, whatever_the_status).value_or(kind_of(status)),
                    .retry_after = retry_after(headers, now)};
    const std::string should_retry = lower_case(std::string(value_of(headers, "x-should-retry")));
    if (should_retry == "true" || should_retry == "false") {
        verdict.kind = overruled(verdict, status, should_retry == "true");
    } else if (verdict.retryable() && verdict.retry_after > max_wait) {
        verdict.kind = Verdict::exhausted;
    }
    return make_error("status " + std::to_string(status), report, verdict, status);
}

std::optional<sluice::ModelError> error_in(const json::value& answer) {
    const json::object* object = object_in(answer);
    if (!object || !member(*object, "error")) {
        return std::nullopt;
    }
    const Report report = report_of(*object);
    auto kind = kind_of(report, whatever_the_status);
    if (!kind) {
        kind = report.status ? kind_of(*report.status) : kind_of(report, without_status);
    }
    return make_error("the answer reports an error", report, {.kind = kind.value_or(Verdict::transient)},
                      report.status.value_or(200));
}

}  // namespace openai
