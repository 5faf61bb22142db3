// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/require.hpp>

#include <atomic>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

namespace sluice::testing {

/// The error that a Fuse throws unless it was given another.
class InjectedError : public std::runtime_error {
public:
    /// @param number The number of the point that throws, from 0.
    explicit InjectedError(int number) : std::runtime_error("error injected at point " + std::to_string(number)) {}
};

/// Injects one error into one run of a test: of all calls of point(), the one with a given number throws. fuse_each()
/// runs a test with every number.
///
/// A handle: copies count together, so that models, sinks and sources may each have one.
///
/// @par Thread safety
/// Distinct objects: safe. Shared objects: safe. So are copies, which may be used by different threads: exactly one
/// point throws.
///
/// @par Lifetime
/// The state that copies share lives until the last of them is gone.
class Fuse {
public:
    /// @param number The number of the point that throws, from 0.
    /// @param error What it throws; null for an InjectedError.
    /// @throws std::invalid_argument if `number` is negative.
    explicit Fuse(int number, std::exception_ptr error = nullptr)
        : state_(std::make_shared<State>(number,
                                         error ? std::move(error) : std::make_exception_ptr(InjectedError(number)))) {}

    /// A point at which the test may fail, such as the beginning of a call of a model, a sink, a save or a source.
    void point() const {
        if (state_->points.fetch_add(1) == state_->number) {
            std::rethrow_exception(state_->error);
        }
    }

    /// Whether a point has thrown. No further one does then.
    bool blown() const noexcept { return state_->points > state_->number; }

    /// The number of the point that throws, for messages of the test.
    int number() const noexcept { return state_->number; }

private:
    struct State {
        State(int at, std::exception_ptr thrown)
            : number(sluice::detail::require(at >= 0, "Fuse", "the number must not be negative", at)),
              error(std::move(thrown)) {}

        const int number;
        const std::exception_ptr error;
        std::atomic<int> points = 0;
    };

    std::shared_ptr<State> state_;
};

/// Systematic error injection: calls `test(fuse)` again and again, each time with a Fuse that throws at the next point,
/// until a call has no point left that could throw. So the last call is the one in which nothing is injected. Returns
/// the number of points, which is that of the other calls.
///
/// @code
/// const auto test = [](const sluice::testing::Fuse& fuse) {
///     const auto classify = [fuse](const std::string&) -> asio::awaitable<int> {
///         fuse.point();
///         co_return 1;
///     };
///     asio::io_context context;
///     sluice::Stage stage(context.get_executor(), "classify", 1, classify);
///     asio::co_spawn(context, stage.run("1", std::string("Why?")),
///                    [&](std::exception_ptr, auto result) { CHECK(result.success != fuse.blown()); });
///     context.run();
///     CHECK(stage.endpoint().active() == 0);
/// };
/// CHECK(sluice::testing::fuse_each(test) == 1);
/// @endcode
///
/// Each call sets up everything anew, and does the same as the one before up to the point that throws.
///
/// @param test May be stateful. What it throws leaves fuse_each(), and no further call is made.
/// @param error What the points throw; null for an InjectedError.
/// @throws std::logic_error if a point still throws in the 10,000th call.
template <class Test>
int fuse_each(Test test, const std::exception_ptr& error = nullptr) {
    constexpr int most_calls = 10'000;
    for (int number = 0; number != most_calls; ++number) {
        const Fuse fuse(number, error);
        test(fuse);
        if (!fuse.blown()) {
            return number;
        }
    }
    throw std::logic_error("sluice::testing::fuse_each: after " + std::to_string(most_calls) +
                           " calls, the test still has a point that throws; does it have ever more of them?");
}

}  // namespace sluice::testing
