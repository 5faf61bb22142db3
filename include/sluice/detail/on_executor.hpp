// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/is_empty.hpp>
#include <sluice/detail/wait_queue.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/execution/context.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/query.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace sluice::detail {

// A concrete queue: `Queue` with its drain posted through an executor of a known type.
template <class Queue, class Executor>
class OnExecutor final : public Queue {
public:
    template <class... Args>
    explicit OnExecutor(Executor executor, Args&&... args)
        : Queue(std::forward<Args>(args)...), executor_(std::move(executor)) {
        auto& context = boost::asio::query(*executor_, boost::asio::execution::context);
        boost::asio::use_service<WaitService>(static_cast<boost::asio::execution_context&>(context)).add(*this);
    }

    boost::asio::any_io_executor get_executor() const override {
        return executor_ ? boost::asio::any_io_executor(*executor_) : boost::asio::any_io_executor();
    }

private:
    void post_drain() override {
        boost::asio::post(*executor_, [self = boost::intrusive_ptr<OnExecutor>(this)] { self->drain(); });
    }

    void drop_executor() noexcept override { executor_.reset(); }

    std::optional<Executor> executor_;  // given up with the context: a strand must not outlive it
};

// `owner` is whom the queue is for, and who is said to need an executor.
template <class Queue, class Executor, class... Args>
boost::intrusive_ptr<Queue> make_queue(const char* owner, Executor executor, Args&&... args) {
    if (is_empty_executor(executor)) {
        throw std::invalid_argument(std::string(owner) + ": the executor must not be empty");
    }
    return boost::intrusive_ptr<Queue>(
        new OnExecutor<Queue, Executor>(std::move(executor), std::forward<Args>(args)...));
}

}  // namespace sluice::detail
