// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/requirements.hpp>

#include <boost/assert.hpp>

#include <atomic>
#include <thread>

namespace sluice::detail {

// Asserts in debug builds that no two threads are inside one object at the same time. Such an object may go from thread
// to thread, as in a strand, so that only those can be told that meet: most, where a strand was forgotten.
class OneThread {
public:
    // A part of a function; may be nested on one thread.
    class Section {
    public:
#if defined(BOOST_ASSERT_IS_VOID)
        explicit Section(OneThread&) noexcept {}
#else
        explicit Section(OneThread& object) noexcept
            : inside_(object.inside_), outer_(inside_.exchange(std::this_thread::get_id(), std::memory_order_relaxed)) {
            BOOST_ASSERT_MSG(outer_ == std::thread::id() || outer_ == std::this_thread::get_id(),
                             "sluice: two threads use one object at the same time: where several threads run an "
                             "execution context, a pipeline, its primitives and its coroutines need a strand");
        }
        ~Section() { inside_.store(outer_, std::memory_order_relaxed); }
#endif

        Section(const Section&) = delete;
        Section& operator=(const Section&) = delete;

#if !defined(BOOST_ASSERT_IS_VOID)
    private:
        std::atomic<std::thread::id>& inside_;
        std::thread::id outer_;
#endif
    };

private:
    std::atomic<std::thread::id> inside_;  // who is; relaxed, lest it hides data races from a tool that looks for them
};

}  // namespace sluice::detail
