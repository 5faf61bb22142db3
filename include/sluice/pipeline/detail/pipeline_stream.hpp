// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/detail/drain_state.hpp>
#include <sluice/pipeline/detail/query_window.hpp>
#include <sluice/pipeline/detail/stream_state.hpp>
#include <sluice/stage/detail/drain_scope.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/slot.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/this_coro.hpp>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <exception>
#include <iterator>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace sluice::detail {

// A stream of the results of a pipeline.
template <class State, class Input>
class PipelineStream final : public StreamState<typename State::Result, typename State::Executor> {
    using Base = StreamState<typename State::Result, typename State::Executor>;
    using Executor = typename State::Executor;

public:
    PipelineStream(std::shared_ptr<State> state, Input input)
        : state_(std::move(state)), drain_(&state_->drain), input_(std::move(input)) {
        if constexpr (State::drains) {
            drain_.scope.enter(not_begun_);
        }
    }

    ~PipelineStream() override {
        if constexpr (State::drains) {  // of a drain whose report nobody has received
            std::ranges::move(unfinished_, std::back_inserter(state_->unfinished));
        }
    }

    // The consumer gets no query that a drain has cut short: the report of the drain has it.
    void end(std::size_t index, auto& job) {
        if constexpr (State::drains) {
            if (job.result.unfinished) {
                (drain_.started() ? unfinished_ : state_->unfinished).push_back(std::move(job.result));
                return;
            }
        }
        Base::end(index, job);
    }

    boost::asio::awaitable<typename Base::Drained, Executor> drain(std::chrono::nanoseconds grace) override {
        return drain(Pooled(), std::static_pointer_cast<PipelineStream>(this->shared_from_this()), grace);
    }

    bool must_close_source() const noexcept override { return Input::must_be_closed; }

    void end_input(const DrainScope& scope) override {
        if constexpr (State::drains) {
            drain_.join(scope);
        } else if (window_) {
            window_->end_input(scope);
        } else if (input_) {
            if constexpr (Input::owns_stream) {
                input_->end_input(scope);
            } else {
                input_ended_ = true;
            }
        }
    }

    void end_grace() override {
        if constexpr (State::drains) {
            drain_.end_grace();
        } else if (window_) {
            window_->end_grace();
        } else {
            grace_over_ = true;
            end_source();
        }
    }

private:
    using Window = QueryWindow<State, Input, PipelineStream>;

    // Stands for the window in a drain that comes before it.
    class NotBegun final : public Drainable {
    public:
        explicit NotBegun(PipelineStream& stream) noexcept : stream_(stream) {}

    private:
        void on_drain() override { stream_.leave_rest(); }
        void on_grace_over() override { stream_.end_source(); }

        PipelineStream& stream_;
    };

    // Leaves the queries that this stream owns: none has begun, and none will.
    void leave_rest() {
        if constexpr (State::drains) {
            const auto self = this->weak_from_this().lock();  // a range or projection may destroy the stream
            if (!self || this->stopped()) {
                return;
            }
            leaves_rest_ = true;
            try {
                if constexpr (Input::has_rest) {
                    leave_all();
                } else if constexpr (Input::owns_stream) {
                    input_->end_input(drain_.scope);
                    begin_to_end();
                } else if constexpr (Input::must_be_closed) {
                    begin_to_end();
                }
            } catch (...) {
                this->fail(std::current_exception());
            }
        }
    }

    void leave_all() {
        Input rest = *std::move(input_);  // whose range or projection may begin the stream
        input_->end();
        for (;;) {
            typename State::Job job;
            if (!rest.pull(job)) {
                return;
            }
            job.cut_short();
            end(0, job);
        }
    }

    // A window takes over what a stream that this owns may have in work, and closes the source.
    void begin_to_end() {
        const boost::asio::any_io_executor executor = drain_.get_executor();
        if constexpr (std::same_as<Executor, boost::asio::any_io_executor>) {
            if (executor) {
                this->start(executor);
            }
        } else if (const auto* const typed = executor.template target<Executor>()) {
            this->start(*typed);
        }
    }

    void end_source() {
        if constexpr (Input::owns_stream) {
            if (input_) {
                input_->end_grace();
            }
        }
    }

    static boost::asio::awaitable<typename Base::Drained, Executor> drain(Pooled, std::shared_ptr<PipelineStream> self,
                                                                          std::chrono::nanoseconds grace) {
        if constexpr (State::drains) {
            const Executor executor = co_await boost::asio::this_coro::executor;
            self->state_->check_context(executor);
            co_await State::Drain::template run<Executor>(Pooled(), self->drain_, executor, self, grace);
            co_return typename Base::Drained{self->drain_.counts(), std::exchange(self->unfinished_, {})};
        } else {
            co_return typename Base::Drained{};
        }
    }

    boost::asio::awaitable<void, Executor> run() override {
        running_.emplace(drain_);
        return run(Pooled(), std::static_pointer_cast<PipelineStream>(this->shared_from_this()));
    }

    void did_not_run() noexcept override { running_.reset(); }

    static boost::asio::awaitable<void, Executor> run(Pooled, std::shared_ptr<PipelineStream> self) {
        const Executor executor = co_await boost::asio::this_coro::executor;
        self->state_->check_context(executor);
        std::exception_ptr error;
        try {
            self->not_begun_.unlink();
            Window window(executor, *self->state_, self->drain_, *std::move(self->input_), *self, self->leaves_rest_);
            self->input_.reset();
            const struct Reset {
                Window*& window;
                ~Reset() { window = nullptr; }
            } reset{self->window_ = &window};
            if (self->stopped() || self->grace_over_) {
                window.cancel();
            }
            if (self->input_ended_) {
                window.end_input();
            }
            co_await window.run();
        } catch (...) {
            error = std::current_exception();
        }
        self->running_.reset();
        if (error) {
            std::rethrow_exception(error);
        }
    }

    void cancel() noexcept override {
        if (window_) {
            window_->cancel();
        }
    }

    void give_back(Slot& place) override {
        if (window_) {
            window_->give_back(place);
        }
    }

    const std::shared_ptr<State> state_;
    typename State::Drain drain_;
    std::optional<typename State::Drain::Running> running_;  // from the first next() to the end
    NotBegun not_begun_{*this};                              // until there is a window
    std::optional<Input> input_;                             // the same
    Window* window_ = nullptr;                               // while it runs
    bool leaves_rest_ = false;                               // a drain came before it
    bool input_ended_ = false;                               // as did the drain of a pipeline that owns this
    bool grace_over_ = false;                                // the same
    std::vector<typename State::Result> unfinished_;         // when this stream was drained
};

}  // namespace sluice::detail
