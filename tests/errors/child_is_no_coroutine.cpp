// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/task_group.hpp>

#include <boost/asio/awaitable.hpp>

// A child of a group is a coroutine.
void child_is_no_coroutine(sluice::TaskGroup& group) {
#ifdef MISTAKE
    group.spawn([] {});
#else
    group.spawn([]() -> boost::asio::awaitable<void> { co_return; });
#endif
}
