// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/intrusive_list.hpp>
#include <sluice/testing/detail/indexed_heap.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/append.hpp>
#include <boost/asio/associated_allocator.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/execution/blocking.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/recycling_allocator.hpp>
#include <boost/asio/require.hpp>
#include <boost/system/error_code.hpp>

#include <concepts>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

namespace sluice::detail {

// One wait of a VirtualTimer. While it is pending it is in the list of its timer and in the heap of its VirtualTime,
// then in an EndedWaits. Ends by being completed or dropped, either of which destroys it.
class VirtualWait : public ListHook, public HeapHook {
public:
    // Frees the memory, then calls the handler.
    virtual void complete() = 0;

    // Frees the memory, then destroys the handler, which is not called.
    virtual void drop() noexcept = 0;

    // The executor of the timer, which may be gone.
    virtual boost::asio::any_io_executor get_executor() const = 0;

    // Ends the connection to the cancellation signal.
    void disconnect() noexcept {
        auto cancellation = std::exchange(slot, {});  // the handler in the slot clears `slot` too
        cancellation.clear();
    }

    const boost::asio::any_io_executor* executor;  // of its timer; only while it is pending
    boost::asio::cancellation_slot slot;           // connected only while it is pending and its signal lives
    bool aborted = false;

protected:
    explicit VirtualWait(const boost::asio::any_io_executor& of_timer) noexcept : executor(&of_timer) {}
    ~VirtualWait() { disconnect(); }
};

// A wait and its handler, whose associated executor is that of the timer. Its memory is from the handler's allocator.
template <class Handler>
class VirtualWaitFor final : public VirtualWait {
public:
    static VirtualWait* create(const boost::asio::any_io_executor& executor, Handler&& handler) {
        Allocator allocator = allocator_of(handler);
        VirtualWaitFor* const memory = Traits::allocate(allocator, 1);
        try {
            return ::new (static_cast<void*>(memory)) VirtualWaitFor(executor, std::move(handler));
        } catch (...) {
            Traits::deallocate(allocator, memory, 1);
            throw;
        }
    }

    void complete() override {
        const auto error =
            aborted ? make_error_code(boost::asio::error::operation_aborted) : boost::system::error_code();
        Handler handler = release();
        std::move(handler)(error);
    }

    void drop() noexcept override { const Handler dropped = release(); }

    boost::asio::any_io_executor get_executor() const override {
        return boost::asio::get_associated_executor(handler_);
    }

private:
    using Memory = boost::asio::recycling_allocator<void>;  // what an operation of Asio uses by default
    using Allocator = typename std::allocator_traits<
        boost::asio::associated_allocator_t<Handler, Memory>>::template rebind_alloc<VirtualWaitFor>;
    using Traits = std::allocator_traits<Allocator>;

    VirtualWaitFor(const boost::asio::any_io_executor& of_timer, Handler&& handler)
        : VirtualWait(of_timer), handler_(std::move(handler)) {}

    static Allocator allocator_of(const Handler& handler) {
        return Allocator(boost::asio::get_associated_allocator(handler, Memory()));
    }

    // Returns the handler, which may reuse the memory as soon as it is called.
    Handler release() {
        Allocator allocator = allocator_of(handler_);
        Handler handler = std::move(handler_);
        this->~VirtualWaitFor();
        Traits::deallocate(allocator, this, 1);
        return handler;
    }

    Handler handler_;
};

// A handler whose own executor is not that of the timer, from where it is dispatched.
template <class Handler, class Executor>
class OnOwnExecutor {
public:
    using executor_type = boost::asio::any_io_executor;
    using allocator_type = boost::asio::associated_allocator_t<Handler, boost::asio::recycling_allocator<void>>;

    OnOwnExecutor(executor_type of_timer, const Executor& own, Handler&& handler)
        : executor_(std::move(of_timer)), work_(own), handler_(std::move(handler)) {}

    void operator()(boost::system::error_code error) {
        boost::asio::dispatch(boost::asio::append(std::move(handler_), error));
    }

    executor_type get_executor() const noexcept { return executor_; }
    allocator_type get_allocator() const noexcept {
        return boost::asio::get_associated_allocator(handler_, boost::asio::recycling_allocator<void>());
    }

private:
    executor_type executor_;
    boost::asio::executor_work_guard<Executor> work_;  // its context must not run out of work meanwhile
    Handler handler_;
};

template <class Executor>
bool is_same_executor(const boost::asio::any_io_executor& executor, const Executor& own) {
    if constexpr (std::same_as<Executor, boost::asio::any_io_executor>) {
        return executor == own;
    } else {
        const auto* const target = executor.target<Executor>();
        return target && *target == own;
    }
}

struct DropWait {
    void operator()(VirtualWait* wait) const noexcept { wait->drop(); }
};

// Returns a wait that calls `handler` on its own executor, or on `executor`, the timer's, if it has none.
template <class Handler>
std::unique_ptr<VirtualWait, DropWait> make_wait(const boost::asio::any_io_executor& executor, Handler handler) {
    struct None {};
    const auto create = [&]<class H>(H with_executor) {
        return std::unique_ptr<VirtualWait, DropWait>(VirtualWaitFor<H>::create(executor, std::move(with_executor)));
    };
    if constexpr (std::same_as<boost::asio::associated_executor_t<Handler, None>, None>) {
        return create(boost::asio::bind_executor(executor, std::move(handler)));
    } else {
        using Own = boost::asio::associated_executor_t<Handler, boost::asio::any_io_executor>;
        const Own own = boost::asio::get_associated_executor(handler, executor);
        if constexpr (std::convertible_to<Own, boost::asio::any_io_executor>) {
            if (is_same_executor(executor, own)) {
                return create(std::move(handler));
            }
        }
        return create(OnOwnExecutor<Handler, Own>(executor, own, std::move(handler)));
    }
}

// Waits that have ended, of timers with the same executor, and the drain that calls their handlers. Those that it still
// has when it is destroyed, with its context, are dropped.
class EndedWaits {
public:
    EndedWaits() noexcept = default;
    EndedWaits(EndedWaits&& other) noexcept { waits_.splice_back(other.waits_); }
    EndedWaits& operator=(EndedWaits&&) = delete;
    ~EndedWaits() {
        while (!waits_.empty()) {
            take_first().drop();
        }
    }

    void add(VirtualWait& wait) noexcept { waits_.push_back(wait); }

    // Posts a drain, which calls the handlers in the order in which their waits were added.
    void post(const boost::asio::any_io_executor& executor) && {
        // What asio::post() does, without the properties that make no difference here.
        boost::asio::require(executor, boost::asio::execution::blocking.never).execute(std::move(*this));
    }

    // The drain. If a handler throws, another drain calls those that are left.
    void operator()() {
        while (!waits_.empty()) {
            try {
                take_first().complete();
            } catch (...) {
                if (!waits_.empty()) {
                    std::move(*this).post(waits_.front().get_executor());
                }
                throw;
            }
        }
    }

private:
    VirtualWait& take_first() noexcept {
        VirtualWait& first = waits_.front();
        first.unlink();
        return first;
    }

    IntrusiveList<VirtualWait> waits_;
};

}  // namespace sluice::detail
