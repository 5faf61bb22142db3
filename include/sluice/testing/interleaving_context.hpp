// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/testing/virtual_time.hpp>

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/execution/blocking.hpp>
#include <boost/asio/execution/context.hpp>
#include <boost/asio/execution_context.hpp>

#include <cstddef>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace sluice::testing {

/// An execution context that runs its handlers one at a time on the calling thread, in an order that the test chooses.
/// So a test can try many interleavings, and repeat any of them.
///
/// No handler runs inside the call that submits it, not even by dispatch. Time is virtual; use VirtualTimer.
class InterleavingContext : public boost::asio::execution_context {
public:
    /// Submits to an InterleavingContext.
    class executor_type {
    public:
        explicit executor_type(InterleavingContext& context) noexcept : context_(&context) {}

        template <class Function>
        void execute(Function&& function) const {
            context_->ready_.push_back(Handler(std::forward<Function>(function)));
        }

        InterleavingContext& query(boost::asio::execution::context_t) const noexcept { return *context_; }
        static constexpr boost::asio::execution::blocking_t query(boost::asio::execution::blocking_t) noexcept {
            return boost::asio::execution::blocking.never;
        }
        executor_type require(boost::asio::execution::blocking_t::never_t) const noexcept { return *this; }

        friend bool operator==(const executor_type&, const executor_type&) noexcept = default;

    private:
        InterleavingContext* context_;
    };

    /// Chooses the next of `n` > 1 ready handlers: returns its index, less than `n`, in the order of submission.
    using Choose = std::function<std::size_t(std::size_t n)>;

    /// @throws std::invalid_argument if `choose` is empty.
    explicit InterleavingContext(Choose choose) : choose_(std::move(choose)), time_(VirtualTime::of(*this)) {
        if (!choose_) {
            throw std::invalid_argument("InterleavingContext: choose must not be empty");
        }
        time_.complete_separately();
    }

    ~InterleavingContext() {
        shutdown();  // drops pending waits, and submits the destruction of their coroutines
        while (!ready_.empty()) {
            take(ready_.size() - 1);
        }
        destroy();
    }

    InterleavingContext(const InterleavingContext&) = delete;
    InterleavingContext& operator=(const InterleavingContext&) = delete;

    executor_type get_executor() noexcept { return executor_type(*this); }

    /// Runs one handler, after advancing virtual time if none is ready. Returns false if there is nothing to do.
    ///
    /// Rethrows what the handler throws.
    /// @throws std::out_of_range if the chosen index is not less than `n`; every handler is still ready then.
    bool run_one() {
        time_.complete_due();
        while (ready_.empty()) {
            if (!time_.advance()) {
                return false;
            }
        }
        const std::size_t n = ready_.size();
        const std::size_t chosen = n == 1 ? 0 : choose_(n);
        if (chosen >= n) {
            throw std::out_of_range("InterleavingContext: the chosen handler must be less than " + std::to_string(n) +
                                    ", got " + std::to_string(chosen));
        }
        take(chosen)();
        return true;
    }

    /// Runs until there is nothing to do, and returns the elapsed virtual time. A coroutine may still wait for
    /// something that never happens: check that those you started have ended.
    VirtualClock::duration run() {
        const auto begin = time_.now();
        while (run_one()) {
        }
        return time_.now() - begin;
    }

    std::size_t ready() const noexcept { return ready_.size(); }

private:
    using Handler = boost::asio::any_completion_handler<void()>;

    Handler take(std::size_t index) {
        Handler handler = std::move(ready_[index]);
        ready_.erase(ready_.begin() + static_cast<std::ptrdiff_t>(index));
        return handler;
    }

    Choose choose_;
    VirtualTime& time_;
    std::vector<Handler> ready_;  // in the order of submission
};

}  // namespace sluice::testing
