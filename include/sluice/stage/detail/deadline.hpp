// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/timeouts.hpp>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>

namespace sluice::detail {

// When the timeout of a query is over.
class Deadline {
public:
    Deadline(const Deadline&) = delete;
    Deadline& operator=(const Deadline&) = delete;
    virtual ~Deadline() = default;

    const std::chrono::nanoseconds timeout;

protected:
    explicit Deadline(std::chrono::nanoseconds its_timeout) noexcept : timeout(its_timeout) {}
};

// On the clock of T, the timer of the query's pipeline and of each stage that it goes through.
template <class T>
class DeadlineOf final : public Deadline {
public:
    using Time = typename T::time_point;

    DeadlineOf(Time taken_in, std::chrono::nanoseconds its_timeout)
        : Deadline(its_timeout), due(due_after<T>(taken_in, its_timeout)) {}

    // Null if there is none. A stage must have the timer of its pipeline; on another clock it would mean nothing.
    static const DeadlineOf* of(const std::unique_ptr<Deadline>& deadline) noexcept {
        return dynamic_cast<const DeadlineOf*>(deadline.get());
    }

    bool is_over(Time now) const noexcept { return now >= due; }

    std::chrono::nanoseconds left(Time now) const noexcept { return due - now; }

    const Time due;
};

// The earlier of the end of a timeout that began then and that of the query's; nothing if there is neither.
template <class T>
std::optional<typename T::time_point> earlier(const DeadlineOf<T>* deadline,
                                              const std::optional<std::chrono::nanoseconds>& timeout,
                                              typename T::time_point began) {
    if (!timeout) {
        return deadline ? std::optional(deadline->due) : std::nullopt;
    }
    const auto own = due_after<T>(began, *timeout);
    return deadline ? std::min(own, deadline->due) : own;
}

}  // namespace sluice::detail
