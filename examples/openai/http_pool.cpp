// SPDX-License-Identifier: BSL-1.0
#include "http_pool.hpp"

#include <chrono>
#include <memory>
#include <utility>

namespace openai {

HttpPool::HttpPool(boost::asio::any_io_executor executor, Url url, HttpOptions options)
    : executor_(std::move(executor)), target_(std::move(url), std::move(options)) {}

std::unique_ptr<HttpConnection> HttpPool::take() {
    while (!kept_.empty()) {
        Kept last = std::move(kept_.back());
        kept_.pop_back();
        if (Clock::now() < last.until && last.connection->quiet()) {
            return std::move(last.connection);
        }
    }
    return nullptr;
}

std::unique_ptr<HttpConnection> HttpPool::make() const { return std::make_unique<HttpConnection>(executor_, target_); }

void HttpPool::give_back(std::unique_ptr<HttpConnection> connection, std::chrono::nanoseconds time) {
    const auto now = Clock::now();
    while (!kept_.empty() && (kept_.front().until <= now || kept_.size() >= target_.options.max_idle)) {
        kept_.pop_front();
    }
    if (!closed_ && time.count() > 0 && target_.options.max_idle > 0) {
        kept_.push_back({std::move(connection), now + time});
    }
}

void HttpPool::close() noexcept {
    closed_ = true;
    kept_.clear();
}

}  // namespace openai
