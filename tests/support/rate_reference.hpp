// SPDX-License-Identifier: BSL-1.0
// What a rate meter must do: token buckets as exact fractions, in the simplest way. Shares no code with sluice.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace test {

/// One limit, with its burst.
struct ReferenceLimit {
    std::int64_t amount;
    std::int64_t per;  // ns
    std::int64_t burst;
};

/// @tparam Int Holds `burst * per` and `time * amount`.
template <class Int>
class ReferenceMeter {
public:
    using Costs = std::array<std::int64_t, 3>;

    struct Bucket {
        ReferenceLimit limit;
        Int level;  // in units of 1 / per of a token
        std::int64_t since;

        Int level_at(std::int64_t time) const {
            if (time <= since) {
                return level;
            }
            return capped(Int(level + Int(Int(time) - since) * limit.amount));
        }

        // What came within a nanosecond after the bucket was full, and is no whole token, is kept.
        Int capped(const Int& refilled) const {
            const Int full = Int(limit.burst) * limit.per;
            const bool kept = refilled < full + (limit.amount < limit.per ? limit.amount : limit.per);
            return kept ? refilled : full;
        }

        std::int64_t tokens_at(std::int64_t time) const {
            return static_cast<std::int64_t>(floor_divide(level_at(time), Int(limit.per)));
        }

        void move_to(std::int64_t time) {
            level = level_at(time);
            since = time < since ? since : time;
        }

        void add(std::int64_t tokens, std::int64_t time) {
            move_to(time);
            level += Int(tokens) * limit.per;
            const Int most = time < since ? Int(0) : Int(limit.burst) * limit.per;
            if (tokens > 0 && level > most) {
                level = most;
            }
        }

        void empty(std::int64_t until, std::int64_t time) {
            move_to(time);
            level = level < 0 ? level : Int(0);
            since = until;
        }
    };

    bool can_pay(const Costs& costs, std::int64_t time) const {
        for (std::size_t i = 0; i < 3; ++i) {
            for (const Bucket& bucket : dimensions[i]) {
                if (bucket.level_at(time) < Int(costs[i]) * bucket.limit.per) {
                    return false;
                }
            }
        }
        return time >= paused_until;
    }

    bool can_ever_pay(const Costs& costs) const {
        for (std::size_t i = 0; i < 3; ++i) {
            for (const Bucket& bucket : dimensions[i]) {
                if (bucket.limit.burst < costs[i]) {
                    return false;
                }
            }
        }
        return true;
    }

    void add(std::size_t dimension, std::int64_t tokens, std::int64_t time) {
        for (Bucket& bucket : dimensions[dimension]) {
            bucket.add(tokens, time);
        }
    }

    void pause(std::int64_t until, std::int64_t time) {
        if (until <= time || until <= paused_until) {
            return;
        }
        paused_until = until;
        for (auto& buckets : dimensions) {
            empty_shortest(buckets, time);
        }
    }

    void set(std::size_t dimension, const std::vector<ReferenceLimit>& limits, std::int64_t time) {
        const std::vector<Bucket> before = dimensions[dimension];
        dimensions[dimension].clear();
        for (const ReferenceLimit& limit : limits) {
            Bucket bucket{limit, Int(limit.burst) * limit.per, time};
            const Bucket* old = nullptr;
            for (const Bucket& candidate : before) {
                if (candidate.limit.per == limit.per) {
                    old = &candidate;
                    break;
                }
            }
            for (const Bucket& candidate : before) {
                if (old == nullptr ||
                    (old->limit.per != limit.per && candidate.tokens_at(time) < old->tokens_at(time))) {
                    old = &candidate;
                }
            }
            if (old != nullptr) {
                // Rounded down to what is a whole number in lowest terms.
                const Int scale = limit.per / std::gcd(limit.amount, limit.per);
                const Int carried =
                    floor_divide(Int(old->level_at(time) * scale), Int(old->limit.per)) * Int(Int(limit.per) / scale);
                bucket.level = bucket.capped(carried);
                bucket.since = time < old->since ? old->since : time;
            }
            dimensions[dimension].push_back(bucket);
        }
        if (time < paused_until) {
            empty_shortest(dimensions[dimension], time);
        }
    }

    std::array<std::vector<Bucket>, 3> dimensions;
    std::int64_t paused_until = 0;

private:
    void empty_shortest(std::vector<Bucket>& buckets, std::int64_t time) const {
        std::int64_t shortest = std::numeric_limits<std::int64_t>::max();
        for (const Bucket& bucket : buckets) {
            shortest = std::min(shortest, bucket.limit.per);
        }
        for (Bucket& bucket : buckets) {
            if (bucket.limit.per == shortest) {
                bucket.empty(paused_until, time);
            }
        }
    }

    static Int floor_divide(const Int& a, const Int& b) {
        const Int quotient = a / b;
        return quotient * b > a ? Int(quotient - 1) : quotient;
    }
};

}  // namespace test
