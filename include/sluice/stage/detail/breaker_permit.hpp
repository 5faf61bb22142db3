// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/breaker_state.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/sync/detail/bitwise_copy.hpp>

#include <boost/assert.hpp>

#include <chrono>
#include <utility>

namespace sluice::detail {

// What an error of the model says to a circuit breaker. It counts the failures of the provider alone:
//
// throttled: the provider is up, and asks this caller to slow down, for which there is a pause. If it counted, the
// caller's own rate would take the provider away from it.
//
// invalid: something answered, so the provider is not down, and a batch of bad requests must not open the breaker. But
// a gateway refuses such a request before any model sees it, so neither is it a success: in the window it would hide an
// outage of the model behind, and as a probe it would close the breaker on it.
inline BreakerResult call_result(const Verdict& verdict) noexcept {
    switch (verdict.kind) {
        case Verdict::transient:
        case Verdict::overloaded:
            break;
        case Verdict::throttled:
        case Verdict::invalid:
            return BreakerResult::ignored;
        case Verdict::exhausted:
            return BreakerResult::trips;
    }
    return BreakerResult::failure;
}

// A call that has begun under a circuit breaker, or empty. Move-only. If it is destroyed or assigned to without a
// report, the call was cancelled; so no path loses a probe.
//
// `Pointer` leads to a BreakerState, or to a class around one with the same begin(), end() and cancel() that wakes
// whatever waits for the place of a probe. It keeps that alive, or is a plain pointer to something that outlives the
// permit.
//
// As with Slot, a bitwise copy, such as g++ 12 makes, prints a message and terminates when it is moved,
// reported or destroyed.
template <class Pointer>
class [[nodiscard]] BreakerPermit {
public:
    BreakerPermit() noexcept = default;

    // Begins the call. @pre `breaker->earliest(now) == now`
    BreakerPermit(Pointer breaker, std::chrono::nanoseconds now) noexcept
        : breaker_(std::move(breaker)), call_(breaker_->begin(now)) {}

    BreakerPermit(BreakerPermit&& other) noexcept : breaker_(std::exchange(other.own(), nullptr)), call_(other.call_) {}
    BreakerPermit& operator=(BreakerPermit&& other) noexcept {
        BreakerPermit moved(std::move(other));
        std::swap(own(), moved.breaker_);
        std::swap(call_, moved.call_);
        return *this;
    }
    ~BreakerPermit() { release(); }

    // Ends the call with a result. The permit is empty then. @pre It is not empty.
    BreakerReport report(BreakerResult result, std::chrono::nanoseconds now) noexcept {
        BOOST_ASSERT(own());
        return std::exchange(own(), nullptr)->end(call_, result, now);
    }

    // Ends the call as a cancelled one. Does nothing if this is empty.
    void release() noexcept {
        if (const Pointer breaker = std::exchange(own(), nullptr)) {
            breaker->cancel(call_);
        }
    }

    explicit operator bool() const noexcept { return breaker_ != nullptr; }

    // Whether the call is a probe. @pre It is not empty.
    bool is_probe() const noexcept { return call_.probe; }

private:
    Pointer& own() noexcept {
        if (address_.is_bitwise_copy()) [[unlikely]] {
            if (breaker_) {
                ConstructedAt::terminate("sluice: a bitwise copy of the permit of a circuit breaker");
            }
            address_.reset();  // a copy of an empty permit is harmless
        }
        return breaker_;
    }

    Pointer breaker_{};
    BreakerCall call_;
    ConstructedAt address_;
};

}  // namespace sluice::detail
