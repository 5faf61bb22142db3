// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "models.hpp"
#include "task.hpp"

#include <boost/asio/awaitable.hpp>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <vector>

namespace test {

using Stream = Rig<>::Pipeline::Stream;
using Item = std::optional<Stream::Item>;
using Indexes = std::vector<std::size_t>;

/// Awaits one result.
inline Task<Item> next(Rig<>& rig, Stream& stream) {
    return Task<Item>(rig.context.get_executor(), [&stream] { return stream.next(); });
}

/// Consumes the stream to its end and appends the indexes of the results.
template <class AnyStream>
asio::awaitable<void> drain(AnyStream& stream, Indexes& indexes) {
    while (auto item = co_await stream.next()) {
        indexes.push_back(item->index);
    }
}

template <class AnyRig, class AnyStream>
Task<> start_drain(AnyRig& rig, AnyStream& stream, Indexes& indexes) {
    return Task<>(rig.context.get_executor(), [&stream, &indexes] { return drain(stream, indexes); });
}

inline Indexes sorted(Indexes indexes) {
    std::ranges::sort(indexes);
    return indexes;
}

}  // namespace test
