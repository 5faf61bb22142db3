// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/rate.hpp>
#include <sluice/stage/verdict.hpp>

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

// What the answers with status 200 have in common: they are JSON objects, which may report an error or the usage.
namespace openai {

/// An answer that is not as the protocol says, such as the page of a gateway. It says nothing of the request, so the
/// error is transient: the next answer may be a right one.
/// @param problem A sentence without its end, such as "the answer has no choices".
/// @param answer The message ends with its beginning.
sluice::ModelError malformed(const std::string& problem, std::string_view answer);

/// The most values in an answer, about: more than the 2,048 embeddings of 3,072 numbers each that a large provider
/// sends at most. They take some 0.4 GB while they are read, beside their text; see HttpOptions::max_body for that.
inline constexpr std::int64_t max_values = std::int64_t{1} << 23;

/// Reads a whole answer, or the data of one event of a stream.
/// @throws sluice::ModelError if it is not a JSON object or too large, as by malformed(), or reports an error, as
/// error_in() says.
/// @param memory Holds the object. Default: the heap.
boost::json::object parse_answer(std::string_view text, boost::json::storage_ptr memory = {});

/// Returns the member, or null if there is none or it is `null`.
const boost::json::value* member(const boost::json::object& object, std::string_view name) noexcept;

/// Returns a string, or an empty one if there is none.
std::string_view text_of(const boost::json::value* value) noexcept;

/// Returns a number that is a whole one and fits.
std::optional<std::int64_t> integer_of(const boost::json::value* value) noexcept;

/// Returns the usage that an answer reports, as one request; none if it has no or nonsensical numbers.
std::optional<sluice::Cost> usage_of(const boost::json::object& answer) noexcept;

}  // namespace openai
