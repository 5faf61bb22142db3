// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/intrusive_list.hpp>

#include <boost/asio/execution_context.hpp>

#include <algorithm>
#include <chrono>
#include <typeinfo>

namespace sluice::detail {

// Something that a drain of its pipeline concerns, while it is in the pipeline's DrainScope. Both functions may end and
// destroy it, and others.
class Drainable : public ListHook {
public:
    // The drain begins: nothing new is to be taken in, and what would outlast the grace is to give up.
    virtual void on_drain() = 0;

    // The grace is over: all that runs is to be cancelled.
    virtual void on_grace_over() = 0;

    // Whether the end of the grace has cancelled what had not been cancelled before.
    bool cut_short() const noexcept { return cut_short_; }

protected:
    ~Drainable() { unlink(); }

    bool cut_short_ = false;
};

// The members that a drain of one pipeline concerns, and its progress.
class DrainScope {
public:
    // `its_timer` is the type of the pipeline's timer.
    explicit DrainScope(const std::type_info& its_timer) noexcept : timer(its_timer) {}

    DrainScope(const DrainScope&) = delete;
    DrainScope& operator=(const DrainScope&) = delete;

    bool draining() const noexcept { return draining_; }
    bool grace_over() const noexcept { return grace_over_; }

    std::chrono::nanoseconds deadline() const noexcept { return deadline_; }

    // Whether a drain with this deadline is the first, or shortens the grace.
    bool begins_before(std::chrono::nanoseconds deadline) const noexcept { return !draining_ || deadline < deadline_; }

    // The time on the clock of the pipeline's timer, since a reading that this keeps: there may be too many nanoseconds
    // since the epoch of the clock.
    virtual std::chrono::nanoseconds now(boost::asio::execution_context& context) = 0;

    // What is left of the grace, which may have no end.
    std::chrono::nanoseconds left(boost::asio::execution_context& context) {
        using std::chrono::nanoseconds;
        return std::clamp(deadline_ - now(context), nanoseconds(0), nanoseconds::max() / 2);
    }

    // Whether a wait that ends at `time`, on that clock, would outlast the grace.
    bool outlasts(std::chrono::nanoseconds time) const noexcept { return draining_ && time > deadline_; }

    const std::type_info& timer;

    void enter(Drainable& member) noexcept { members_.push_back(member); }

    void drain(std::chrono::nanoseconds deadline) {
        draining_ = true;
        deadline_ = deadline;
        visit(&Drainable::on_drain);
    }

    void end_grace() {
        grace_over_ = true;
        visit(&Drainable::on_grace_over);
    }

protected:
    ~DrainScope() {  // members may be in frames that their context destroys later
        while (!members_.empty()) {
            members_.front().unlink();
        }
    }

private:
    void visit(void (Drainable::*function)()) {
        IntrusiveList<Drainable> not_visited;
        not_visited.splice_back(members_);
        while (!not_visited.empty()) {
            Drainable& member = not_visited.front();
            member.unlink();
            members_.push_back(member);
            (member.*function)();
        }
    }

    IntrusiveList<Drainable> members_;
    std::chrono::nanoseconds deadline_{};  // on that clock
    bool draining_ = false;
    bool grace_over_ = false;
};

}  // namespace sluice::detail
