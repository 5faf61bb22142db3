// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/require.hpp>
#include <sluice/sync/detail/wait_queue.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/post.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <optional>
#include <utility>

namespace sluice::detail {

// A concrete queue: `Queue`, with its drain posted through an executor of a known type.
template <class Queue, class Executor>
class BoundQueue final : public Queue {
public:
    template <class... Args>
    explicit BoundQueue(Executor executor, Args&&... args)
        : Queue(std::forward<Args>(args)...), executor_(std::move(executor)) {
        this->bind_to(*executor_);
    }

    boost::asio::any_io_executor get_executor() const override {
        return executor_ ? boost::asio::any_io_executor(*executor_) : boost::asio::any_io_executor();
    }

private:
    void post_drain() override {
        boost::asio::post(*executor_, [self = boost::intrusive_ptr<BoundQueue>(this)] { self->drain(); });
    }

    void drop_executor() noexcept override { executor_.reset(); }

    std::optional<Executor> executor_;  // dropped with the context, which a strand must not outlive
};

// `owner` names the primitive in the message about an empty executor.
template <class Queue, class Executor, class... Args>
boost::intrusive_ptr<Queue> make_queue(const char* owner, Executor executor, Args&&... args) {
    return boost::intrusive_ptr<Queue>(
        new BoundQueue<Queue, Executor>(require_executor(owner, std::move(executor)), std::forward<Args>(args)...));
}

}  // namespace sluice::detail
