// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <boost/assert.hpp>

#include <atomic>
#include <thread>

namespace sluice::detail {

// Asserts in debug builds that no two threads use one object at the same time. A strand may move the object from thread
// to thread, so only calls that overlap are detected; where a strand is missing, that is most of them.
class SequenceChecker {
public:
    // The part of a function that is checked. May be nested on one thread.
    class Scope {
    public:
#if defined(BOOST_ASSERT_IS_VOID)
        explicit Scope(SequenceChecker&) noexcept {}
#else
        explicit Scope(SequenceChecker& object) noexcept
            : thread_(object.thread_), outer_(thread_.exchange(std::this_thread::get_id(), std::memory_order_relaxed)) {
            BOOST_ASSERT_MSG(outer_ == std::thread::id() || outer_ == std::this_thread::get_id(),
                             "sluice: two threads use one object at the same time: where several threads run an "
                             "execution context, a pipeline, its primitives and its coroutines need a strand");
        }
        ~Scope() { thread_.store(outer_, std::memory_order_relaxed); }

        Scope(const Scope&) = delete;
        Scope& operator=(const Scope&) = delete;

    private:
        std::atomic<std::thread::id>& thread_;
        std::thread::id outer_;
#endif
    };

private:
    std::atomic<std::thread::id> thread_;  // relaxed, so that it hides no data race from a race detector
};

}  // namespace sluice::detail
