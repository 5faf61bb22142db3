// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/rate.hpp>

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace openai {

struct Embeddings {
    std::vector<std::vector<float>> vectors;  ///< In the order of the texts.
    std::optional<sluice::Cost> usage = std::nullopt;
};

/// Returns the body of a request.
/// @param model May be empty for a server that has a single one.
/// @throws sluice::ModelError, invalid, if a string is not UTF-8.
std::string embeddings_body(const std::string& model, std::span<const std::string> texts);

/// Reads the whole body of an answer with status 200.
/// @param texts How many texts the request had.
/// @throws sluice::ModelError as error_in() says if it reports an error; otherwise transient, unless it has one vector
/// for each text, all of the same length, which is not zero.
Embeddings parse_embeddings(std::string_view body, std::size_t texts);

}  // namespace openai
