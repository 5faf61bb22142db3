// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/detail/query_job.hpp>
#include <sluice/pipeline/query_source.hpp>
#include <sluice/stage/detail/drain_scope.hpp>
#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/detail/spawn_uncancelled.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>

#include <cstddef>
#include <exception>
#include <functional>
#include <type_traits>
#include <utility>

namespace sluice::detail {

// A ResultStream, which the drain of the pipeline that owns it drains, too.
template <class Source>
concept DrainableSource = requires(Source& source, const DrainScope& scope) {
    state_of(source).end_input(scope);
    state_of(source).end_grace();
};

// Takes queries out of an asynchronous source, one at a time.
template <class Source, class Projection>
class SourceReader {
public:
    static constexpr bool is_asynchronous = true;
    static constexpr bool has_rest = false;
    static constexpr bool must_be_closed = !std::is_lvalue_reference_v<Source> &&
                                           requires(Source& source) { requires Awaitable<decltype(source.close())>; };
    static constexpr bool owns_stream = must_be_closed && DrainableSource<std::remove_reference_t<Source>>;

    SourceReader(Source&& source, Projection projection)
        : source_(std::forward<Source>(source)), projection_(std::move(projection)) {}

    // Gives `job` the next query, or returns false once the source has ended. Throws what it throws.
    template <class Executor, class Job>
    boost::asio::awaitable<bool, Executor> next(Job& job) {
        return Next<Executor, Job>::run(*this, job);
    }

    // Ends the work of a source that this owns, where no cancellation reaches it. If that fails and `error` is null, it
    // becomes why.
    template <class Executor>
    boost::asio::awaitable<void, Executor> close(std::exception_ptr& error) {
        return Close<Executor>::run(*this, error);
    }

    // See StreamState.
    void end_input(const DrainScope& scope) { state_of(source_).end_input(scope); }
    void end_grace() { state_of(source_).end_grace(); }

    static constexpr std::size_t size_hint() noexcept { return 0; }

private:
    // A class, since g++ objects to the frame of a function template with an argument of an unnamed namespace.
    template <class Executor, class Job>
    struct Next {
        static boost::asio::awaitable<bool, Executor> run(SourceReader& reader, Job& job) {
            for (int skipped = 0;; ++skipped) {
                if (skipped % 64 == 63) {  // the source may answer without suspending
                    const Executor executor = co_await boost::asio::this_coro::executor;
                    co_await boost::asio::post(executor, boost::asio::deferred);
                }
                auto item = co_await reader.source_.next();
                if (!item) {
                    co_return false;
                }
                if (take(job, std::invoke(reader.projection_, std::move(*item)))) {
                    co_return true;
                }
            }
        }
    };

    template <class Executor>
    struct Close {
        static boost::asio::awaitable<void, Executor> run(SourceReader& reader, std::exception_ptr& error) {
            try {
                const Executor executor = co_await boost::asio::this_coro::executor;
                co_await spawn_uncancelled(executor, [&reader] { return reader.source_.close(); });
            } catch (...) {
                if (!error) {
                    error = std::current_exception();
                }
            }
        }
    };

    Source source_;  // a reference for an lvalue
    Projection projection_;
};

}  // namespace sluice::detail
