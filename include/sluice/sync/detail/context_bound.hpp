// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/intrusive_list.hpp>

#include <boost/asio/execution/context.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/query.hpp>
#include <boost/assert.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <cstddef>
#include <mutex>

namespace sluice::detail {

// Whether ContextBound::check_context() does anything.
#if defined(BOOST_ASSERT_IS_VOID)
inline constexpr bool checks_context = false;
#else
inline constexpr bool checks_context = true;
#endif

// State that its primitive and its execution context share, so that neither has to outlive the other: the context shuts
// it down, and the last reference deletes it.
//
// Counts its references without atomics, since they are all held on one thread or strand. Only construction and
// destruction are safe beside other objects of the same context.
class ContextBound : public ListHook {
public:
    // Shuts down every ContextBound of an execution context when the context is destroyed.
    class Service final : public boost::asio::execution_context::service {
    public:
        static inline boost::asio::execution_context::id id;

        explicit Service(boost::asio::execution_context& context) : service(context) {}

        void add(ContextBound& object) {
            const std::lock_guard lock(mutex_);
            objects_.push_back(object);
            object.service_ = this;
        }

        void remove(ContextBound& object) noexcept {
            const std::lock_guard lock(mutex_);
            object.unlink();
        }

    private:
        void shutdown() noexcept override {
            while (!objects_.empty()) {  // no other thread uses the context any more
                const boost::intrusive_ptr<ContextBound> object(&objects_.front());
                object->unlink();
                object->service_ = nullptr;
                object->on_context_gone();
            }
        }

        std::mutex mutex_;  // objects on several strands of one context come and go at the same time
        IntrusiveList<ContextBound> objects_;
    };

    ContextBound(const ContextBound&) = delete;
    ContextBound& operator=(const ContextBound&) = delete;

    // Whether the execution context is being destroyed or has been, and its coroutines with it.
    bool context_gone() const noexcept { return service_ == nullptr; }

    // Only while the context lives.
    boost::asio::execution_context& context() const noexcept { return service_->context(); }

    // Asserts that the executor that `get_executor_of()` returns belongs to this object's context. Calls it only in
    // debug builds, since an any_io_executor is expensive to copy.
    template <class GetExecutor>
    void check_context(const GetExecutor& get_executor_of) const {
        BOOST_ASSERT_MSG(context_gone() || is_in_context(get_executor_of()),
                         "sluice: awaited in a coroutine of another execution context than the object's own, which "
                         "would never resume it: see run_on()");
        static_cast<void>(get_executor_of);
    }

protected:
    ContextBound() noexcept = default;
    virtual ~ContextBound() {
        if (service_) {
            service_->remove(*this);
        }
    }

    // From now on the context of `executor` shuts this object down.
    template <class Executor>
    void bind_to(const Executor& executor) {
        auto& context = boost::asio::query(executor, boost::asio::execution::context);
        boost::asio::use_service<Service>(static_cast<boost::asio::execution_context&>(context)).add(*this);
    }

private:
    // The context is going. Called once, after context_gone() has become true.
    virtual void on_context_gone() noexcept = 0;

    template <class Executor>
    bool is_in_context(const Executor& executor) const {
        return &service_->context() == &static_cast<const boost::asio::execution_context&>(
                                           boost::asio::query(executor, boost::asio::execution::context));
    }

    friend void intrusive_ptr_add_ref(ContextBound* object) noexcept { ++object->references_; }
    friend void intrusive_ptr_release(ContextBound* object) noexcept {
        if (--object->references_ == 0) {
            delete object;
        }
    }

    Service* service_ = nullptr;
    std::size_t references_ = 0;
};

}  // namespace sluice::detail
