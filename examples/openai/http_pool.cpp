// SPDX-License-Identifier: BSL-1.0
#include "http_pool.hpp"

#include <chrono>
#include <deque>
#include <memory>
#include <utility>

namespace openai {

HttpPool::HttpPool(boost::asio::any_io_executor executor, Url url, HttpOptions options)
    : executor_(std::move(executor)), target_(std::move(url), std::move(options)) {}

std::unique_ptr<HttpConnection> HttpPool::take() {
    close_old();
    while (!kept_.empty()) {
        auto last = std::move(kept_.back().connection);
        kept_.pop_back();
        if (last->quiet()) {
            return last;
        }
    }
    return nullptr;
}

std::unique_ptr<HttpConnection> HttpPool::make() const { return std::make_unique<HttpConnection>(executor_, target_); }

void HttpPool::give_back(std::unique_ptr<HttpConnection> connection, std::chrono::nanoseconds time) {
    close_old();
    while (!kept_.empty() && kept_.size() >= target_.options.max_idle) {
        kept_.pop_front();
    }
    if (!closed_ && time.count() > 0 && target_.options.max_idle > 0) {
        kept_.push_back({std::move(connection), Clock::now() + time});
    }
}

void HttpPool::close_old() {
    std::erase_if(kept_, [now = Clock::now()](const Kept& kept) { return kept.until <= now; });
}

void HttpPool::close() noexcept {
    closed_ = true;
    kept_.clear();
}

}  // namespace openai
