// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/shared_string.hpp>
#include <sluice/stage/detail/line.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/sync/detail/clock.hpp>

#include <boost/asio/deferred.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <utility>

namespace sluice::detail {

// A Line with the clock and the one timer of a T. Use it as BoundQueue<TimedLine<T>, Executor>.
//
// The timer is pending only while the head of the line waits for a time, so it keeps no io_context::run() from
// returning after that; and it is destroyed with its context.
template <class T>
class TimedLine : public Line {
public:
    TimedLine(typename T::executor_type executor, const EndpointOptions& options, SharedString name = {})
        : Line(options, std::move(name)), executor_(std::move(executor)), origin_(detail::now<T>(*executor_)) {}

    Time now() noexcept override {
        if (!context_gone()) {
            now_ = std::max(now_, Time(detail::now<T>(context()) - origin_));
        }
        return now_;
    }

protected:
    void arm(Time time) noexcept override {
        if (armed_ != time) {
            armed_ = time;
            begin_wait();
        }
    }

    void disarm() noexcept override {
        if (armed_) {
            armed_.reset();
            timer_.reset();
            ++waits_;
        }
    }

    void on_context_gone() noexcept override {
        Line::on_context_gone();
        executor_.reset();
    }

private:
    // A wait of a year is made of several, since the sum of a time point and a long duration may overflow.
    void begin_wait() {
        constexpr Time longest = std::chrono::hours(24 * 365);
        if (!timer_) {
            timer_.emplace(*executor_);
        }
        const Time left = std::min(*armed_ - now(), longest);
        timer_->expires_after(std::chrono::ceil<typename T::duration>(std::max(left, Time(0))));
        timer_->async_wait(boost::asio::deferred)([self = boost::intrusive_ptr<TimedLine>(this),
                                                   number = ++waits_](const auto&...) { self->expire(number); });
    }

    // A wait has ended, or was replaced by another or abandoned.
    void expire(std::uint64_t number) {
        if (number != waits_) {
            return;
        }
        if (*armed_ > now()) {
            begin_wait();
        } else {
            armed_.reset();
            on_timer();
        }
    }

    std::optional<typename T::executor_type> executor_;  // dropped with the context, which a strand must not outlive
    typename T::time_point origin_;
    Time now_{0};
    std::optional<T> timer_;
    std::optional<Time> armed_;  // when the timer expires
    std::uint64_t waits_ = 0;    // the number of the latest
};

}  // namespace sluice::detail
