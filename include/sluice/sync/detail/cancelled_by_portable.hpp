// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/canceller.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/frame_pool.hpp>

#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>

#include <exception>
#include <type_traits>
#include <utility>

namespace sluice::detail {

// What cancelled_by() returns, by means of Asio's interface: the body has a coroutine thread of its own.
template <class T, class Executor>
class [[nodiscard]] CancelledBy {
public:
    CancelledBy(Canceller& canceller, OptionalValue<T>& result, boost::asio::awaitable<T, Executor> body) noexcept
        : canceller_(canceller), result_(result), body_(std::move(body)) {}
    ~CancelledBy() { canceller_.slot().clear(); }

    CancelledBy(const CancelledBy&) = delete;  // the handlers in the slots hold its address
    CancelledBy& operator=(const CancelledBy&) = delete;

    // Constrained, since co_await asks of every operand whether it can be called with a coroutine frame.
    template <boost::asio::completion_token_for<void(std::exception_ptr)> Token>
    auto operator()(Token&& token) {
        return boost::asio::async_initiate<Token, void(std::exception_ptr)>(
            [this](auto&& handler) { this->start(std::forward<decltype(handler)>(handler)); }, token);
    }

private:
    struct AtEnd {
        Canceller& canceller;
        ~AtEnd() { canceller.ended(); }
    };

    template <class Handler>
    void start(Handler&& handler) {
        relay_.connect(boost::asio::get_associated_cancellation_slot(handler), canceller_);
        const Executor executor = boost::asio::get_associated_executor(handler);
        // Posted, so that neither bodies inside bodies nor their ends nest on the stack.
        auto on_end = [executor, handler = std::forward<Handler>(handler)](const std::exception_ptr& error) mutable {
            boost::asio::post(executor, [handler = std::move(handler), error]() mutable { std::move(handler)(error); });
        };
        boost::asio::co_spawn(executor, run(Pooled(), *this, executor),
                              boost::asio::bind_cancellation_slot(signal_.slot(), std::move(on_end)));
    }

    static boost::asio::awaitable<void, Executor> run(Pooled, CancelledBy& self, Executor executor) {
        co_await boost::asio::this_coro::reset_cancellation_state(boost::asio::enable_total_cancellation());
        co_await boost::asio::post(executor, boost::asio::deferred);
        if (self.canceller_.cancelled()) {
            throw operation_aborted("cancelled_by");
        }
        // Not earlier: in Boost 1.83 the cancellation of a coroutine that has not begun escapes into the event loop.
        self.canceller_.slot().assign([&self](boost::asio::cancellation_type type) { self.signal_.emit(type); });
        const AtEnd at_end{self.canceller_};
        if constexpr (std::is_void_v<T>) {
            co_await std::move(self.body_);
            self.result_.emplace();
        } else {
            self.result_.emplace(co_await std::move(self.body_));
        }
    }

    Canceller& canceller_;
    OptionalValue<T>& result_;
    boost::asio::awaitable<T, Executor> body_;
    boost::asio::cancellation_signal signal_;
    CancellationRelay relay_;
};

template <class T, class Executor>
auto cancelled_by(Canceller& canceller, OptionalValue<T>& result, boost::asio::awaitable<T, Executor> body) {
    return CancelledBy<T, Executor>(canceller, result, std::move(body));
}

}  // namespace sluice::detail
