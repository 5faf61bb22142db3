// SPDX-License-Identifier: BSL-1.0
// The parts of examples/ask.cpp: its options, the files of a batch, and the order of the answers.
#include "json_lines.hpp"
#include "openai/ask_answers.hpp"
#include "openai/ask_lines.hpp"
#include "openai/ask_options.hpp"
#include "openai/ask_prompts.hpp"
#include "openai/ask_server.hpp"
#include "openai/ask_source.hpp"

#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/sync/timeout.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <exception>
#include <filesystem>
#include <fstream>
#include <ios>
#include <iterator>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
using Catch::Matchers::Message;
using Catch::Matchers::MessageMatches;
using Catch::Matchers::StartsWith;
using openai::Answers;
using openai::AskOptions;
using openai::Prompts;
using openai::PromptSource;

AskOptions parse_words(std::vector<std::string> words) {
    words.insert(words.begin(), "ask");
    std::vector<char*> argv;
    for (auto& word : words) argv.push_back(word.data());
    return openai::parse_ask(static_cast<int>(argv.size()), argv.data());
}

// A folder for the files of a test.
class FilesOfAsk {
public:
    FilesOfAsk() : folder_(std::filesystem::temp_directory_path() / ("sluice-ask-" + std::to_string(::getpid()))) {
        std::filesystem::remove_all(folder_);
        std::filesystem::create_directory(folder_);
    }
    ~FilesOfAsk() { std::filesystem::remove_all(folder_); }

    FilesOfAsk(const FilesOfAsk&) = delete;
    FilesOfAsk& operator=(const FilesOfAsk&) = delete;

    std::string path(std::string_view name) const { return (folder_ / name).string(); }

    std::string write(std::string_view name, std::string_view text) const {
        std::ofstream(path(name), std::ios::binary) << text;
        return path(name);
    }

    std::string read(std::string_view name) const {
        std::ifstream in(path(name), std::ios::binary);
        return {std::istreambuf_iterator<char>(in), {}};
    }

private:
    std::filesystem::path folder_;
};

// The lines of answers to the prompts with these ids.
std::string answers_to(std::string_view ids) {
    std::string text;
    for (const char id : ids) text += std::string(R"({"id":")") + id + "\",\"answer\":\"A\"}\n";
    return text;
}

std::string answer_to(char id) {
    std::string line = answers_to({&id, 1});
    line.pop_back();
    return line;
}

constexpr std::string_view prompts_a_to_e =
    "{\"id\":\"a\",\"prompt\":\"A?\"}\n{\"id\":\"b\",\"prompt\":\"B?\"}\n{\"id\":\"c\",\"prompt\":\"C?\"}\n"
    "{\"id\":\"d\",\"prompt\":\"D?\"}\n{\"id\":\"e\",\"prompt\":\"E?\"}\n";

// Runs a coroutine to its end.
template <class Function>
void run_in(asio::io_context& context, Function function) {
    std::exception_ptr failure;
    asio::co_spawn(context, function, [&](const std::exception_ptr& error) { failure = error; });
    context.restart();
    context.run();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace

TEST_CASE("ask: a question and its options", "[ask]") {
    const auto options = parse_words({"Why?", "--model", "http://localhost:1/v1", "--name=m", "--retries", "0"});
    CHECK(options.question == "Why?");
    CHECK(options.model == "http://localhost:1/v1");
    CHECK(options.name == "m");
    CHECK(options.retries == 0);
    CHECK(options.batch.empty());
    CHECK(parse_words({"-"}).question == "-");
    CHECK_FALSE(parse_words({}).question);
    CHECK(parse_words({"-h"}).help);
    CHECK(parse_words({"--help", "--resume"}).help);
}

TEST_CASE("ask: a batch and its options", "[ask]") {
    const auto options = parse_words({"--batch", "p", "--output", "o.jsonl", "--resume", "--at-once", "9", "--rate",
                                      "60", "--timeout", "5", "--grace", "0"});
    CHECK(options.batch == "p");
    CHECK(options.output == "o.jsonl");
    CHECK(options.failed == "o.failed.jsonl");
    CHECK(options.resume);
    CHECK(options.at_once == 9);
    CHECK(options.rate == 60);
    CHECK(options.timeout == std::chrono::seconds(5));
    CHECK(options.grace == std::chrono::seconds(0));
    CHECK(parse_words({"--batch", "p", "--output", "o"}).failed == "o.failed.jsonl");
    CHECK(parse_words({"--batch", "p", "--output", "o", "--failed", "f"}).failed == "f");
    CHECK(parse_words({"--batch", "p", "--output", "/dev/null"}).failed.empty());  // nothing belongs beside a device
    CHECK(parse_words({"--batch", "p"}).failed.empty());
}

TEST_CASE("ask: options that are refused", "[ask]") {
    const auto refused = [](std::vector<std::string> words, const std::string& message) {
        CHECK_THROWS_MATCHES(parse_words(std::move(words)), std::invalid_argument, Message(message));
    };
    refused({"Why", "not?"}, "there is more than one question: 'Why' and 'not?'; put it in quotes");
    refused({"--base", "x"}, "unknown option '--base' (see --help)");
    refused({"-x"}, "unknown option '-x' (see --help)");
    refused({"Why?", "--rate", "5"}, "--rate needs --batch");
    refused({"--resume"}, "--resume needs --batch");
    refused({"--batch", "p", "Why?"}, "there are --batch and a question, 'Why?'; one is possible");
    refused({"--batch", "p", "--resume"}, "--resume needs --output");
    refused({"--batch", "p", "--output", "o", "--failed", "./o"}, "--output and --failed cannot both go to './o'");
    refused({"--batch", "p", "--output", "./p"}, "the prompts in 'p' would be overwritten: --output is the same file");
    refused({"--batch", "o.failed.jsonl", "--output", "o.jsonl"},
            "the prompts in 'o.failed.jsonl' would be overwritten: --failed is the same file");
    refused({"--batch", "p", "--rate", "0"}, "--rate takes a whole number from 1 to 1000000, got '0'");
    refused({"--batch", "p", "--at-once", "1001"}, "--at-once takes a whole number from 1 to 1000, got '1001'");
    refused({"--batch", "p", "--timeout", "0"}, "--timeout takes a whole number from 1 to 86400, got '0'");
    refused({"--batch", "p", "--grace", "-1"}, "--grace takes a whole number from 0 to 86400, got '-1'");
    refused({"--retries", "1001"}, "--retries takes a whole number from 0 to 1000, got '1001'");
    refused({"--model", ""}, "--model takes a URL, got ''");
}

TEST_CASE("ask: the key is one line without blanks, and in no message", "[ask]") {
    CHECK(openai::key_from(nullptr).empty());
    CHECK(openai::key_from("").empty());
    CHECK(openai::key_from("sk-1") == "sk-1");
    for (const char* bad : {"sk 1", "sk-1\n", "sk\r\nX: y", "sk-\x7f", "sk-\xc3\xa4"}) {
        CHECK_THROWS_MATCHES(openai::key_from(bad), std::invalid_argument,
                             Message("OPENAI_API_KEY has a blank, or another character that no key has"));
    }
}

TEST_CASE("ask: prompts of a file", "[ask]") {
    const FilesOfAsk files;
    Prompts prompts(files.write("p", "{\"id\":\"a\",\"prompt\":\"A?\"}\r\n{\"prompt\":\"B?\",\"stage\":7}\n\"C?\""));
    REQUIRE(prompts.size() == 3);
    CHECK(prompts.id(0) == "a");
    CHECK(prompts.id(1) == "2");
    CHECK(prompts.id(2) == "3");
    CHECK(prompts.find("a") == 0U);
    CHECK(prompts.find("3") == 2U);
    CHECK_FALSE(prompts.find("1"));
    CHECK(prompts.take(0) == "A?");
    CHECK(prompts.take(1) == "B?");
    CHECK(prompts.take(2) == "C?");
    CHECK(Prompts(files.write("p", "")).size() == 0);
}

TEST_CASE("ask: lines that are no prompts are refused with their number", "[ask]") {
    const FilesOfAsk files;
    const auto refused = [&](std::string_view line, const std::string& why) {
        const auto file = files.write("p", "\"one\"\n" + std::string(line) + "\n\"three\"\n");
        CHECK_THROWS_MATCHES(Prompts(file), std::runtime_error,
                             MessageMatches(StartsWith("line 2 of '" + file + "' " + why)));
    };
    refused("", "is not JSON: ");
    refused(R"({"prompt":"two")", "is not JSON: ");
    refused("two", "is not JSON: ");
    refused("\"\xff\"", "is not JSON: ");
    refused("{}", "has no \"prompt\"");
    refused("[\"two\"]", "has a prompt that is not a string");
    refused("{\"prompt\":null}", "has a prompt that is not a string");
    refused(R"({"prompt":""})", "has an empty prompt");
    refused("\"\"", "has an empty prompt");
    refused(R"({"id":2,"prompt":"two"})", "has an \"id\" that is not a string");
    refused(R"({"id":"1","prompt":"two"})", "has the id \"1\", as line 1");
    for (const char* unreadable : {"/no/where", "/"}) {
        CHECK_THROWS_MATCHES(Prompts(unreadable), std::runtime_error,
                             Message("cannot read '" + std::string(unreadable) + "'"));
    }
}

TEST_CASE("ask: answers are written as they come", "[ask]") {
    const FilesOfAsk files;
    const Prompts prompts(files.write("p", prompts_a_to_e));
    const bool resume = GENERATE(false, true);
    Answers answers(files.path("o"), prompts, resume);
    answers.write(0, answer_to('a'));
    CHECK(files.read("o") == answers_to("a"));
    answers.write(1, answer_to('b'));
    CHECK(files.read("o") == answers_to("ab"));
    CHECK(answers.has(1));
    CHECK_FALSE(answers.has(2));
    CHECK(answers.size() == 2);
}

TEST_CASE("ask: a file with answers is resumed, and not overwritten", "[ask]") {
    const FilesOfAsk files;
    const Prompts prompts(files.write("p", prompts_a_to_e));
    const auto file = files.write("o", answers_to("ac"));
    CHECK_THROWS_MATCHES(Answers(file, prompts, false), std::runtime_error,
                         Message("'" + file + "' has something already: add --resume to go on, or remove it"));
    Answers answers(file, prompts, true);
    CHECK(answers.size() == 2);
    CHECK(answers.has(0));
    CHECK_FALSE(answers.has(1));
    CHECK(answers.has(2));
    answers.write(3, answer_to('d'));
    answers.sort();
    CHECK(files.read("o") == answers_to("acd"));
    CHECK_THROWS_MATCHES(Answers(files.path(""), prompts, true), std::runtime_error,
                         Message("cannot resume '" + files.path("") + "', which is no file"));
    CHECK_THROWS_MATCHES(Answers(files.path("no/where"), prompts, true), std::runtime_error,
                         Message("cannot write '" + files.path("no/where") + "'"));
}

TEST_CASE("ask: a line that was cut off is answered again", "[ask]") {
    const FilesOfAsk files;
    const Prompts prompts(files.write("p", prompts_a_to_e));
    const std::string whole = answers_to("ab");
    const std::size_t first = answers_to("a").size();
    for (std::size_t size = 0; size <= whole.size(); ++size) {
        const auto file = files.write("o", whole.substr(0, size));
        Answers answers(file, prompts, true);
        const std::size_t kept = size < first ? 0 : size < whole.size() ? 1 : 2;
        CHECK(answers.size() == kept);
        CHECK(files.read("o") == answers_to(std::string("ab").substr(0, kept)));
        answers.write(4, answer_to('e'));
        CHECK(files.read("o") == answers_to(std::string("ab").substr(0, kept) + "e"));
    }
}

TEST_CASE("ask: a file of something else is refused, and stays as it is", "[ask]") {
    const FilesOfAsk files;
    const Prompts prompts(files.write("p", prompts_a_to_e));
    const auto refused = [&](const std::string& line, const std::string& why) {
        const std::string text = answers_to("a") + line + "\n{\"id\":\"torn";
        const auto file = files.write("o", text);
        CHECK_THROWS_MATCHES(Answers(file, prompts, true), std::runtime_error,
                             Message("line 2 of '" + file + "' " + why));
        CHECK(files.read("o") == text);
    };
    refused("", "is no answer");
    refused(R"({"id":"b")", "is no answer");
    refused(R"({"answer":"A"})", "is no answer");
    refused("{\"id\":2}", "is no answer");
    refused("[]", "is no answer");
    refused(answer_to('x'), "answers \"x\", which is no prompt");
    refused(answer_to('a'), "answers \"a\" again");
}

TEST_CASE("ask: a line that was not torn from an answer is not cut off", "[ask]") {
    const FilesOfAsk files;
    const Prompts prompts(files.write("p", prompts_a_to_e));
    for (const std::string_view line : {"notes", "{", "{\"id\":2", "[", " "}) {
        const std::string text = answers_to("a") + std::string(line);
        const auto file = files.write("o", text);
        const bool is_beginning = line == "{";
        if (is_beginning) {
            CHECK(Answers(file, prompts, true).size() == 1);
        } else {
            CHECK_THROWS_MATCHES(Answers(file, prompts, true), std::runtime_error,
                                 Message("line 2 of '" + file + "' is no answer"));
        }
        CHECK(files.read("o") == (is_beginning ? answers_to("a") : text));
    }
}

TEST_CASE("ask: answers are put into the order of the prompts", "[ask]") {
    namespace fs = std::filesystem;
    const FilesOfAsk files;
    const Prompts prompts(files.write("p", prompts_a_to_e));
    const auto file = files.write("real", answers_to("bd"));
    fs::permissions(file, fs::perms::owner_read | fs::perms::owner_write);
    fs::create_symlink(file, files.path("o"));
    files.write("real.sorted", "of a run that was killed");
    {
        Answers answers(files.path("o"), prompts, true);
        answers.write(0, answer_to('a'));
        answers.write(2, answer_to('c'));
        answers.write(4, answer_to('e'));
        CHECK(files.read("o") == answers_to("bdace"));
        answers.sort();
    }
    CHECK(files.read("real") == answers_to("abcde"));
    CHECK(fs::is_symlink(files.path("o")));
    CHECK(fs::status(file).permissions() == (fs::perms::owner_read | fs::perms::owner_write));
    CHECK_FALSE(fs::exists(files.path("real.sorted")));
}

TEST_CASE("ask: answers that cannot be written", "[ask]") {
    const FilesOfAsk files;
    const Prompts prompts(files.write("p", prompts_a_to_e));
    Answers answers("/dev/full", prompts, false);
    CHECK_THROWS_MATCHES(answers.write(0, answer_to('a')), std::runtime_error, Message("cannot write '/dev/full'"));
}

TEST_CASE("ask: lines come in order, each as soon as it can", "[ask]") {
    std::mt19937 random(GENERATE(1U, 2U, 3U, 4U, 5U));
    std::vector<std::size_t> order(100);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::shuffle(order, random);
    support::LinesInOrder lines;
    std::vector<std::size_t> written;
    std::vector<bool> come(order.size());
    for (const std::size_t position : order) {
        const bool has_line = position % 7 != 3;
        come[position] = true;
        lines.put(position, has_line ? std::to_string(position) : "", [&](std::size_t at, const std::string& line) {
            CHECK(line == std::to_string(at));
            written.push_back(at);
        });
        const auto gap = std::ranges::find(come, false);
        CHECK(lines.passed() == static_cast<std::size_t>(gap - come.begin()));
        const auto with_lines = std::count_if(order.begin(), order.end(),
                                              [&](std::size_t each) { return each < lines.passed() && each % 7 != 3; });
        CHECK(written.size() == static_cast<std::size_t>(with_lines));
    }
    CHECK(std::ranges::is_sorted(written));
    CHECK(lines.passed() == order.size());
}

TEST_CASE("ask: lines behind a gap are written in the end", "[ask]") {
    support::LinesInOrder lines;
    std::string written;
    const auto write = [&](std::size_t, const std::string& line) { written += line; };
    for (const std::size_t position : {5U, 0U, 3U, 2U}) lines.put(position, std::to_string(position), write);
    CHECK(written == "0");
    lines.put_rest(write);
    CHECK(written == "0235");
    lines.put_rest(write);
    CHECK(written == "0235");
}

TEST_CASE("ask: the source has the prompts without an answer", "[ask]") {
    const FilesOfAsk files;
    Prompts prompts(files.write("p", prompts_a_to_e));
    const Answers answers(files.write("o", answers_to("ad")), prompts, true);
    asio::io_context context(1);
    PromptSource source(context.get_executor(), prompts, answers, 10);
    CHECK(source.size() == 3);
    run_in(context, [&]() -> asio::awaitable<void> {
        std::string taken;
        while (const auto query = co_await source.next()) taken += query->id.str() + '=' + query->text + ' ';
        CHECK(taken == "b=B? c=C? e=E? ");
        CHECK_FALSE(co_await source.next());
    });
    CHECK(source.position(0) == 1);
    CHECK(source.position(1) == 2);
    CHECK(source.position(2) == 4);
}

TEST_CASE("ask: the source waits while too many prompts are ahead of the first", "[ask]") {
    const FilesOfAsk files;
    Prompts prompts(files.write("p", prompts_a_to_e));
    const Answers answers(files.path("o"), prompts, false);
    asio::io_context context(1);
    PromptSource source(context.get_executor(), prompts, answers, 2);
    std::string taken;
    const auto take = [&]() -> asio::awaitable<void> {
        while (const auto query = co_await source.next()) taken += query->id.str();
    };
    asio::co_spawn(context, take, [](const std::exception_ptr& error) { CHECK_FALSE(error); });
    context.run_one();
    context.poll();
    CHECK(taken == "ab");
    source.pass(1);
    context.poll();
    CHECK(taken == "abc");
    source.pass(1);
    context.poll();
    CHECK(taken == "abc");
    source.pass(3);
    context.poll();
    CHECK(taken == "abcde");
    source.pass(5);
}

TEST_CASE("ask: the lines of answers and of failures", "[ask]") {
    const sluice::Query query("a", "A \"quoted\" prompt");
    sluice::StageResult<> run("a", "answer");
    run.attempts = 2;
    CHECK(openai::answer_line(query, run, {"Yes.\n", "stop", sluice::Cost{1, 12, 3}}) ==
          R"({"id":"a","answer":"Yes.\n","finish_reason":"stop","attempts":2,"input_tokens":12,"output_tokens":3})");
    CHECK(openai::answer_line(query, run, {"Yes.", "", {}}) ==
          R"({"id":"a","answer":"Yes.","finish_reason":"","attempts":2,"input_tokens":null,"output_tokens":null})");

    run.reason = sluice::Reason::model;
    run.error = std::make_exception_ptr(sluice::ModelError("no", {.kind = sluice::Verdict::invalid}, 400));
    const std::string failed = openai::failed_line(query, run);
    CHECK(failed == R"({"id":"a","prompt":"A \"quoted\" prompt","stage":"answer","reason":"model","error":"no",)"
                    R"("status":400,"attempts":2})");
    const auto again = openai::parse_prompt("f", 1, failed);
    CHECK(again.id == "a");
    CHECK(again.text == query.text);

    run.error = std::make_exception_ptr(sluice::ModelError("no connection"));
    CHECK(openai::failed_line(query, run).ends_with(R"("error":"no connection","status":null,"attempts":2})"));

    run.reason = sluice::Reason::timeout;
    run.error = std::make_exception_ptr(sluice::TimeoutError(std::chrono::seconds(60)));
    CHECK(openai::failed_line(query, run) ==
          R"({"id":"a","prompt":"A \"quoted\" prompt","stage":"answer","reason":"timeout",)"
          R"("error":"timed out after 60000 ms","status":null,"attempts":2})");
}

TEST_CASE("ask: what the server without --model refuses", "[ask]") {
    const auto behaviour = [](std::string text) {
        openai::ScriptedRequest request;
        request.texts = {std::move(text)};
        return openai::demonstrate(request);
    };
    CHECK(behaviour("please refuse").status == 400);
    CHECK(behaviour("please fail").status == 500);
    CHECK(behaviour("slowly").delay == std::chrono::hours(1));
    CHECK_FALSE(behaviour("Why?").status);
    CHECK_FALSE(openai::demonstrate({}).status);
}
