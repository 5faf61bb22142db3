// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/run_on.hpp>

#include <boost/asio/thread_pool.hpp>

#include <string>

// Another thread returns a value.
void run_on_returns_a_reference(boost::asio::thread_pool& pool, const std::string& text) {
#ifdef MISTAKE
    auto work = [&text]() -> const std::string& { return text; };
#else
    auto work = [&text] { return text; };
#endif
    static_cast<void>(sluice::run_on(pool.get_executor(), work));
}
