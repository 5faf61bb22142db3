// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/query.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/completion_condition.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/system/error_code.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <optional>
#include <sstream>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace support {

/// The lines of standard input, as an asynchronous source of queries whose ids are the numbers of the lines.
///
/// Asio waits until a terminal, a pipe or a socket is readable. It reads a file, which epoll refuses, without a wait.
class LineSource {
public:
    /// @throws std::system_error if standard input is closed. Nothing must have been opened in its place.
    explicit LineSource(const boost::asio::any_io_executor& executor) : input_(executor, valid(::dup(STDIN_FILENO))) {}

    /// Undoes what Asio does to a descriptor, since other programs share it: they would not block any more.
    ~LineSource() { ::fcntl(STDIN_FILENO, F_SETFL, flags_); }

    LineSource(const LineSource&) = delete;
    LineSource& operator=(const LineSource&) = delete;

    /// When awaited, returns the next line, or an empty optional at the end, after an error or if it was cancelled.
    /// A line that has come in part is kept then.
    boost::asio::awaitable<std::optional<sluice::Query>> next() {
        constexpr auto token = boost::asio::as_tuple(boost::asio::deferred);
        const auto [error, size] =
            co_await boost::asio::async_read_until(input_, boost::asio::dynamic_buffer(buffer_), '\n', token);
        const bool at_end = error == boost::asio::error::eof;
        if (at_end ? buffer_.empty() : static_cast<bool>(error)) {
            error_ = error;
            co_return std::nullopt;
        }
        std::string line = buffer_.substr(0, at_end ? buffer_.size() : size - 1);  // the last may have no '\n'
        buffer_.erase(0, line.size() + 1);
        co_return number(std::move(line));
    }

    /// Returns the lines that have come and were not taken, without waiting for more. The last may be cut off.
    std::vector<sluice::Query> rest() {
        boost::system::error_code error;
        boost::asio::posix::stream_descriptor::bytes_readable readable;
        if (!input_.io_control(readable, error)) {
            // It has been read into the buffer, however much that was.
            static_cast<void>(boost::asio::read(input_, boost::asio::dynamic_buffer(buffer_),
                                                boost::asio::transfer_exactly(readable.get()), error));
        }
        std::istringstream in(std::exchange(buffer_, {}));
        std::vector<sluice::Query> queries;
        for (std::string line; std::getline(in, line);) {
            queries.push_back(number(line));
        }
        return queries;
    }

    /// The number of lines that were returned.
    std::size_t count() const noexcept { return count_; }

    /// The error that ended the lines, if one did.
    boost::system::error_code error() const noexcept {
        const bool usual = error_ == boost::asio::error::eof || error_ == boost::asio::error::operation_aborted;
        return usual ? boost::system::error_code() : error_;
    }

private:
    sluice::Query number(std::string line) { return sluice::Query(std::to_string(++count_), std::move(line)); }

    static int valid(int result) {
        if (result == -1) {
            throw std::system_error(errno, std::generic_category(), "cannot read standard input");
        }
        return result;
    }

    int flags_ = valid(::fcntl(STDIN_FILENO, F_GETFL));
    boost::asio::posix::stream_descriptor input_;
    std::string buffer_;  // what was read and not returned
    std::size_t count_ = 0;
    boost::system::error_code error_;
};

}  // namespace support
