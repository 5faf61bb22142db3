// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/detail/query_reader.hpp>
#include <sluice/pipeline/detail/source_reader.hpp>
#include <sluice/pipeline/query_source.hpp>

#include <type_traits>

namespace sluice::detail {

// Takes queries out of a range or an asynchronous source. `Items` is a reference for an lvalue.
template <class Items, class Projection>
using Input = std::conditional_t<ItemSource<Items>, SourceReader<Items, Projection>, QueryReader<Items, Projection>>;

}  // namespace sluice::detail
