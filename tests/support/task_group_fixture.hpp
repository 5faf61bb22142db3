// SPDX-License-Identifier: BSL-1.0
// Children for the tests of task groups, and a log of what they do.
#pragma once

#include "task.hpp"

#include <sluice/sync/task_group.hpp>

#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/error_code.hpp>
#include <boost/system/system_error.hpp>

#include <chrono>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace test {

using Void = asio::awaitable<void>;
using Log = std::vector<std::string>;

struct Boom : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// The message of the Boom with which a task failed; "something else" for another exception, "" for none.
template <class T>
std::string boom_of(const Task<T>& task) {
    try {
        if (auto error = task.error()) {
            std::rethrow_exception(error);
        }
    } catch (const Boom& boom) {
        return boom.what();
    } catch (...) {
        return "something else";
    }
    return {};
}

/// Logs its destruction.
struct Goodbye {
    Goodbye(Log& to, std::string what) : log(&to), text(std::move(what)) {}
    Goodbye(Goodbye&& other) noexcept : log(std::exchange(other.log, nullptr)), text(std::move(other.text)) {}
    Goodbye& operator=(Goodbye&&) = delete;
    ~Goodbye() {
        if (log) {
            log->push_back(text);
        }
    }
    Log* log;
    std::string text;
};

/// Starts a coroutine that runs `body` in a task group.
template <class Body>
auto start_group(asio::io_context& context, Body body) {
    using Value = typename std::invoke_result_t<Body&, sluice::TaskGroup&>::value_type;
    return Task<Value>(context.get_executor(),
                       [body = std::move(body)]() mutable { return sluice::with_task_group(std::move(body)); });
}

inline Void fail_after(std::chrono::nanoseconds delay, std::string what) {
    co_await sleep(delay);
    throw Boom(what);
}

/// Works, then logs that it is done. If it is cancelled before that, cleans up and logs that instead.
inline Void tidy(Log& log, std::string name, std::chrono::nanoseconds work, std::chrono::nanoseconds clean_up) {
    bool cancelled = false;
    try {
        co_await sleep(work);
    } catch (const boost::system::system_error&) {
        cancelled = true;
    }
    if (cancelled) {
        co_await asio::this_coro::reset_cancellation_state(asio::enable_total_cancellation());
        try {
            co_await sleep(clean_up);
        } catch (const boost::system::system_error&) {
            log.push_back(name + " disturbed");
            throw;
        }
        log.push_back(name + " tidy");
        throw boost::system::system_error(asio::error::operation_aborted);
    }
    log.push_back(name + " done");
}

inline Void say(Log& log, std::string text) {
    log.push_back(std::move(text));
    co_return;
}

/// Suspends until it is cancelled, and resumes inside the emission of the signal.
inline Void until_cancelled() {
    auto operation = asio::async_initiate<const asio::deferred_t, void(boost::system::error_code)>(
        [](auto handler) {
            auto slot = asio::get_associated_cancellation_slot(handler);
            auto kept = std::make_shared<decltype(handler)>(std::move(handler));
            slot.assign([kept](asio::cancellation_type) {
                auto moved = std::move(*kept);
                std::move(moved)(make_error_code(asio::error::operation_aborted));
            });
        },
        asio::deferred);
    co_await std::move(operation);
}

}  // namespace test
