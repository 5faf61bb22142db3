// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "scripted_answer.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/write.hpp>
#include <boost/system/error_code.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <limits>
#include <string_view>
#include <utility>

namespace openai {

inline boost::asio::awaitable<void> scripted_pause(std::chrono::nanoseconds duration) {
    if (duration.count() > 0) {
        boost::asio::steady_timer timer(co_await boost::asio::this_coro::executor, duration);
        co_await timer.async_wait(boost::asio::deferred);
    }
}

/// Counts a request in work, until it has ended or its client has gone.
class ScriptedWork {
public:
    explicit ScriptedWork(ScriptedCounts& counts) : counts_(counts) {
        counts.most_working = std::max(counts.most_working, ++counts.working);
    }
    ~ScriptedWork() { end(); }
    ScriptedWork(const ScriptedWork&) = delete;
    ScriptedWork& operator=(const ScriptedWork&) = delete;

    void end() noexcept {
        if (!std::exchange(ended_, true)) {
            --counts_.working;
        }
    }

    void client_gone() noexcept {
        counts_.gone += ended_ ? 0 : 1;
        end();
    }

private:
    ScriptedCounts& counts_;
    bool ended_ = false;
};

/// Waits until the client has gone. A client that waits for its answer sends nothing, so whatever can be read is the
/// end of the connection.
inline boost::asio::awaitable<void> until_gone(boost::asio::ip::tcp::socket& socket, ScriptedWork& work) {
    boost::system::error_code ignored;
    co_await socket.async_wait(boost::asio::ip::tcp::socket::wait_read,
                               boost::asio::redirect_error(boost::asio::deferred, ignored));
    work.client_gone();
}

/// Whether a client may go before the answer has ended, other than in a single write.
inline bool takes_time(const ScriptedAnswer& answer, const Behaviour& behaviour) {
    return answer.pieces.size() > 1 || behaviour.piece_bytes != 0 || behaviour.delay.count() > 0 || behaviour.hang;
}

/// Sends the answer, or as much of it as `behaviour` allows, and returns whether that was all.
template <class Stream>
boost::asio::awaitable<bool> send_scripted(Stream& stream, const ScriptedAnswer& answer, const Behaviour& behaviour,
                                           ScriptedWork& work) {
    constexpr auto all = std::numeric_limits<std::size_t>::max();
    const std::size_t most = behaviour.piece_bytes == 0 ? all : behaviour.piece_bytes;
    std::size_t left = behaviour.stop_after.value_or(all);
    auto delay = behaviour.delay;
    std::size_t next = 0;
    while (next < answer.pieces.size() && left > 0) {
        for (std::string_view piece = answer.pieces[next]; !piece.empty() && left > 0;) {
            co_await scripted_pause(std::exchange(delay, behaviour.piece_delay));
            const std::string_view part = piece.substr(0, std::min(most, left));
            co_await boost::asio::async_write(stream, boost::asio::buffer(part), boost::asio::deferred);
            left -= part.size();
            piece.remove_prefix(part.size());
        }
        if (++next == answer.pieces.size() && behaviour.endless) {
            next = 1;
        }
    }
    if (behaviour.hang) {
        boost::asio::steady_timer never(stream.get_executor(), boost::asio::steady_timer::time_point::max());
        co_await never.async_wait(boost::asio::deferred);
    }
    work.end();
    co_return left > 0;
}

}  // namespace openai
