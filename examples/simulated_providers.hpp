// SPDX-License-Identifier: BSL-1.0
// Simulated providers: servers with a limit, and with troubles at known times. Treat them as external services.
#pragma once

#include <sluice/stage/verdict.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/this_coro.hpp>

#include <algorithm>
#include <chrono>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace support {

/// A time in which something is wrong with a provider.
struct Trouble {
    enum class Kind {
        down,    ///< Each call fails with status 503.
        slow,    ///< Calls take ten times as long.
        lowered  ///< The account may make fewer calls.
    };
    using Seconds = std::chrono::seconds;

    Kind kind{};
    Seconds from{};  ///< Since the start of the clock.
    Seconds to{};

    bool holds_at(std::chrono::nanoseconds at) const noexcept { return from <= at && at < to; }
};

/// A provider as its operators know it.
struct Provider {
    std::string name;
    int allowed = 0;                       ///< The calls in each period of 10 s.
    int lowered = 0;                       ///< The same while the limit is lowered.
    std::chrono::milliseconds quickest{};  ///< A call takes from this time
    std::chrono::milliseconds slowest{};   ///< to less than this.
    std::vector<Trouble> troubles;

    static constexpr std::chrono::seconds period{10};

    bool is(Trouble::Kind kind, std::chrono::nanoseconds at) const {
        return std::ranges::any_of(troubles, [&](const auto& each) { return each.kind == kind && each.holds_at(at); });
    }
};

/// The server of a provider, on virtual time. It behaves in the same way whenever it gets the same calls.
class SimulatedProvider {
public:
    explicit SimulatedProvider(Provider provider) : provider_(std::move(provider)) {}

    /// Answers a question, or throws a sluice::ModelError: status 503 while it is down, and 429, with the time to wait,
    /// for calls beyond its limit.
    boost::asio::awaitable<std::string> answer(std::string question) {
        using Timer = sluice::testing::VirtualTimer;
        Timer timer(co_await boost::asio::this_coro::executor);
        const auto now = Timer::now(timer.get_executor()).time_since_epoch();
        const bool down = provider_.is(Trouble::Kind::down, now);
        const auto wait = down ? std::chrono::nanoseconds(0) : admit(now);

        timer.expires_after(down || wait.count() != 0 ? round_trip : call_time(now));
        co_await timer.async_wait(boost::asio::deferred);
        if (down) {
            throw sluice::ModelError("service unavailable", {sluice::Verdict::overloaded}, 503);
        }
        if (wait.count() != 0) {
            throw sluice::ModelError("too many requests", {sluice::Verdict::throttled, wait - round_trip}, 429);
        }
        co_return provider_.name + " on: " + question;
    }

    const Provider& provider() const noexcept { return provider_; }

private:
    static constexpr std::chrono::nanoseconds round_trip = std::chrono::milliseconds(200);

    // Returns zero if the call is allowed, and otherwise the time until the next period begins, or until the call has
    // made its way if that is longer.
    std::chrono::nanoseconds admit(std::chrono::nanoseconds now) {
        const auto number = now / Provider::period;
        if (number != period_number_) {
            period_number_ = number;
            calls_ = 0;
        }
        if (calls_ < (provider_.is(Trouble::Kind::lowered, now) ? provider_.lowered : provider_.allowed)) {
            ++calls_;
            return {};
        }
        return std::max((number + 1) * std::chrono::nanoseconds(Provider::period) - now, 2 * round_trip);
    }

    std::chrono::nanoseconds call_time(std::chrono::nanoseconds now) {
        const auto range = static_cast<unsigned long>((provider_.slowest - provider_.quickest).count());
        const auto usual = provider_.quickest + std::chrono::milliseconds(random_() % range);
        return provider_.is(Trouble::Kind::slow, now) ? 10 * usual : usual;
    }

    Provider provider_;
    std::chrono::nanoseconds::rep period_number_ = 0;
    int calls_ = 0;  // in that period
    std::mt19937 random_;
};

}  // namespace support
