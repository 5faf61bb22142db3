// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/query_source.hpp>
#include <sluice/query.hpp>
#include <sluice/sync/awaitable_function.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>

#include <cstddef>
#include <functional>
#include <optional>
#include <type_traits>
#include <utility>

namespace sluice::detail {

// Takes queries out of an asynchronous source, one at a time.
template <class Source, class Projection>
class SourceReader {
public:
    static constexpr bool is_asynchronous = true;
    static constexpr bool must_be_closed = !std::is_lvalue_reference_v<Source> &&
                                           requires(Source& source) { requires Awaitable<decltype(source.close())>; };

    SourceReader(Source&& source, Projection projection)
        : source_(std::forward<Source>(source)), projection_(std::move(projection)) {}

    // Returns the next query, or nothing once the source has ended. Throws what it throws.
    template <class Executor>
    boost::asio::awaitable<std::optional<Query>, Executor> next() {
        for (int skipped = 0;; ++skipped) {
            if (skipped % 64 == 63) {  // the source may answer without suspending
                const Executor executor = co_await boost::asio::this_coro::executor;
                co_await boost::asio::post(executor, boost::asio::deferred);
            }
            auto item = co_await source_.next();
            if (!item) {
                co_return std::nullopt;
            }
            std::optional<Query> query = std::invoke(projection_, std::move(*item));
            if (query) {
                co_return query;
            }
        }
    }

    // Ends the work of a source that this owns.
    auto close() { return source_.close(); }

    static constexpr std::size_t size_hint() noexcept { return 0; }

private:
    Source source_;  // a reference for an lvalue
    Projection projection_;
};

}  // namespace sluice::detail
