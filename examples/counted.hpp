// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstddef>
#include <string>

namespace support {

/// Returns the number with its noun: "1 slot", "2 slots".
inline std::string counted(std::size_t n, const std::string& one, const std::string& many) {
    return std::to_string(n) + ' ' + (n == 1 ? one : many);
}
inline std::string counted(std::size_t n, const std::string& one) { return counted(n, one, one + 's'); }

}  // namespace support
