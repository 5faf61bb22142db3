// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/task_group.hpp>

#include <boost/asio/awaitable.hpp>

// The body of a group gets the group.
void body_without_group() {
#ifdef MISTAKE
    auto body = []() -> boost::asio::awaitable<void> { co_return; };
#else
    auto body = [](sluice::TaskGroup&) -> boost::asio::awaitable<void> { co_return; };
#endif
    static_cast<void>(sluice::with_task_group(body));
}
