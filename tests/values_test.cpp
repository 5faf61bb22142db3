// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/checkpoint.hpp>
#include <sluice/pipeline/drain.hpp>
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/retry.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/sync/stage_semaphore.hpp>
#include <sluice/testing/run.hpp>

#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/multiple_exceptions.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>

#include <algorithm>
#include <chrono>
#include <compare>
#include <concepts>
#include <exception>
#include <initializer_list>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;
using namespace std::string_literals;
using namespace std::string_view_literals;
using sluice::Checkpoint;
using sluice::DrainReport;
using sluice::InferencePipelineOptions;
using sluice::PipelineOptions;
using sluice::PipelineResult;
using sluice::Query;
using sluice::RecordResult;
using sluice::SharedString;
using sluice::Slot;
using sluice::StageError;
using sluice::StageOptions;
using sluice::StageResult;
using sluice::testing::run;
using test::Live;
using test::Task;
using Void = asio::awaitable<void>;

using SystemTime = std::chrono::system_clock::time_point;

static_assert(std::convertible_to<const char*, SharedString> && std::convertible_to<std::string, SharedString> &&
              std::convertible_to<std::string_view, SharedString>);
static_assert(std::convertible_to<SharedString, const std::string&> &&
              std::convertible_to<SharedString, std::string_view> && std::convertible_to<SharedString, std::string>);
static_assert(std::is_nothrow_default_constructible_v<SharedString> &&
              std::is_nothrow_copy_constructible_v<SharedString> && std::is_nothrow_move_constructible_v<SharedString>);

struct Profile {
    std::optional<std::string> name;
    std::optional<std::vector<Live>> visits;
};
struct Luggage {  // of a record that may only be moved
    std::optional<std::unique_ptr<int>> content;
};
static_assert(std::is_nothrow_move_constructible_v<Checkpoint<Profile>> &&
              std::is_nothrow_move_constructible_v<RecordResult<Profile>> &&
              std::is_nothrow_move_constructible_v<DrainReport<Profile>>);
static_assert(std::is_nothrow_move_constructible_v<Checkpoint<Luggage>> &&
              std::is_nothrow_move_constructible_v<RecordResult<Luggage>> &&
              !std::copy_constructible<Checkpoint<Luggage>> && !std::copy_constructible<RecordResult<Luggage>>);
static_assert(std::copyable<Checkpoint<Profile>> && std::copyable<RecordResult<int>> &&
              std::copyable<DrainReport<int>>);
static_assert(!std::convertible_to<RecordResult<Profile>, Checkpoint<Profile>> &&  // it drops what the stages said
              std::constructible_from<Checkpoint<Profile>, RecordResult<Profile>>);
static_assert(std::totally_ordered<SharedString> && std::three_way_comparable<SharedString, std::strong_ordering>);

static_assert(std::is_nothrow_default_constructible_v<StageError> &&
              std::convertible_to<std::exception_ptr, StageError>);
static_assert(sizeof(StageError) == sizeof(std::exception_ptr));  // carrying an error costs a pointer
static_assert(sizeof(sluice::Slot) == 2 * sizeof(void*));         // it knows nothing of rates, pauses and breakers
static_assert(!std::convertible_to<StageError, bool> && std::constructible_from<bool, StageError>);

// g++ 12 copies an aggregate that is a temporary in the operand of co_await bitwise, and destroys it twice.
static_assert(!std::is_aggregate_v<Query> && !std::is_aggregate_v<StageResult<>> &&
              !std::is_aggregate_v<StageResult<int>> && !std::is_aggregate_v<PipelineResult<int, int, int>> &&
              !std::is_aggregate_v<RecordResult<int>> && !std::is_aggregate_v<Checkpoint<int>> &&
              !std::is_aggregate_v<DrainReport<int>> && !std::is_aggregate_v<Slot> &&
              !std::is_aggregate_v<SharedString> && !std::is_aggregate_v<StageError>);
template <class T>
concept HarmlessAggregate = std::is_aggregate_v<T> && std::is_trivially_copyable_v<T>;
static_assert(HarmlessAggregate<StageOptions> && HarmlessAggregate<InferencePipelineOptions> &&
              HarmlessAggregate<PipelineOptions> && HarmlessAggregate<sluice::EndpointOptions> &&
              HarmlessAggregate<sluice::RetryPolicy> && HarmlessAggregate<sluice::Backoff> &&
              HarmlessAggregate<sluice::StageLimits>);

// The StageError of a thrown `exception`.
template <class Exception>
StageError error_of(Exception exception) {
    try {
        throw exception;
    } catch (...) {
        return StageError(std::current_exception());
    }
}

struct Custom : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Unrelated {};

struct Left : std::exception {};
struct Right : std::exception {};
struct Ambiguous : Left, Right {};  // not caught as a std::exception

constexpr sluice::RetryPolicy policy{.max_retries = 1, .retry_if = [](const std::exception_ptr&) { return true; }};

const std::string long_text(100, 'x');  // too long for the small-string optimisation

template <class T>
asio::awaitable<T> pass(T value) {
    co_await test::yield();
    co_return value;
}

template <class T>
asio::awaitable<void> drop(T) {
    co_await test::yield();
}

asio::awaitable<std::string> text_of(Query query) {
    co_await test::yield();
    co_return query.id.str() + "/" + query.text;
}

// Runs `function`, a coroutine, to its end.
template <class Function>
void run_coroutine(Function function) {
    asio::io_context context;
    Task task(context.get_executor(), std::move(function));
    run(context);
    REQUIRE(task.succeeded());
}

TEST_CASE("stage error: an exception whose what() is null has no message", "[values]") {
    struct Mute : std::exception {
        const char* what() const noexcept override { return nullptr; }
    };
    CHECK(StageError(std::make_exception_ptr(Mute())).message() == "an exception that carries no message");
}

}  // namespace

TEST_CASE("shared string: it converts from and to every kind of string", "[values]") {
    const char* c_string = "abc";
    for (const SharedString& text : {SharedString(c_string), SharedString("abc"s), SharedString("abc"sv)}) {
        CHECK(text.str() == "abc");
        const std::string string = text;
        const std::string& reference = text;
        const std::string_view view = text;
        CHECK(string == "abc");
        CHECK(&reference == &text.str());
        CHECK(view.data() == text.str().data());
        CHECK(std::string(text) == "abc");
        CHECK(std::string_view(text) == "abc");
        std::ostringstream out;
        out << text << '!';
        CHECK(out.str() == "abc!");
    }
    SharedString text;
    text = "assigned";
    CHECK(text == "assigned");
    text = "again"s;
    CHECK(text == "again");
    std::string string;
    string = text;
    CHECK(string == "again");
}

TEST_CASE("shared string: a null pointer is rejected", "[values]") {
    const char* none = nullptr;
    CHECK_THROWS_WITH(SharedString(none), "SharedString: must not be made of a null pointer");
    CHECK_THROWS_AS(sluice::Query(none, "text"), std::invalid_argument);
}

TEST_CASE("shared string: it holds any characters and any number of them", "[values]") {
    const std::string with_null("a\0b", 3);
    CHECK(SharedString(with_null).str() == with_null);
    CHECK(SharedString(std::string_view(with_null)).str().size() == 3);
    const std::string large(1'000'000, 'y');
    CHECK(SharedString(large) == large);
}

TEST_CASE("shared string: it is empty by default and after being moved from", "[values]") {
    SharedString text;
    CHECK(text.empty());
    CHECK(text.str().empty());
    CHECK(text == "");
    CHECK(text == SharedString(""));
    CHECK(SharedString("").empty());
    text = SharedString(long_text);
    CHECK_FALSE(text.empty());
    const SharedString taken = std::move(text);
    CHECK(taken == long_text);
    CHECK(text.empty());  // NOLINT(bugprone-use-after-move)
    text = SharedString("again");
    CHECK(text == "again");
    CHECK(&SharedString().str() == &SharedString().str());
}

TEST_CASE("shared string: copies share their characters and outlive the original", "[values]") {
    auto original = std::make_unique<SharedString>(long_text);
    const SharedString copy = *original;
    SharedString assigned;
    assigned = copy;
    CHECK(&copy.str() == &original->str());
    CHECK(&assigned.str() == &copy.str());
    original.reset();
    CHECK(copy == long_text);
    assigned = "other";
    CHECK(copy == long_text);
}

TEST_CASE("shared string: an rvalue string is moved in", "[values]") {
    std::string text = long_text;
    const char* characters = text.data();
    const SharedString shared(std::move(text));
    CHECK(shared.str().data() == characters);
}

TEST_CASE("shared string: it compares by characters with every kind of string, in both directions", "[values]") {
    const SharedString a = "a";
    const SharedString b = "b";
    const SharedString other_a = "a"s;
    CHECK(a == other_a);
    CHECK(a != b);
    CHECK(a < b);
    CHECK(b >= a);
    CHECK((a <=> other_a) == std::strong_ordering::equal);
    CHECK((a <=> b) == std::strong_ordering::less);
    CHECK(SharedString() < a);
    CHECK((a == "a" && "a" == a && a != "b" && "b" != a));
    CHECK((a == "a"s && "a"s == a && a != "b"s && "b"s != a));
    CHECK((a == "a"sv && "a"sv == a && a != "b"sv && "b"sv != a));
    std::vector<SharedString> texts{"c", "a", "b"};
    std::ranges::sort(texts);
    CHECK(texts == std::vector<SharedString>{"a", "b", "c"});
}

TEST_CASE("stage error: without an exception, its type and message are empty", "[values]") {
    for (const StageError& none : {StageError(), StageError(nullptr)}) {
        CHECK_FALSE(none);
        CHECK(none.exception() == nullptr);
        CHECK(none.type().empty());
        CHECK(none.message().empty());
    }
}

TEST_CASE("stage error: it has the type and the message of a std::exception", "[values]") {
    CHECK(error_of(std::runtime_error("boom")).type() == "std::runtime_error");
    CHECK(error_of(std::runtime_error("boom")).message() == "boom");
    CHECK(error_of(Custom("mine")).type().ends_with("Custom"));  // the type that was thrown, not a base
    CHECK(error_of(Custom("mine")).message() == "mine");
    CHECK(error_of(std::runtime_error("")).message().empty());
    CHECK(error_of(std::bad_alloc()).type() == "std::bad_alloc");
    CHECK(error_of(std::system_error(std::make_error_code(std::errc::timed_out), "model"))
              .message()
              .starts_with("model"));
}

TEST_CASE("stage error: it has the type and the text of a thrown string", "[values]") {
    CHECK(error_of("a std::string"s).message() == "a std::string");
    CHECK(error_of("a std::string"s).type().find("basic_string") != std::string::npos);
    CHECK(error_of(static_cast<const char*>("characters")).message() == "characters");
    CHECK(error_of(static_cast<const char*>("characters")).type() == "char const*");
    char writable[] = "writable";
    CHECK(error_of(static_cast<char*>(writable)).message() == "writable");
    CHECK(error_of(static_cast<char*>(writable)).type() == "char*");
}

TEST_CASE("stage error: a thrown null string still has a message", "[values]") {
    const StageError error = error_of(static_cast<const char*>(nullptr));
    CHECK(error);
    REQUIRE_NOTHROW(error.message());
    CHECK_FALSE(error.message().empty());
}

TEST_CASE("stage error: it has the type of anything else, and says that there is no message", "[values]") {
    for (const auto& [error, type] : std::initializer_list<std::pair<StageError, const char*>>{
             {error_of(42), "int"},
             {error_of(4.5), "double"},
             {error_of(Unrelated()), "Unrelated"},
             {error_of(Ambiguous()), "Ambiguous"},
#if defined(_LIBCPP_VERSION)
             {error_of(std::make_shared<int>(1)), "std::__1::shared_ptr<int>"},
#else
             {error_of(std::make_shared<int>(1)), "std::shared_ptr<int>"},
#endif
         }) {
        CHECK(error);
        CHECK(error.type().ends_with(type));
        CHECK(error.message() == "an exception that carries no message");
    }
    CHECK(error_of(42).type() == "int");
}

namespace {

// `inner` nested in an exception of another type.
template <class Inner>
std::exception_ptr nested(Inner inner, const char* outer) {
    return test::nested_in_logic_error(std::make_exception_ptr(inner), outer);
}

}  // namespace

TEST_CASE("stage error: it has the message of a thrown error_code", "[values]") {
    const auto refused = boost::asio::error::make_error_code(boost::asio::error::connection_refused);
    CHECK(error_of(refused).message() == refused.message());
    CHECK(error_of(refused).type() == "boost::system::error_code");
    const auto timed_out = std::make_error_code(std::errc::timed_out);
    CHECK(error_of(timed_out).message() == timed_out.message());
}

TEST_CASE("stage error: of several exceptions it reports the first", "[values]") {
    const StageError several(std::make_exception_ptr(
        boost::asio::multiple_exceptions(std::make_exception_ptr(Custom("connection refused")))));
    CHECK(several.type().ends_with("Custom"));
    CHECK(several.message() == "connection refused");
    const StageError again(std::make_exception_ptr(
        boost::asio::multiple_exceptions(several.exception())));  // as two && in a row nest them
    CHECK(again.message() == "connection refused");
    CHECK(error_of(boost::asio::multiple_exceptions(nullptr)).message() == "multiple exceptions");
}

TEST_CASE("stage error: the messages of nested exceptions are appended", "[values]") {
    const StageError two(nested(Custom("connection refused"), "no answer"));
    CHECK(two.type() == "std::logic_error");
    CHECK(two.message() == "no answer: connection refused");
    const StageError of_int(nested(42, "no answer"));
    CHECK(of_int.message() == "no answer: an exception that carries no message");
    const StageError three(
        nested(boost::asio::multiple_exceptions(nested("at last"s, "in the middle")), "to begin with"));
    CHECK(three.message() == "to begin with: in the middle: at last");
}

TEST_CASE("stage error: it holds the exception itself, and copies share it", "[values]") {
    const auto exception = std::make_exception_ptr(Custom("shared"));
    const StageError error = exception;
    const StageError copy = error;
    CHECK(error.exception() == exception);
    CHECK(copy.exception() == exception);
    CHECK_THROWS_AS(std::rethrow_exception(copy.exception()), Custom);
    CHECK(copy.message() == "shared");
    CHECK(copy.message() == "shared");  // reading it changes nothing
}

TEST_CASE("stage error: it can be read while another exception is being handled", "[values]") {
    const StageError error = error_of(42);
    try {
        throw std::logic_error("other");
    } catch (const std::logic_error&) {
        CHECK(error.type() == "int");
        CHECK(error_of("text"s).message() == "text");
        CHECK(StageError(std::current_exception()).message() == "other");
    }
    CHECK(std::current_exception() == nullptr);
}

TEST_CASE("query: it holds id, text and timestamp", "[values]") {
    const SystemTime when(5s);
    const Query query("q1", "What is it?", when);
    CHECK(query.id == "q1");
    CHECK(query.text == "What is it?");
    CHECK(query.timestamp == when);
    const Query braced{"q2", "text", when};
    const Query copied = {"q3", "text"};
    CHECK(braced.id == "q2");
    CHECK(copied.text == "text");
    CHECK(copied.timestamp > SystemTime());  // the time of its construction
    const Query none;
    CHECK(none.id.empty());
    CHECK(none.text.empty());
    CHECK(none.timestamp == SystemTime());
    const Query copy = query;
    CHECK(&copy.id.str() == &query.id.str());
}

TEST_CASE("results: they start empty, with the given names", "[values]") {
    const StageResult<> plain("q", "classify");
    CHECK(plain.query_id == "q");
    CHECK(plain.stage == "classify");
    CHECK((plain.latency == 0ns && plain.queue_time == 0ns && plain.attempts == 0));
    CHECK_FALSE(plain.success);
    CHECK_FALSE(plain.error);
    StageResult<std::string> with_data("q", "extract");
    CHECK(with_data.stage == "extract");
    CHECK_FALSE(with_data.data);
    with_data.data = "found";
    with_data.attempts = 2;
    const StageResult<> sliced = with_data;  // the part that a pipeline keeps
    CHECK(sliced.stage == "extract");
    CHECK(sliced.attempts == 2);
    const PipelineResult<int, std::string, double> result(Query("q", "text"));
    CHECK(result.query.id == "q");
    CHECK_FALSE((result.intent || result.entities || result.response || result.completed || result.dead_letter_error));
    CHECK(result.stage_results.empty());
}

TEST_CASE("results: those with a record start with an empty one, and make a checkpoint", "[values]") {
    int live = 0;
    {
        RecordResult<Profile> result(Query("q", "text"));
        CHECK(result.query.id == "q");
        CHECK_FALSE((result.completed || result.unfinished || result.failure() || result.dead_letter_error));
        CHECK_FALSE((result.record.name || result.record.visits));
        result.stage_results.emplace_back("q", "first");
        result.stage_results.emplace_back("q", "second");
        result.failed = 1;
        CHECK(result.failure() == &result.stage_results[1]);
        result.record.name = long_text;
        result.record.visits.emplace(2, Live(live));
        const char* const characters = result.record.name->data();
        const Checkpoint<Profile> checkpoint(std::move(result));
        CHECK(checkpoint.query.id == "q");
        CHECK(checkpoint.record.name->data() == characters);  // it was moved
        CHECK(live == 2);
        const Checkpoint<Profile> copy = checkpoint;
        CHECK(copy.record.name == long_text);
        CHECK(live == 4);
    }
    CHECK(live == 0);
    const Checkpoint<Profile> none;
    CHECK(none.query.id.empty());
    CHECK_FALSE(none.record.name);
    const DrainReport<Profile> report;
    CHECK(report.completed + report.dead + report.cancelled + report.unfinished + report.checkpoints.size() == 0);
    constexpr PipelineOptions options;
    CHECK(options.max_in_backoff == 1000);
    CHECK(options.observer == nullptr);
}

TEST_CASE("temporaries in the operand of co_await: RecordResult, Checkpoint, DrainReport, options", "[values]") {
    int live = 0;
    run_coroutine([&]() -> Void {
        using Outcome = RecordResult<Profile>;
        const Outcome result = co_await pass(Outcome{Query{long_text, long_text}});
        co_await drop(Outcome{});
        Profile profile{long_text, std::vector<Live>(3, Live(live))};
        const Checkpoint<Profile> copied = co_await pass(Checkpoint<Profile>{Query{long_text, "text"}, profile});
        const Checkpoint<Profile> moved = co_await pass(Checkpoint<Profile>{Query{"q", long_text}, std::move(profile)});
        const Checkpoint<Profile> of_result = co_await pass(Checkpoint<Profile>{Outcome{Query{"r", long_text}}});
        co_await drop(Checkpoint<Profile>{});
        DrainReport<Profile> left;
        left.checkpoints.push_back(copied);
        left.checkpoints.push_back(copied);
        const DrainReport<Profile> report = co_await pass(co_await pass(std::move(left)));
        co_await drop(DrainReport<Profile>{report});
        const PipelineOptions options = co_await pass(PipelineOptions{.max_in_backoff = 7});
        co_await drop<PipelineOptions>({});
        CHECK(result.query.text == long_text);
        CHECK(copied.record.visits->size() == 3);
        CHECK(copied.query.id == long_text);
        CHECK(moved.record.name == long_text);
        CHECK(of_result.query.text == long_text);
        CHECK(options.max_in_backoff == 7);
        CHECK(report.checkpoints[1].record.visits->size() == 3);
        CHECK(live == 6 + 2 * 3);
    });
    CHECK(live == 0);
}

TEST_CASE("temporaries in the operand of co_await: Query", "[values]") {
    run_coroutine([]() -> Void {
        const std::string by_type = co_await text_of(Query{"id", "text"});
        const std::string braced = co_await text_of({"id", "text"});
        const std::string with_time = co_await text_of({"id", long_text, SystemTime()});
        const std::string parentheses = co_await text_of(Query(long_text, "text"));
        const Query passed = co_await pass(Query{SharedString(long_text), long_text});
        co_await drop(Query{});
        CHECK(by_type == "id/text");
        CHECK(braced == "id/text");
        CHECK(with_time == "id/" + long_text);
        CHECK(parentheses == long_text + "/text");
        CHECK(passed.id == long_text);
        CHECK(passed.text == long_text);
    });
}

TEST_CASE("temporaries in the operand of co_await: StageResult and PipelineResult", "[values]") {
    int live = 0;
    run_coroutine([&]() -> Void {
        using Data = StageResult<std::vector<Live>>;
        using Outcome = PipelineResult<std::string, Live, std::vector<Live>>;
        const Data data = co_await pass(Data{"q", long_text});
        const Data braced = co_await pass<Data>({long_text, "stage"});
        co_await drop(Data{});
        const StageResult<> plain = co_await pass(StageResult<>{long_text, long_text});
        const StageResult<> plain_braced = co_await pass<StageResult<>>({long_text, long_text});
        const Outcome result = co_await pass(Outcome{Query{long_text, long_text}});
        co_await drop(Outcome{});
        Outcome full(Query{"q", "text"});
        full.entities.emplace(live);
        full.response.emplace(3, Live(live));
        const Outcome full_passed = co_await pass(Outcome{full});
        const Outcome moved = co_await pass(Outcome{std::move(full)});
        CHECK(data.stage == long_text);
        CHECK(braced.query_id == long_text);
        CHECK(plain.stage == long_text);
        CHECK(plain_braced.stage == long_text);
        CHECK(result.query.text == long_text);
        CHECK(full_passed.response->size() == 3);
        CHECK(moved.response->size() == 3);
    });
    CHECK(live == 0);
}

TEST_CASE("temporaries in the operand of co_await: StageError and SharedString", "[values]") {
    run_coroutine([]() -> Void {
        const auto exception = std::make_exception_ptr(Custom(long_text));
        const StageError error = co_await pass(StageError{exception});
        const StageError converted = co_await pass<StageError>(exception);
        const SharedString text = co_await pass(SharedString{long_text});
        const SharedString from_literal = co_await pass<SharedString>("literal");
        const SharedString from_braces = co_await pass<SharedString>({long_text});
        CHECK(error.message() == long_text);
        CHECK(converted.message() == long_text);
        CHECK(text == long_text);
        CHECK(from_literal == "literal");
        CHECK(from_braces == long_text);
    });
}

TEST_CASE("temporaries in the operand of co_await: options, policies and limits", "[values]") {
    run_coroutine([]() -> Void {
        const sluice::RetryPolicy retry = co_await pass(sluice::RetryPolicy{policy});
        const sluice::RetryPolicy designated = co_await pass(
            sluice::RetryPolicy(3, {.initial = 1ms, .multiplier = 3, .cap = 9ms, .jitter = 0, .seed = 1}));
        const StageOptions options = co_await pass(StageOptions{.timeout = 5ms, .retry = policy});
        const StageOptions braced = co_await pass<StageOptions>({.timeout = 6ms, .retry = policy});
        const StageOptions nested = co_await pass<StageOptions>({.retry = {.max_retries = 1}});
        const InferencePipelineOptions all = co_await pass(
            InferencePipelineOptions{.classify = {.retry = policy}, .generate = {.timeout = 7ms}, .window = 3});
        co_await drop(StageOptions{});
        co_await drop(InferencePipelineOptions{});
        co_await drop<StageOptions>({});
        co_await drop<InferencePipelineOptions>({});
        const sluice::StageLimits limits =
            co_await pass<sluice::StageLimits>({.classify = 1, .extract = 2, .generate = 3});
        CHECK(retry.max_retries == 1);
        CHECK(retry.should_retry(1, std::make_exception_ptr(1)));
        CHECK(designated.delay(2) == 3ms);
        CHECK(options.timeout == 5ms);
        CHECK(braced.timeout == 6ms);
        CHECK(braced.retry.should_retry(1, std::make_exception_ptr(1)));
        CHECK(nested.retry.max_retries == 1);
        CHECK(all.generate.timeout == 7ms);
        CHECK(all.classify.retry.should_retry(1, std::make_exception_ptr(1)));
        CHECK(all.window == 3);
        CHECK(limits.extract == 2);
    });
}

TEST_CASE("temporaries in the operand of co_await: Slot", "[values]") {
    asio::io_context context;
    sluice::StageSemaphore semaphore(context.get_executor(), 3);
    Task task(context.get_executor(), [&]() -> Void {
        {
            const Slot kept = co_await pass(semaphore.try_acquire());
            const Slot acquired = co_await pass(co_await semaphore.acquire());
            CHECK(semaphore.active() == 2);
            co_await drop(Slot{semaphore.try_acquire()});
            CHECK(semaphore.active() == 2);
            co_await drop(Slot{});
            co_await drop<Slot>({});
            CHECK(semaphore.active() == 2);
            const Slot through_two = co_await pass(co_await pass(semaphore.try_acquire()));
            CHECK(semaphore.active() == 3);
        }
        CHECK(semaphore.active() == 0);
        for (int i = 0; i != 10; ++i) {
            co_await drop(co_await semaphore.acquire());
        }
        CHECK(semaphore.active() == 0);
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(semaphore.active() == 0);
}
