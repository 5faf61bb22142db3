// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "ask_answers.hpp"
#include "ask_prompts.hpp"

#include <sluice/query.hpp>
#include <sluice/sync/slot.hpp>
#include <sluice/sync/stage_semaphore.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

#include <cstddef>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

namespace openai {

/// The prompts without an answer, in order, as an asynchronous source of queries. It waits while too many answers wait
/// for that of an earlier prompt: those are in memory, and lost if the program is killed.
class PromptSource {
public:
    /// @param prompts Must outlive this. Their texts are moved out.
    /// @param ahead How many prompts may be taken and not passed; at least 1.
    PromptSource(const boost::asio::any_io_executor& executor, Prompts& prompts, const Answers& answers,
                 std::ptrdiff_t ahead)
        : prompts_(prompts), ahead_(executor, ahead) {
        for (std::size_t position = 0; position != prompts.size(); ++position) {
            if (!answers.has(position)) positions_.push_back(position);
        }
    }

    /// When awaited, returns the next prompt, or an empty optional at the end.
    boost::asio::awaitable<std::optional<sluice::Query>> next() {
        if (taken_ == positions_.size()) co_return std::nullopt;
        places_.push_back(co_await ahead_.acquire());
        const std::size_t position = positions_[taken_++];
        co_return sluice::Query(prompts_.id(position), prompts_.take(position));
    }

    /// The first `number` prompts, and maybe others, have been answered or have failed.
    void pass(std::size_t number) {
        for (; passed_ < number; ++passed_) places_.pop_front();
    }

    std::size_t size() const noexcept { return positions_.size(); }

    /// Where the prompt that is returned at `index`, from 0, is in the file.
    std::size_t position(std::size_t index) const { return positions_.at(index); }

private:
    Prompts& prompts_;
    std::vector<std::size_t> positions_;
    sluice::StageSemaphore ahead_;
    std::deque<sluice::Slot> places_;  // of the prompts that are taken and not passed
    std::size_t taken_ = 0;
    std::size_t passed_ = 0;
};

}  // namespace openai
