// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <algorithm>
#include <cstddef>
#include <vector>

namespace sluice::detail {

// The base of an object in an IndexedHeap, which is told here where in the heap it is.
class HeapHook {
public:
    HeapHook() noexcept = default;

    HeapHook(const HeapHook&) = delete;  // the heap holds its address
    HeapHook& operator=(const HeapHook&) = delete;

private:
    template <class, class>
    friend class IndexedHeap;

    std::size_t index_ = 0;
};

// A heap of objects that it does not own, the one with the least key at the top. Removes any of them in O(log n). Does
// not keep the order of equal keys.
//
// The keys lie in the heap itself, and a node has four children: so the way down is half as long as in a binary heap,
// and a level of it is read from one or two cache lines.
template <class T, class Key>
class IndexedHeap {
public:
    bool empty() const noexcept { return entries_.empty(); }
    std::size_t size() const noexcept { return entries_.size(); }

    // The object with the least key, and that key; only if the heap is not empty.
    T& top() const noexcept { return *entries_.front().item; }
    const Key& top_key() const noexcept { return entries_.front().key; }

    // `item` is in no heap.
    void push(const Key& key, T& item) {
        const Entry entry{key, &item};
        entries_.push_back(entry);
        move_up(entries_.size() - 1, entry);
    }

    // `item` is in this heap.
    void remove(T& item) noexcept {
        const std::size_t hole = hook_of(item).index_;
        const Entry last = entries_.back();
        entries_.pop_back();
        if (hole == entries_.size()) {
            return;
        }
        if (hole != 0 && last.key < entries_[parent_of(hole)].key) {
            move_up(hole, last);
        } else {
            move_down(hole, last);
        }
    }

private:
    struct Entry {
        Key key;
        T* item;
    };

    static constexpr std::size_t children = 4;

    static std::size_t parent_of(std::size_t index) noexcept { return (index - 1) / children; }
    static HeapHook& hook_of(T& item) noexcept { return item; }

    void put(std::size_t index, const Entry& entry) noexcept {
        entries_[index] = entry;
        hook_of(*entry.item).index_ = index;
    }

    // Puts `entry` into the hole, or above it.
    void move_up(std::size_t hole, const Entry& entry) noexcept {
        while (hole != 0 && entry.key < entries_[parent_of(hole)].key) {
            put(hole, entries_[parent_of(hole)]);
            hole = parent_of(hole);
        }
        put(hole, entry);
    }

    // Puts `entry` into the hole, or below it.
    void move_down(std::size_t hole, const Entry& entry) noexcept {
        std::size_t child = least_child_of(hole);
        while (child < entries_.size() && entries_[child].key < entry.key) {
            put(hole, entries_[child]);
            hole = child;
            child = least_child_of(hole);
        }
        put(hole, entry);
    }

    // Not an index if there is no child.
    std::size_t least_child_of(std::size_t index) const noexcept {
        const std::size_t first = children * index + 1;
        const std::size_t end = std::min(first + children, entries_.size());
        std::size_t least = first;
        for (std::size_t child = first + 1; child < end; ++child) {
            if (entries_[child].key < entries_[least].key) {
                least = child;
            }
        }
        return least;
    }

    std::vector<Entry> entries_;  // no entry's key is less than its parent's
};

}  // namespace sluice::detail
