// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/intrusive_list.hpp>
#include <sluice/sync/slot.hpp>
#include <sluice/sync/stage_semaphore.hpp>

#include <cstddef>

namespace sluice::detail {

// The window of one batch or stream: the places of the queries that run at once.
//
// A query in backoff leaves its place to another. When the backoff ends it waits in line for a place, ahead of every
// new query but one that a source has already delivered: new ones only take a place that is free while nothing waits.
// If the route ends the backoff, the query waits before its next step, or before its result or dead letter; unless it
// is late, and then it ends without a place. How many queries are away in this way is bounded too; a query beyond that
// bound keeps its place during its backoff. What a query holds when it ends goes with its result.
class Window : public ListHook {
public:
    template <class Executor>
    Window(const Executor& executor, std::ptrdiff_t size, std::ptrdiff_t max_in_backoff)
        : places_(executor, size), backoffs_(executor, max_in_backoff) {}

    StageSemaphore& places() noexcept { return places_; }

    bool has_free_place() const noexcept { return places_.waiting() == 0 && places_.active() < places_.limit(); }

    // Gives up `place` for a backoff. Returns a token to hold until the query has a place again; empty if it kept it,
    // since too many others are away, or since there is no memory to let one in.
    Slot leave(Slot& place) noexcept {
        Slot away = backoffs_.try_acquire();
        if (away) {
            try {
                give_back(place);
            } catch (...) {
                place = places_.try_acquire();  // nobody has taken it
                away.release();
            }
        }
        return away;
    }

    // The same for a query that has no place; empty if too many are away.
    Slot permit_absence() noexcept { return backoffs_.try_acquire(); }

    void give_back(Slot& place) {
        place.release();
        admit();
    }

    void resize(std::ptrdiff_t size) {
        places_.set_limit(size);
        admit();
    }

    // Lets in another query, if a place is free and there is one.
    virtual void admit() = 0;

protected:
    ~Window() { unlink(); }

private:
    StageSemaphore places_;
    StageSemaphore backoffs_;
};

}  // namespace sluice::detail
