// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "task.hpp"

#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_time.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/system_error.hpp>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <functional>
#include <iterator>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace test {

using sluice::InferencePipelineOptions;
using sluice::StageOptions;

/// The executor of something on virtual time.
template <class Executor>
auto timed(Executor executor) {
    return sluice::timed_by<VirtualTimer>(std::move(executor));
}

/// The same options for all three stages.
inline InferencePipelineOptions every_stage(const StageOptions& stage, sluice::Observer* observer = nullptr) {
    return {.classify = stage, .extract = stage, .generate = stage, .observer = observer};
}

/// Runs everything that is due until `at`, and moves the time there.
inline void run_until(asio::io_context& context, std::chrono::nanoseconds at) {
    VirtualTimer timer(context.get_executor());
    timer.expires_at(VirtualTime::time_point(at));
    bool there = false;
    timer.async_wait([&](auto) { there = true; });
    while (!there && step(context)) {
    }
    context.restart();
    context.poll();
}

inline std::chrono::nanoseconds now(asio::io_context& context) {
    return VirtualTime::of(context).now().time_since_epoch();
}

/// Waits in virtual time; returns whether a cancellation ended the wait early.
inline asio::awaitable<bool> cancelled_within(std::chrono::nanoseconds duration) {
    try {
        co_await sleep(duration);
    } catch (const boost::system::system_error&) {
        co_return true;
    }
    co_return false;
}

/// Retries without jitter.
inline sluice::RetryPolicy retries(int n, std::chrono::nanoseconds backoff = {},
                                   bool (*retry_if)(const std::exception_ptr&) = nullptr) {
    sluice::Backoff settings;
    settings.initial = backoff;
    settings.cap = backoff;
    settings.multiplier = 1;
    settings.jitter = 0;
    return {.max_retries = n, .backoff = settings, .retry_if = retry_if};
}

/// A simulated model endpoint in virtual time that records its calls. It must outlive its context.
struct Model {
    std::string name;
    std::chrono::nanoseconds latency;
    std::function<std::chrono::nanoseconds(const std::string&)> latency_of;  ///< By text, instead of `latency`.
    std::map<std::string, int> failures;  ///< By text: how many of the next calls fail.
    std::chrono::nanoseconds clean_up{};  ///< The time that a cancelled call takes to end.

    int running = 0;
    int peak = 0;
    std::vector<std::string> begun;     ///< The texts, in order.
    std::vector<std::string> finished;  ///< Those that were answered.
    std::vector<std::string> failed;

    Model(std::string model_name, std::chrono::nanoseconds model_latency)
        : name(std::move(model_name)), latency(model_latency) {}

    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    int calls() const { return static_cast<int>(begun.size()); }

    asio::awaitable<std::string> run(std::string arguments, std::string text) {
        const Inside inside(*this);
        begun.push_back(text);
        if (const auto wait = latency_of ? latency_of(text) : latency; wait.count() > 0) {
            bool cancelled = false;
            try {
                co_await sleep(wait);
            } catch (const boost::system::system_error&) {
                cancelled = true;
            }
            if (cancelled) {
                if (clean_up.count() > 0) {
                    co_await asio::this_coro::throw_if_cancelled(false);
                    co_await sleep(clean_up);
                    co_await asio::this_coro::throw_if_cancelled(true);
                }
                throw boost::system::system_error(asio::error::operation_aborted);
            }
        }
        if (const auto at = failures.find(text); at != failures.end() && at->second > 0) {
            --at->second;
            failed.push_back(text);
            throw std::runtime_error("cannot " + name + " " + text);
        }
        finished.push_back(std::move(text));
        co_return name + "(" + arguments + ")";
    }

private:
    struct Inside {
        Model& model;
        explicit Inside(Model& entered) : model(entered) { model.peak = std::max(model.peak, ++model.running); }
        ~Inside() { --model.running; }
        Inside(const Inside&) = delete;
        Inside& operator=(const Inside&) = delete;
    };
};

/// A model function that calls a Model, with a text alone or with the results of two others and the text.
struct Endpoint {
    Model* model;

    asio::awaitable<std::string> operator()(const std::string& text) const { return model->run(text, text); }
    asio::awaitable<std::string> operator()(const std::string& intent, const std::string& entities,
                                            const std::string& text) const {
        return model->run(intent + "," + entities + "," + text, text);
    }
};

struct DeadLetter {
    sluice::Query query;
    sluice::StageResult<> reason;
};

/// A sink with a plain put().
struct DeadLetters {
    std::vector<DeadLetter> letters;

    void put(const sluice::Query& query, const sluice::StageResult<>& reason) { letters.push_back({query, reason}); }
};

/// A sink with an awaitable put() that takes some time.
struct SlowDeadLetters {
    std::chrono::nanoseconds latency = std::chrono::milliseconds(40);
    int begun = 0;
    std::vector<DeadLetter> letters;

    asio::awaitable<void> put(const sluice::Query& query, const sluice::StageResult<>& reason) {
        ++begun;
        co_await sleep(latency);
        letters.push_back({query, reason});
    }
};

/// Three models and a sink to make pipelines of. The context is destroyed first.
template <class Sink = DeadLetters>
struct Rig {
    using Pipeline = sluice::InferencePipeline<Endpoint, Endpoint, Endpoint, Sink, VirtualTimer>;
    using Result = typename Pipeline::Result;
    using Results = std::vector<Result>;

    Model classify{"classify", std::chrono::milliseconds(50)};
    Model extract{"extract", std::chrono::milliseconds(150)};
    Model generate{"generate", std::chrono::milliseconds(500)};
    Sink dead_letters;
    asio::io_context context{1};

    Pipeline pipeline(sluice::StageLimits limits = {20, 10, 5}, InferencePipelineOptions options = {}) {
        return Pipeline(timed(context.get_executor()), Endpoint{&classify}, Endpoint{&extract}, Endpoint{&generate},
                        limits, dead_letters, std::move(options));
    }

    Model& model(int stage) {
        Model* const models[] = {&classify, &extract, &generate};
        return *models[stage];
    }

    int running() const { return classify.running + extract.running + generate.running; }
    int calls() const { return classify.calls() + extract.calls() + generate.calls(); }
    std::chrono::nanoseconds run() { return sluice::testing::run(context); }
    std::chrono::nanoseconds run_until_stalled() { return sluice::testing::run_until_stalled(context); }
};

inline const std::string stage_names[] = {"classify", "extract", "generate"};

/// Whether no query holds a slot of any stage or waits for one.
template <class Pipeline>
bool idle(Pipeline& pipeline) {
    const auto none = [](const auto& s) { return s.active() == 0 && s.waiting() == 0; };
    return none(pipeline.classify().endpoint()) && none(pipeline.extract().endpoint()) &&
           none(pipeline.generate().endpoint());
}

inline InferencePipelineOptions with_window(std::ptrdiff_t window) { return {.window = window}; }

inline sluice::Query make_query(std::size_t index) {
    const std::string number = std::to_string(index);
    return sluice::Query("q" + number, "t" + number, {});
}

inline std::vector<sluice::Query> make_queries(std::size_t n) {
    std::vector<sluice::Query> queries;
    for (std::size_t i = 0; i != n; ++i) {
        queries.push_back(make_query(i));
    }
    return queries;
}

/// The ids of the queries, in the order of the letters.
inline std::vector<std::string> ids(const std::vector<DeadLetter>& letters) {
    std::vector<std::string> result;
    for (const DeadLetter& letter : letters) {
        result.push_back(letter.query.id.str());
    }
    return result;
}

template <class T>
bool all_different(const std::vector<T>& values) {
    return std::set<T>(values.begin(), values.end()).size() == values.size();
}

/// A single-pass range that makes and counts its queries on demand, and may throw at one of them.
class Source {
public:
    enum class Throw { never, in_begin, in_increment, in_dereference };

    std::size_t size = 0;
    std::size_t made = 0;  ///< The queries that were dereferenced.
    std::size_t read = 0;  ///< The positions that were reached, including the end.
    Throw where = Throw::never;
    std::size_t throw_at = 0;
    std::function<void(std::size_t)> on_make;

    explicit Source(std::size_t number) : size(number) {}
    Source(const Source&) = delete;
    Source& operator=(const Source&) = delete;

    class Iterator {
    public:
        using difference_type = std::ptrdiff_t;
        using value_type = sluice::Query;

        explicit Iterator(Source* source) : source_(source) {}
        Iterator(Iterator&&) = default;
        Iterator& operator=(Iterator&&) = default;

        sluice::Query operator*() const {
            source_->fail_if(Throw::in_dereference);
            if (source_->on_make) {
                source_->on_make(source_->at_);
            }
            ++source_->made;
            return make_query(source_->at_);
        }
        Iterator& operator++() {
            ++source_->at_;
            ++source_->read;
            source_->fail_if(Throw::in_increment);
            return *this;
        }
        void operator++(int) { ++*this; }
        bool operator==(std::default_sentinel_t) const { return source_->at_ == source_->size; }

    private:
        Source* source_;
    };

    Iterator begin() {
        ++read;
        fail_if(Throw::in_begin);
        return Iterator(this);
    }
    std::default_sentinel_t end() const { return {}; }

private:
    void fail_if(Throw now) const {
        if (where == now && (now == Throw::in_begin || at_ == throw_at)) {
            throw std::out_of_range("no more queries");
        }
    }

    std::size_t at_ = 0;
};

inline constexpr std::size_t endless = ~std::size_t{0};

}  // namespace test
