// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <boost/assert.hpp>

#include <utility>

namespace sluice::detail {

// The base of an object in an IntrusiveList. When it is destroyed it is in no list.
class ListHook {
public:
    ListHook() noexcept = default;
    ~ListHook() { BOOST_ASSERT(next_ == this); }

    ListHook(const ListHook&) = delete;  // its neighbours hold its address
    ListHook& operator=(const ListHook&) = delete;

    bool is_linked() const noexcept { return next_ != this; }

    void unlink() noexcept {
        previous_->next_ = next_;
        next_->previous_ = previous_;
        previous_ = next_ = this;
    }

private:
    template <class>
    friend class IntrusiveList;

    // A ring: a hook that is in no list is a ring of its own.
    ListHook* previous_ = this;
    ListHook* next_ = this;
};

// A doubly linked list of objects that it does not own. Allocates nothing. O(1), unless said otherwise.
template <class T>
class IntrusiveList {
public:
    bool empty() const noexcept { return ends_.next_ == &ends_; }

    T& front() noexcept { return static_cast<T&>(*ends_.next_); }

    // `item` is in no list.
    void push_back(ListHook& item) noexcept {
        item.previous_ = ends_.previous_;
        item.next_ = &ends_;
        ends_.previous_->next_ = &item;
        ends_.previous_ = &item;
    }

    // Appends every item of `other`, in order, and leaves it empty.
    void splice_back(IntrusiveList& other) noexcept {
        if (other.empty()) {
            return;
        }
        ListHook& first = *other.ends_.next_;
        ListHook& last = *other.ends_.previous_;
        other.ends_.previous_ = other.ends_.next_ = &other.ends_;
        first.previous_ = ends_.previous_;
        last.next_ = &ends_;
        ends_.previous_->next_ = &first;
        ends_.previous_ = &last;
    }

    // Adds `item`, which is in no list, before the first item that comes after it, or at the end. O(items before it).
    template <class ComesAfter>
    void insert(ListHook& item, ComesAfter comes_after) noexcept {
        ListHook* next = ends_.next_;
        while (next != &ends_ && !comes_after(static_cast<T&>(*next))) {
            next = next->next_;
        }
        item.previous_ = next->previous_;
        item.next_ = next;
        next->previous_->next_ = &item;
        next->previous_ = &item;
    }

    // Adds `item`, which is in no list, behind the last item that does not come after it. O(items behind it).
    template <class ComesAfter>
    void insert_back(ListHook& item, ComesAfter comes_after) noexcept {
        ListHook* previous = ends_.previous_;
        while (previous != &ends_ && comes_after(static_cast<T&>(*previous))) {
            previous = previous->previous_;
        }
        item.next_ = previous->next_;
        item.previous_ = previous;
        previous->next_->previous_ = &item;
        previous->next_ = &item;
    }

    // The first item that matches, or null. O(items before it).
    template <class Matches>
    T* find(Matches matches) {
        for (ListHook* hook = ends_.next_; hook != &ends_; hook = hook->next_) {
            if (T& item = static_cast<T&>(*hook); matches(item)) {
                return &item;
            }
        }
        return nullptr;
    }

    // Calls `visit(item)` for each item in order. `visit` may unlink that item, and must not change the list otherwise.
    template <class Visit>
    void for_each(Visit visit) {
        for (ListHook* hook = ends_.next_; hook != &ends_;) {
            visit(static_cast<T&>(*std::exchange(hook, hook->next_)));
        }
    }

private:
    ListHook ends_;  // next_ is the first item, previous_ the last
};

}  // namespace sluice::detail
