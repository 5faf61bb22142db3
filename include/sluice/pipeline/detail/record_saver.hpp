// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/detail/sink_call.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/slot.hpp>
#include <sluice/sync/stage_semaphore.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/this_coro.hpp>

#include <cstdint>
#include <optional>
#include <utility>

namespace sluice::detail {

// Saves the record of one query after each of its steps.
template <class Executor>
class Saver {
public:
    // To be awaited with throw_if_cancelled(false). Throws what the sink throws.
    virtual boost::asio::awaitable<void, Executor> save() = 0;

protected:
    ~Saver() = default;
};

// Saves it in the sink of the pipeline: one save at a time, since after steps side by side an older record might land
// last otherwise. A step whose value another's save has seen needs none of its own.
template <class Sink, class Record, class Executor>
class RecordSaver final : public Saver<Executor> {
public:
    RecordSaver(Sink& sink, const RecordResult<Record>& result) noexcept : sink_(sink), result_(result) {}

    boost::asio::awaitable<void, Executor> save() override { return save(Pooled(), *this); }

private:
    using Saved = decltype(std::declval<Sink&>().save(std::declval<const Query&>(), std::declval<const Record&>()));

    static boost::asio::awaitable<void, Executor> save(Pooled, RecordSaver& saver) {
        if constexpr (is_awaitable<Saved>) {
            const Executor executor = co_await boost::asio::this_coro::executor;
            const auto change = ++saver.changes_;
            if (!saver.turn_) {
                saver.turn_.emplace(executor, 1);
            }
            const auto in_turn = [&saver, change] { return save_in_turn<Saved>(Pooled(), saver, change); };
            co_await call_sink(executor, in_turn);
        } else {
            saver.sink_.save(saver.result_.query, saver.result_.record);
            co_return;
        }
    }

    template <class Coroutine>
    static boost::asio::awaitable<void, typename Coroutine::executor_type> save_in_turn(Pooled, RecordSaver& saver,
                                                                                        std::uint64_t change) {
        const Slot turn = co_await saver.turn_->acquire();
        if (saver.saved_ < change) {
            const std::uint64_t seen = saver.changes_;
            static_cast<void>(co_await saver.sink_.save(saver.result_.query, saver.result_.record));
            saver.saved_ = seen;
        }
    }

    Sink& sink_;
    const RecordResult<Record>& result_;
    std::optional<StageSemaphore> turn_;  // to save, if that may suspend
    std::uint64_t changes_ = 0;           // steps that have filled a field
    std::uint64_t saved_ = 0;             // those whose values have been saved
};

}  // namespace sluice::detail
