// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/require.hpp>
#include <sluice/sync/timer.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace sluice::testing {

/// One call in the script of a ScriptedModel: it waits, and then throws `error` if there is one, or else returns
/// `answer`.
template <class Value>
struct ScriptedCall {
    std::optional<Value> answer{};
    std::exception_ptr error = std::exception_ptr(nullptr);  // g++ 12 crashes on a plain nullptr
    std::chrono::nanoseconds latency{};
};

/// A model function for tests. It follows a script, which is a list or a function, counts its calls, and checks how
/// many run at once.
///
/// @code
/// using Model = sluice::testing::ScriptedModel<std::string(const std::string&)>;
/// const auto busy = std::make_exception_ptr(std::runtime_error("busy"));
/// Model classify({{.error = busy, .latency = 20ms}, {.answer = "question", .latency = 30ms}}, 1);
/// Model echo([](std::size_t, const std::string& text) { return Model::Call{.answer = text, .latency = 5ms}; });
/// sluice::Stage stage(timed, "classify", 1, classify, sluice::StageOptions{.retry = {.max_retries = 1}});
/// @endcode
///
/// A handle: copies are the same model, so that a stage has one and the test another.
///
/// A call that the script or the limit does not allow throws a `std::logic_error`. A stage takes that for a failure of
/// the model like any other, and may retry it; so a test also looks at calls() and most_running().
///
/// @tparam Signature `Value(Args...)`: the value that a call returns, and the parameters of the model function.
/// @tparam T The timer to wait with.
/// @tparam Executor The executor of the model's coroutines.
///
/// @par Thread safety
/// Distinct models: as safe as their timers, so unsafe on one virtual time. Copies of one model: unsafe. They belong to
/// one thread or strand.
///
/// @par Lifetime
/// The state that copies share lives until the last of them is gone and no call runs.
template <class Signature, Timer T = VirtualTimer, class Executor = boost::asio::any_io_executor>
class ScriptedModel;

template <class Value, class... Args, Timer T, class Executor>
class ScriptedModel<Value(Args...), T, Executor> {
public:
    using Call = ScriptedCall<Value>;
    using Script = std::function<Call(std::size_t number, const Args&... args)>;

    /// @param script Returns what call `number`, from 0, does with these arguments. What it throws, the call throws.
    /// @param limit How many calls may run at once; at least 1.
    /// @throws std::invalid_argument if `script` is empty, or naming `limit` and its value if that is less than 1.
    explicit ScriptedModel(Script script, std::ptrdiff_t limit = std::numeric_limits<std::ptrdiff_t>::max())
        : state_(std::make_shared<State>(std::move(script), limit)) {}

    /// @param calls What each call does, in the order in which they begin. No further call is allowed.
    /// @param limit How many calls may run at once; at least 1.
    /// @throws std::invalid_argument naming `limit` and its value if that is less than 1.
    explicit ScriptedModel(std::vector<Call> calls, std::ptrdiff_t limit = std::numeric_limits<std::ptrdiff_t>::max())
        : ScriptedModel(
              [listed = std::move(calls)](std::size_t number, const Args&...) {
                  if (number >= listed.size()) {
                      throw mistake("call " + std::to_string(number) + " is not in the script");
                  }
                  return listed[number];
              },
              limit) {}

    /// When awaited, makes a call: waits for its latency, and then fails or returns its answer.
    ///
    /// @throws std::logic_error if more calls run than the limit allows, if the list has ended, or if the script says
    /// neither answer nor error.
    ///
    /// @par Cancellation
    /// The types that the timer supports. The call ends with `operation_aborted`.
    boost::asio::awaitable<Value, Executor> operator()(Args... args) const {
        return run(state_, std::forward<Args>(args)...);
    }

    std::size_t calls() const noexcept { return state_->calls; }         ///< Calls that have begun.
    std::ptrdiff_t running() const noexcept { return state_->running; }  ///< Calls that have begun and not ended.
    std::ptrdiff_t most_running() const noexcept { return state_->most_running; }  ///< The most calls at once so far.

private:
    struct State {
        State(Script its_script, std::ptrdiff_t its_limit)
            : script(std::move(its_script)),
              limit(sluice::detail::require(its_limit >= 1, "ScriptedModel", "limit must be at least 1", its_limit)) {
            if (!script) {
                throw std::invalid_argument("ScriptedModel: the script must not be empty");
            }
        }

        const Script script;
        const std::ptrdiff_t limit;
        std::size_t calls = 0;
        std::ptrdiff_t running = 0;
        std::ptrdiff_t most_running = 0;
    };

    // A call, from its beginning to its end.
    class Running {
    public:
        explicit Running(State& state) noexcept : state_(state) {
            state_.most_running = std::max(state_.most_running, ++state_.running);
        }
        ~Running() { --state_.running; }

        Running(const Running&) = delete;
        Running& operator=(const Running&) = delete;

    private:
        State& state_;
    };

    static std::logic_error mistake(const std::string& what) { return std::logic_error("ScriptedModel: " + what); }

    static boost::asio::awaitable<Value, Executor> run(std::shared_ptr<State> state, Args... args) {
        const Running running(*state);
        const std::size_t number = state->calls++;
        if (state->running > state->limit) {
            throw mistake(std::to_string(state->running) + " calls run at once, and the limit is " +
                          std::to_string(state->limit));
        }
        Call call = state->script(number, args...);
        if (call.latency.count() > 0) {
            co_await sleep_for<T, Executor>(call.latency);
        }
        if (call.error) {
            std::rethrow_exception(call.error);
        }
        if (!call.answer) {
            throw mistake("call " + std::to_string(number) + " has neither an answer nor an error");
        }
        co_return *std::move(call.answer);
    }

    std::shared_ptr<State> state_;
};

}  // namespace sluice::testing
