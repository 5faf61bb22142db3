// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <boost/asio/awaitable.hpp>

#include <array>
#include <coroutine>
#include <cstddef>
#include <new>
#include <utility>

namespace sluice::detail {

// A cache, one for each thread, of the memory of coroutine frames that have ended. Asio caches two blocks, which is too
// few for the frames of many waiters that are released in one burst.
//
// A block may be cached by a thread other than the one that allocated it. A thread caches at most 64 blocks of each of
// 48 sizes, 2.3 MiB in all. As with Asio, frames with an alignment above that of operator new are not supported.
class FramePool {
public:
    static void* allocate(std::size_t size) {
        if (size <= largest) {
            FreeList& list = lists_[(size - 1) / granule];
            if (Block* const block = list.first) {
                list.first = block->next;
                --list.kept;
                return block;
            }
        }
        return ::operator new(rounded(size));
    }

    static void deallocate(void* memory, std::size_t size) noexcept {
        if (size <= largest) {
            FreeList& list = lists_[(size - 1) / granule];
            if (list.kept != most_kept) {
                if (!list.first) {
                    open();
                }
                list.first = ::new (memory) Block{list.first};
                ++list.kept;
                return;
            }
        }
        ::operator delete(memory, rounded(size));
    }

private:
    static constexpr std::size_t granule = 32;
    static constexpr std::size_t largest = 1536;
#if defined(BOOST_ASIO_DISABLE_AWAITABLE_FRAME_RECYCLING)  // Asio's own switch, useful with AddressSanitizer
    static constexpr std::size_t most_kept = 0;
#else
    static constexpr std::size_t most_kept = 64;  // of each size
#endif

    struct Block {
        Block* next;
    };

    struct FreeList {
        Block* first;
        std::size_t kept;
    };

    // Frees the cached blocks when the thread ends. Frames that are freed later still are not cached.
    struct Closer {
        ~Closer() {
            for (std::size_t i = 0; i != lists_.size(); ++i) {
                lists_[i].kept = most_kept;
                while (Block* const block = lists_[i].first) {
                    lists_[i].first = block->next;
                    ::operator delete(block, (i + 1) * granule);
                }
            }
        }
    };

    static constexpr std::size_t rounded(std::size_t size) noexcept { return (size + granule - 1) / granule * granule; }

    static void open() noexcept {
        thread_local const Closer closer;
        static_cast<void>(closer);
    }

    // Trivially destructible, so that no access has to check whether they are alive.
    static inline thread_local constinit std::array<FreeList, largest / granule> lists_{};
};

// The first parameter of a coroutine whose frame comes from the pool.
struct Pooled {};

// An awaitable that such a coroutine awaits even if it has been cancelled, and throws when it is.
template <class T, class Executor>
struct EvenIfCancelled {
    boost::asio::awaitable<T, Executor> awaitable;
};
template <class T, class Executor>
EvenIfCancelled<T, Executor> even_if_cancelled(boost::asio::awaitable<T, Executor> awaitable) {
    return {std::move(awaitable)};
}

// The promise of such a coroutine: Asio's, with another source of memory.
template <class T, class Executor>
struct PooledPromise : std::coroutine_traits<boost::asio::awaitable<T, Executor>>::promise_type {
    using Base = typename std::coroutine_traits<boost::asio::awaitable<T, Executor>>::promise_type;

    static void* operator new(std::size_t size) {
        static_assert(sizeof(PooledPromise) == sizeof(Base) && alignof(PooledPromise) == alignof(Base));
        return FramePool::allocate(size);
    }
    static void operator delete(void* memory, std::size_t size) noexcept { FramePool::deallocate(memory, size); }

    using Base::await_transform;

    template <class U>
    auto await_transform(boost::asio::awaitable<U, Executor> awaitable) const {
        return Awaiter<U>(Base::await_transform(std::move(awaitable)));
    }
    template <class U>
    auto await_transform(EvenIfCancelled<U, Executor> awaited) const {
        return Awaiter<U>(std::move(awaited.awaitable));
    }

private:
    // An awaitable requires the awaiting coroutine to have Asio's own promise, which this one derives from.
    template <class U>
    struct Awaiter {
        boost::asio::awaitable<U, Executor> awaitable;

        explicit Awaiter(boost::asio::awaitable<U, Executor> awaited) : awaitable(std::move(awaited)) {}

        bool await_ready() const noexcept { return awaitable.await_ready(); }
        void await_suspend(std::coroutine_handle<PooledPromise> awaiting) {
            awaitable.await_suspend(std::coroutine_handle<Base>::from_promise(awaiting.promise()));
        }
        U await_resume() { return awaitable.await_resume(); }
    };
};

}  // namespace sluice::detail

template <class T, class Executor, class... Args>
struct std::coroutine_traits<boost::asio::awaitable<T, Executor>, sluice::detail::Pooled, Args...> {
    using promise_type = sluice::detail::PooledPromise<T, Executor>;
};
