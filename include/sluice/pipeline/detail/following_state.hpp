// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/pipeline/detail/pipeline_state.hpp>
#include <sluice/stage/detail/endpoint_state.hpp>

#include <cstddef>
#include <optional>
#include <utility>

namespace sluice::detail {

// The state of a pipeline whose window follows the limits of its three stages, unless another was given.
template <class Route, class Sink, class T>
class FollowingState : public PipelineState<Route, Sink, T> {
public:
    template <class... Args>
    FollowingState(std::optional<std::ptrdiff_t> window, std::ptrdiff_t most_in_backoff, Observer* observer, Sink& sink,
                   Args&&... args)
        : PipelineState<Route, Sink, T>({window.value_or(0), most_in_backoff, observer}, sink,
                                        std::forward<Args>(args)...) {
        if (!window) {
            this->set_window(this->route.slots());
            this->route.listen(followers_);
        }
    }

private:
    class Follower final : public LimitListener {
    public:
        explicit Follower(FollowingState& state) noexcept : state_(state) {}

        void on_limit_changed() override { state_.set_window(state_.route.slots()); }

    private:
        FollowingState& state_;
    };

    Follower followers_[3] = {Follower(*this), Follower(*this), Follower(*this)};
};

}  // namespace sluice::detail
